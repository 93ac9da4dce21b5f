"""Inversion methods side by side (Tables 1, Fig. 3 to 7): methods under settings, in batches of images."""

from experiments.inversion.jobs import Job, Setting
from experiments.inversion.task import InversionStudy

__all__ = [
    "InversionStudy",
    "Job",
    "Setting",
]
