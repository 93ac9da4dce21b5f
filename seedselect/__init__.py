"""SeedSelect: optimize a seed so that the image generated from it shows a concept, given a few reference images."""

from seedselect.features import ClipFeatures
from seedselect.history import Selection
from seedselect.losses import appearance_loss, semantic_loss
from seedselect.problem import Generation, Problem, Targets, Trajectory
from seedselect.rewards import ClipReward, ImageReward, LatentReward, Reward, SeedReward, text_similarity
from seedselect.search import BestOf, LocalSearch
from seedselect.select import Iteration, SeedSelect

__all__ = [
    "BestOf",
    "ClipFeatures",
    "ClipReward",
    "Generation",
    "ImageReward",
    "Iteration",
    "LatentReward",
    "LocalSearch",
    "Problem",
    "Reward",
    "SeedReward",
    "SeedSelect",
    "Selection",
    "Targets",
    "Trajectory",
    "appearance_loss",
    "semantic_loss",
    "text_similarity",
]
