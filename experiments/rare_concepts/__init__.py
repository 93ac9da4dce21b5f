"""Images of rare concepts, and paths and centroids of seeds (Tables 2 and 3 of the NAO paper)."""

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
