"""A blind comparison of what a finished run made: which images, in which order, and what a rater said of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from safetensors import SafetensorError, safe_open

from experiments.app.uploads import from_bytes
from experiments.cache.atomic import atomic_write
from experiments.reporting.human_ratings import TIE

MADE = ("edited", "reconstructions", "images")
"""Tensors of a unit with what a method made, the first that is there; beside another, ``images`` are the inputs."""
RATER = re.compile(r"[\w .@-]{1,60}")


@dataclass(frozen=True)
class Place:
    """An image on disk: a row of a tensor of a unit's file."""

    file: Path
    tensor: str
    row: int

    def read(self) -> Image.Image:
        with safe_open(self.file, framework="pt") as unit:
            return from_bytes(unit.get_slice(self.tensor)[self.row])


@dataclass(frozen=True)
class Item:
    """What several methods made of the same: ``made`` by method, and what they were given, where a run kept it."""

    name: str
    prompt: str
    made: dict[str, Place]
    given: Place | None


@dataclass(frozen=True)
class Question:
    """An item as a rater sees it: ``order`` are the methods from left to right."""

    item: Item
    order: tuple[str, ...]

    def pictures(self) -> list[Image.Image]:
        return [self.item.made[method].read() for method in self.order]


def read_run(folder: str | Path) -> list[Item]:
    """The items of a finished run that at least two methods have made.

    Raises:
        ValueError: one sentence for a folder that is no finished run, or whose units hold no images to compare.
    """
    folder = Path(folder)
    for name in ("results.json", "samples.parquet"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no finished run ({name} is missing): give the run_dir of one.")
    items: dict[str, Item] = {}
    for method, files in _ways(folder / "units").items():
        for file in files:
            for name, prompt, place, given in _images(file):
                item = items.setdefault(name, Item(name, prompt, {}, given))
                item.made[method] = place
    found = [items[name] for name in sorted(items) if len(items[name].made) > 1]
    if not found:
        raise ValueError(f"{folder} holds no image that two methods have made: give a run of several arms or methods.")
    return found


def _ways(units: Path) -> dict[str, list[Path]]:
    """Files of units by method, and by its settings where a method has several."""
    found = {}
    for method in sorted(path for path in units.glob("*") if path.is_dir()):
        settings = sorted(path for path in method.iterdir() if any(path.glob("*.safetensors")))
        for setting in settings:
            name = method.name if len(settings) == 1 else f"{method.name} {setting.name[:6]}"
            found[name] = sorted(setting.glob("*.safetensors"))
    return found


def _images(file: Path) -> list[tuple[str, str, Place, Place | None]]:
    """Name, prompt, place and what was given, of every image of a unit."""
    try:
        with safe_open(file, framework="pt") as unit:
            said, held = unit.metadata() or {}, list(unit.keys())
            tensor = next((name for name in MADE if name in held), None)
            rows = unit.get_slice(tensor).get_shape()[0] if tensor else 0
            finite = unit.get_tensor(f"{tensor}_finite").tolist() if f"{tensor}_finite" in held else [True] * rows
    except SafetensorError:
        return []  # a run that is being written anew
    if tensor is None:
        return []
    _, prompt, *_ = *said.get("unit", file.stem).split("\n"), "", ""
    samples = [k for k, sample in enumerate(_samples(said)) if sample["finite"]] or list(range(rows))
    key = hashlib.sha256(said.get("unit", file.stem).encode()).hexdigest()[:12]
    given = "images" if tensor != "images" and "images" in held else None
    return [
        (f"{key}/{samples[k]}", prompt, Place(file, tensor, k), Place(file, given, k) if given else None)
        for k in range(rows)
        if finite[k]
    ]


def _samples(said: dict[str, str]) -> list[dict]:
    """A record of each sample, of units that leave out the image of one that is not finite."""
    record = json.loads(said.get("record", "{}"))
    return record.get("samples", []) if isinstance(record, dict) else []


def methods_of(items: Sequence[Item]) -> list[str]:
    return sorted({method for item in items for method in item.made})


def questions(items: Sequence[Item], methods: Sequence[str], rater: str) -> list[Question]:
    """All items that ``methods`` have made, in an order and with sides that are random, and each rater's own.

    Raises:
        ValueError: one sentence for fewer than two or more than three methods, or a name that no file can have.
    """
    if not 2 <= len(methods) <= 3:
        raise ValueError(f"{len(methods)} methods are chosen: compare two or three.")
    key = hashlib.sha256("\n".join([checked_rater(rater), *sorted(methods)]).encode()).digest()
    random = np.random.default_rng(list(key))
    common = [item for item in items if all(method in item.made for method in methods)]
    if not common:
        raise ValueError(f"{', '.join(methods)} have made nothing in common: choose others.")
    orders = list(itertools.permutations(sorted(methods)))
    return [Question(common[k], orders[random.integers(len(orders))]) for k in random.permutation(len(common))]


def checked_rater(name: str) -> str:
    """ValueError where a rater's name is empty or no file's."""
    if not RATER.fullmatch(name.strip()) or not name.strip(" ."):
        raise ValueError("give your name: up to 60 letters, digits, spaces, dots, dashes or @.")
    return name.strip()


@dataclass(frozen=True)
class Ratings:
    """A rater's file; each answer is on disk before the next question.

    Args:
        folder: of all raters' files.
        run: the run's folder, as its ratings name it.
    """

    folder: Path
    run: str
    rater: str

    @property
    def path(self) -> Path:
        run = hashlib.sha256(str(Path(self.run).resolve()).encode()).hexdigest()[:8]
        return self.folder / f"{checked_rater(self.rater)}-{run}.parquet"

    def table(self) -> pd.DataFrame:
        if not self.path.is_file():
            return pd.DataFrame({"rater": [], "item": [], "shown": [], "choice": [], "run": [], "time": []})
        return pd.read_parquet(self.path)

    def open(self, asked: Sequence[Question]) -> list[Question]:
        """Those of ``asked`` that have no answer yet."""
        done = {(row.item, tuple(sorted(row.shown))) for row in self.table().itertuples()}
        return [question for question in asked if (question.item.name, tuple(sorted(question.order))) not in done]

    def add(self, question: Question, answer: int) -> None:
        """Keeps an answer: 1, 2 or 3 from the left, or 0 for a tie.

        Raises:
            ValueError: another number.
        """
        if not 0 <= answer <= len(question.order):
            raise ValueError(f"{answer} is no answer: choose 1 to {len(question.order)}, or 0 for a tie.")
        choice = TIE if answer == 0 else question.order[answer - 1]
        row = {
            "rater": self.rater.strip(), "item": question.item.name, "shown": list(question.order), "choice": choice,
            "run": self.run, "time": time.time(),
        }  # fmt: skip
        table = pd.DataFrame([*self.table().to_dict("records"), row])
        atomic_write(self.path, table.to_parquet)
