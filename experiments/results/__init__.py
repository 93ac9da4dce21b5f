"""What runs write and read back: units, seeds, tables, figures, progress. It knows no experiment."""

from experiments.results.progress import Progress
from experiments.results.settings import describe

__all__ = [
    "Progress",
    "describe",
]
