"""VBench, in an interpreter of its own."""
