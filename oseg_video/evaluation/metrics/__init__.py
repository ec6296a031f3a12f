"""The metrics, each with its protocol."""
