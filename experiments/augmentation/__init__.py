"""Few-shot augmentation: classifiers with and without generated images; the only experiment built on another."""

from experiments.augmentation.few_shot import FewShot
from experiments.augmentation.task import AugmentationExperiment

__all__ = [
    "AugmentationExperiment",
    "FewShot",
]
