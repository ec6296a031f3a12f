"""Figures about generated clips, each with its protocol and its uncertainty."""
