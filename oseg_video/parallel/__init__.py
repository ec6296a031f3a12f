"""Execution on several ranks: the mesh, its collectives, attention over a sequence that is spread out."""
