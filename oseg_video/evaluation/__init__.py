"""Metric values of generated clips, each with its protocol and its uncertainty."""
