"""Few-shot augmentation experiment: compares classifiers that are trained with and without generated images."""

from experiments.augmentation.few_shot import FewShot
from experiments.augmentation.task import AugmentationExperiment

__all__ = [
    "AugmentationExperiment",
    "FewShot",
]
