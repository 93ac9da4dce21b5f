"""Experiments of the NAO paper: images of rare concepts (Table 3), and paths and centroids of seeds (Table 2)."""

from experiments.rare_concepts.arm import Arm, inverted_seeds
from experiments.rare_concepts.inversion_stage import CachedSeeds, InversionStage
from experiments.rare_concepts.task import RareConceptsExperiment

__all__ = [
    "Arm",
    "CachedSeeds",
    "InversionStage",
    "RareConceptsExperiment",
    "inverted_seeds",
]
