"""What runs write and read back: units, seeds, tables, figures, progress. It knows no experiment.

Counting imports from here without PyTorch, so that this hands on only what is light.
"""

from experiments.cache.key import describe

__all__ = [
    "describe",
]
