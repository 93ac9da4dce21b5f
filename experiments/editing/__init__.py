"""Editing experiment: reads a benchmark in PIE-Bench's format, edits its images with many methods, computes metrics."""
