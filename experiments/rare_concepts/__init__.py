"""Rare concepts, paths and centroids (Tables 2, 3): images to seeds, those to better seeds, and a judge of images."""

from experiments.rare_concepts.arm import Arm, inverted_seeds
from experiments.rare_concepts.inversion_stage import InversionStage, Seeds
from experiments.rare_concepts.seed_geometry import SeedGeometry
from experiments.rare_concepts.task import RareConcepts

__all__ = [
    "Arm",
    "InversionStage",
    "RareConcepts",
    "SeedGeometry",
    "Seeds",
    "inverted_seeds",
]
