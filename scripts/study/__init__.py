"""Which guidance helps on the model of two shapes: search, test, and the questions behind it."""
