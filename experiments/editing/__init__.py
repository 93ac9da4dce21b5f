"""Editing as it is measured: a benchmark with masks in PIE-Bench's format, its scores and the study of edits."""

from experiments.editing.benchmark import BenchmarkEdit, read_benchmark
from experiments.evaluation.background_metrics import Background, background_scores

__all__ = ["Background", "BenchmarkEdit", "background_scores", "read_benchmark"]
