"""Editing experiment: benchmarks in PIE-Bench's format, edits by many methods, and their metrics."""

from experiments.editing.benchmark import BenchmarkEdit, read_benchmark

__all__ = ["BenchmarkEdit", "read_benchmark"]
