"""Training of the embedded model from nothing; `scripts/train_tiny.py` runs it."""
