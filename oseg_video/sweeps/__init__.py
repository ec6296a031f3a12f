"""Sweeps: prompts x seeds x methods x models as a table of independent items, made once each."""
