"""SeedSelect: optimize a seed so that the image it generates shows a concept, given a few reference images."""

from seedselect.features import ClipFeatures
from seedselect.history import Selection
from seedselect.losses import appearance_loss, semantic_loss
from seedselect.rewards import ClipReward, Made, Reward, Targets, of_images, of_latents, of_seeds, text_similarity
from seedselect.search import BestOf, Search
from seedselect.select import Iteration, SeedSelect

__all__ = [
    "BestOf",
    "ClipFeatures",
    "ClipReward",
    "Iteration",
    "Made",
    "Reward",
    "Search",
    "SeedSelect",
    "Selection",
    "Targets",
    "appearance_loss",
    "of_images",
    "of_latents",
    "of_seeds",
    "semantic_loss",
    "text_similarity",
]
