"""Sets of example images of one concept or of two concepts, which a visitor chooses with one click."""

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
"""Concept and index of the two drawings of each pair."""
RARE_CONCEPTS = ("volcano", "steaming bowl", "tram", "basketball", "shortcake", "water wave")
"""Rare concepts of the corpus with three references each, which were not part of the training data."""
NUM_REFERENCES = 3


@dataclass(frozen=True)
class ExampleSet:
    """Example images with a label and one prompt per image."""

    label: str
    images: list[Image.Image]
    prompts: list[str]


def example_pairs(context: AppContext) -> list[ExampleSet]:
    """Return pairs of example images for a path between their seeds.

    In a table of drawings, the pairs are ``PAIRS``. In a folder, a pair is the first two images with the same prompt.
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

    In a table of drawings, the sets are three drawings of each of ``RARE_CONCEPTS``. The label has the number of
    training captions if ``concepts.csv`` is in the same folder. In a folder, a set is the first three images with the
    same prompt.
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
"""Content of an image file, name of the concept, and the name with its article."""


def _drawings(context: AppContext) -> dict[str, list[Drawing]] | None:
    """Return up to three drawings of each concept of the sets; None if the examples are not a table of drawings."""
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
    """Return the example images by prompt, for prompts that two or more images have."""
    groups: dict[str, list[Image.Image]] = {}
    for example in context.examples:
        if example.prompt:
            groups.setdefault(example.prompt, []).append(example.image)
    return {prompt: images for prompt, images in groups.items() if len(images) > 1}


def _caption_counts(path: Path) -> dict[str, int]:
    """Return the number of training captions of each concept, or nothing if there is no such table."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["name"]: int(row["captions"]) for row in csv.DictReader(file)}
