"""Editing experiment: reads a benchmark in PIE-Bench's format, edits its images with many methods, computes metrics."""

from experiments.editing.benchmark import BenchmarkEdit, read_benchmark

__all__ = ["BenchmarkEdit", "read_benchmark"]
