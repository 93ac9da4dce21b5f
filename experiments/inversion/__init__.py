"""Inversion methods side by side (Tables 1, Fig. 3 to 7): methods under settings, in batches of images."""

from experiments.inversion.jobs import InversionJob, Setting
from experiments.inversion.task import InversionExperiment

__all__ = [
    "InversionExperiment",
    "InversionJob",
    "Setting",
]
