"""Searches for settings: successive halving on sweeps, and a claim on clips that the search did not see."""
