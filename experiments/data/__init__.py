"""Concepts with their images and prompts, and the embedded corpus; no experiment and no network."""

from experiments.data.concepts import Concept, ConceptSource, EmojiConcepts, select_concepts
from experiments.data.folder import FolderConcepts
from experiments.data.imagenet import ImageNetConcepts

__all__ = [
    "Concept",
    "ConceptSource",
    "EmojiConcepts",
    "FolderConcepts",
    "ImageNetConcepts",
    "select_concepts",
]
