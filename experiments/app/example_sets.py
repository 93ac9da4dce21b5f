"""Sets of example images that a visitor chooses with one click."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from experiments.app.context import AppContext
from experiments.app.uploads import read_image

PAIRS = ((("fox", 0), ("fox", 2)), (("fox", 0), ("owl", 0)), (("fox", 1), ("eagle", 1)))
"""Pairs of drawings. A drawing is identified by its concept and by its index among the drawings of the concept."""
RARE_CONCEPTS = ("volcano", "steaming bowl", "tram", "basketball", "shortcake", "water wave")
"""Rare concepts of the emoji corpus.

The model was not trained on the first three drawings of each of these concepts.
"""
NUM_REFERENCES = 3


@dataclass(frozen=True)
class ExampleSet:
    """Example images with a label and one prompt per image."""

    label: str
    images: list[Image.Image]
    prompts: list[str]


def example_pairs(context: AppContext) -> list[ExampleSet]:
    """Return the pairs of example images that the tab Seeds offers; the tab interpolates between the seeds of a pair.

    If the examples are a table of drawings, the pairs are ``PAIRS``. If the examples are a folder, each pair consists
    of the first two images with the same prompt.
    """
    drawings = _drawings(context)
    if drawings is None:
        groups = _groups_of_equal_prompt(context)
        return [ExampleSet(prompt, images[:2], [prompt] * 2) for prompt, images in groups.items()]
    pairs = []
    for pair in PAIRS:
        selected = [drawings[name][k] for name, k in pair if k < len(drawings.get(name, []))]
        if len(selected) == len(pair):
            (first, _), (second, _) = pair
            label = f"two drawings: {first}" if first == second else f"{first} to {second}"
            pairs.append(_as_set(context, label, selected))
    return pairs


def rare_concept_sets(context: AppContext) -> list[ExampleSet]:
    """Return sets of reference images of rare concepts.

    If the examples are a table of drawings, there is one set of three drawings for each concept in ``RARE_CONCEPTS``.
    The label contains the number of training captions if the folder of the table contains ``concepts.csv``. If the
    examples are a folder, each set consists of the first three images with the same prompt.
    """
    drawings = _drawings(context)
    if drawings is None:
        groups = _groups_of_equal_prompt(context)
        return [
            ExampleSet(prompt, images[:NUM_REFERENCES], [prompt] * len(images[:NUM_REFERENCES]))
            for prompt, images in groups.items()
        ]
    counts = _caption_counts(Path(str(context.examples_from)).with_name("concepts.csv"))
    return [
        _as_set(context, f"{name} ({counts[name]} captions)" if name in counts else name, drawings[name])
        for name in RARE_CONCEPTS
        if name in drawings
    ]


Drawing = tuple[bytes, str, str]
"""A drawing: the bytes of the image file, the name of the concept, and this name with its article (``a fox``)."""


def _drawings(context: AppContext) -> dict[str, list[Drawing]] | None:
    """Return up to three drawings of each concept in ``PAIRS`` and ``RARE_CONCEPTS``, by the name of the concept.

    If the examples are not a table of drawings, return None.
    """
    path = Path(context.examples_from or "")
    if path.suffix != ".parquet":
        return None
    table = pd.read_parquet(path, columns=["image", "concept", "phrase"])
    names = {*RARE_CONCEPTS, *(name for pair in PAIRS for name, _ in pair)}
    table = table[table["concept"].isin(names)]
    return {
        str(name): [(image["bytes"], str(name), phrase) for image, phrase in zip(rows.image, rows.phrase, strict=True)][
            :NUM_REFERENCES
        ]
        for name, rows in table.groupby("concept")
    }


def _as_set(context: AppContext, label: str, drawings: Sequence[Drawing]) -> ExampleSet:
    size = context.model.image_size
    images = [read_image(data, size, context.limits, name=name) for data, name, _ in drawings]
    return ExampleSet(label, images, [f"a drawing of {phrase} on a white background" for _, _, phrase in drawings])


def _groups_of_equal_prompt(context: AppContext) -> dict[str, list[Image.Image]]:
    """Return the example images by prompt, for each prompt that belongs to at least two images."""
    groups: dict[str, list[Image.Image]] = {}
    for example in context.examples:
        if example.prompt:
            groups.setdefault(example.prompt, []).append(example.image)
    return {prompt: images for prompt, images in groups.items() if len(images) > 1}


def _caption_counts(path: Path) -> dict[str, int]:
    """Return a dict that maps the name of a concept to its number of training captions.

    The dict is empty if the file ``path`` does not exist.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["name"]: int(row["captions"]) for row in csv.DictReader(file)}
