"""Experiments that compare inversion methods (Table 1 and Figures 3 to 7 of the RNRI paper)."""

from experiments.inversion.jobs import InversionJob, Setting
from experiments.inversion.task import InversionExperiment

__all__ = [
    "InversionExperiment",
    "InversionJob",
    "Setting",
]
