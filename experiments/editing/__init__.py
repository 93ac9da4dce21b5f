"""Editing experiment: edits the images of a benchmark in PIE-Bench's format with many methods, and computes metrics."""
