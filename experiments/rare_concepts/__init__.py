"""Rare concepts, paths and centroids (Tables 2, 3): images to seeds, those to better seeds, and a judge of images."""

from experiments.rare_concepts.arm import Arm, inverted_seeds
from experiments.rare_concepts.inversion_stage import InversionStage, CachedSeeds
from experiments.rare_concepts.seed_geometry import SeedGeometryExperiment
from experiments.rare_concepts.task import RareConceptsExperiment

__all__ = [
    "Arm",
    "InversionStage",
    "RareConceptsExperiment",
    "SeedGeometryExperiment",
    "CachedSeeds",
    "inverted_seeds",
]
