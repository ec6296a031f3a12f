"""The metrics, a file for each: a file that is put here is a metric, with no other change."""
