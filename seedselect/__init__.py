"""SeedSelect: optimise a seed so that the image it generates shows a concept, given a few reference images."""

from seedselect.book import Selection
from seedselect.features import ClipFeatures
from seedselect.losses import appearance_loss, semantic_loss
from seedselect.select import Iteration, SeedSelect, Targets

__all__ = ["ClipFeatures", "Iteration", "SeedSelect", "Selection", "Targets", "appearance_loss", "semantic_loss"]
