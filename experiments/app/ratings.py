"""Blind comparison of the images of a finished run: the questions to the raters, and the answers of the raters."""

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
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors import SafetensorError, safe_open

from experiments.app.uploads import uint8_to_pil
from experiments.cache.atomic import atomic_write, finished_files
from experiments.reporting.human_ratings import TIE

RESULT_TENSORS = ("edited", "reconstructions", "images")
"""Names of the tensors that can contain the result images in the file of a unit.

The file of a unit contains the results of one method for one concept or for one batch of images. Raters compare the
images of the first of these tensors that the file contains. If the compared tensor is not ``images``, then ``images``
contains the input images.
"""
MAX_SHOWN_REFERENCES = 3
"""Maximum number of reference images that are shown with a question."""
RATER_NAME = re.compile(r"[\w .@-]{1,60}")


@dataclass(frozen=True)
class ImageRef:
    """An image on disk: the entry with the index ``row`` of the tensor ``tensor`` in the safetensors file ``file``."""

    file: Path
    tensor: str
    row: int

    def read(self) -> Image.Image:
        """Read the image from disk."""
        with safe_open(self.file, framework="pt") as unit:
            return uint8_to_pil(unit.get_slice(self.tensor)[self.row])


@dataclass(frozen=True)
class Item:
    """The images of several methods for the same prompt and input.

    Attributes:
        name: name that identifies the item in the run.
        concept: name of the concept that the images show, in experiments on rare concepts.
        prompt: prompt of the images; may be empty.
        images: dict that maps the name of a method to its image.
        input: input image of the methods; None if the run did not save it.
    """

    name: str
    concept: str
    prompt: str
    images: dict[str, ImageRef]
    input: ImageRef | None


@dataclass(frozen=True)
class Question:
    """The images of several methods for one prompt (an item), which are shown to a rater.

    ``order`` contains the methods of the images from left to right.
    """

    item: Item
    order: tuple[str, ...]

    def images(self) -> list[Image.Image]:
        """Read the images of this question from disk and return them in the order from left to right."""
        return [self.item.images[method].read() for method in self.order]


def read_run(folder: str | Path) -> list[Item]:
    """Read the items of a finished run. An item consists of the images of several methods for one prompt and input.

    Items with an image of only one method are omitted.

    Raises:
        ValueError: ``folder`` is not the folder of a finished run, or no item has images of two methods.
    """
    folder = Path(folder)
    for name in ("results.json", "samples.parquet"):
        if not (folder / name).is_file():
            raise ValueError(
                f"run: {folder} is not a finished run ({name} is missing): set run to the run_dir of a finished run."
            )
    items: dict[str, Item] = {}
    for method, files in _unit_files(folder / "units").items():
        for file in files:
            for name, concept, prompt, image, input_image in _read_unit(file):
                item = items.setdefault(name, Item(name, concept, prompt, {}, input_image))
                item.images[method] = image
    comparable = [items[name] for name in sorted(items) if len(items[name].images) > 1]
    if not comparable:
        raise ValueError(
            f"run: {folder} has no prompt for which two methods have an image: set run to the run_dir of a run with at "
            "least two methods."
        )
    return comparable


def _unit_files(units: Path) -> dict[str, list[Path]]:
    """Return the files with the results of each method, by the name of the method.

    A method that was run with several settings has one entry per setting.
    """
    files = {}
    for method in sorted(path for path in units.glob("*") if path.is_dir()):
        folders = sorted(path for path in method.iterdir() if finished_files(path, "*.safetensors"))
        for folder in folders:
            name = method.name if len(folders) == 1 else f"{method.name} {folder.name[:6]}"
            files[name] = finished_files(folder, "*.safetensors")
    return files


def _read_unit(file: Path) -> list[tuple[str, str, str, ImageRef, ImageRef | None]]:
    """Read a file with results of one method. Result images with NaN or infinite pixels are omitted.

    Returns:
        One tuple for each result image: name of the item, concept, prompt, reference to the result image, and reference
        to the input image (None if the file does not contain input images).
    """
    try:
        with safe_open(file, framework="pt") as unit:
            metadata = unit.metadata() or {}
            names = list(unit.keys())
            tensor = next((name for name in RESULT_TENSORS if name in names), None)
            count = unit.get_slice(tensor).get_shape()[0] if tensor else 0
            mask = f"{tensor}_finite"
            finite = unit.get_tensor(mask).tolist() if mask in names else [True] * count
    except SafetensorError:
        return []  # the file is damaged or not complete
    if tensor is None:
        return []
    unit_name = metadata.get("unit", file.stem)
    concept, prompt, *_ = *unit_name.split("\n"), "", ""
    samples = [k for k, sample in enumerate(_sample_records(metadata)) if sample["finite"]] or list(range(count))
    key = hashlib.sha256(unit_name.encode()).hexdigest()[:12]
    has_inputs = tensor != "images" and "images" in names
    return [
        (
            f"{key}/{samples[k]}",
            concept,
            prompt,
            ImageRef(file, tensor, k),
            ImageRef(file, "images", k) if has_inputs else None,
        )
        for k in range(count)
        if finite[k]
    ]


def _sample_records(metadata: dict[str, str]) -> list[dict]:
    """Return the records of the samples (generated images) from the metadata of a file with results.

    If there are records, the file contains only the images of the samples whose record has ``finite`` True.
    """
    record = json.loads(metadata.get("record", "{}"))
    return record.get("samples", []) if isinstance(record, dict) else []


def methods_of(items: Sequence[Item], folder: str | Path) -> list[str]:
    """Return the names of all methods that have an image in ``items``, in the order of the run's results table."""
    names = {method for item in items for method in item.images}
    rows = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8")).get("rows", [])
    in_table = [str(row.get("method")) for row in rows]
    return sorted(names, key=lambda name: (in_table.index(name) if name in in_table else len(in_table), name))


def read_references(folder: str | Path, items: Sequence[Item]) -> dict[str, list[Image.Image]]:
    """Return a dict that maps each concept of ``items`` to its reference images.

    The reference images are read from the data source in the config of the run. If the experiment has no concepts, the
    result is empty.

    Raises:
        ValueError, OSError: the data do not exist or are invalid.
    """
    config = OmegaConf.load(Path(folder) / "config.yaml")
    source = OmegaConf.select(config, "task.source")
    if source is None or OmegaConf.select(config, "task.references") is None:
        return {}
    first = next(iter(items[0].images.values())).read()
    names = {item.concept for item in items}
    try:
        concepts = instantiate(source).concepts()
    except InstantiationException as error:
        raise ValueError(str(error.__cause__ or error)) from error
    selected = [concept.resized(first.size[::-1]) for concept in concepts if concept.name in names]
    return {
        concept.name: [
            uint8_to_pil(concept.references[k])
            for k in range(min(config.task.references, len(concept.references), MAX_SHOWN_REFERENCES))
        ]
        for concept in selected
    }


def build_questions(items: Sequence[Item], methods: Sequence[str], rater: str) -> list[Question]:
    """Return one question for each item that has an image of every method in ``methods``.

    The order of the questions and the positions of the methods are random; the name of the rater is the random seed.

    Raises:
        ValueError: there are fewer than two or more than three methods, the methods have no item in common, or the name
            of the rater is invalid.
    """
    if not 2 <= len(methods) <= 3:
        raise ValueError(f"methods: must be two or three methods, got {len(methods)}.")
    key = hashlib.sha256("\n".join([validate_rater(rater), *sorted(methods)]).encode()).digest()
    random = np.random.default_rng(list(key))
    common = [item for item in items if all(method in item.images for method in methods)]
    if not common:
        raise ValueError(
            f"methods: {', '.join(methods)} have no items in common (images for the same prompt and input); choose "
            "other methods."
        )
    orders = list(itertools.permutations(sorted(methods)))
    return [Question(common[k], orders[random.integers(len(orders))]) for k in random.permutation(len(common))]


def validate_rater(name: str) -> str:
    """Return the name of a rater without surrounding spaces; raise ValueError if a character is not allowed."""
    if not RATER_NAME.fullmatch(name.strip()) or not name.strip(" ."):
        raise ValueError("enter your name: up to 60 letters, digits, spaces, dots, dashes or @.")
    return name.strip()


@dataclass(frozen=True)
class Ratings:
    """The file with the answers of one rater for one run. Every answer is written to disk immediately.

    Args:
        folder: folder that contains the files of all raters.
        run: folder of the run.
        rater: name of the rater.
    """

    folder: Path
    run: str
    rater: str

    @property
    def path(self) -> Path:
        """Path of the file with the answers of the rater."""
        run = hashlib.sha256(str(Path(self.run).resolve()).encode()).hexdigest()[:8]
        return self.folder / f"{validate_rater(self.rater)}-{run}.parquet"

    def table(self) -> pd.DataFrame:
        """Return a table with one row per answer of the rater."""
        if not self.path.is_file():
            return pd.DataFrame({"rater": [], "item": [], "shown": [], "choice": [], "run": [], "time": []})
        return pd.read_parquet(self.path)

    def unanswered(self, questions: Sequence[Question]) -> list[Question]:
        """Return the questions that the rater has not answered."""
        done = {(row.item, tuple(sorted(row.shown))) for row in self.table().itertuples()}
        return [question for question in questions if (question.item.name, tuple(sorted(question.order))) not in done]

    def add(self, question: Question, answer: int) -> None:
        """Write the answer to a question to disk.

        The answer is the position of the better image, counted from 1 at the left, or 0 for a tie.

        Raises:
            ValueError: ``answer`` is neither the position of an image nor 0.
        """
        if not 0 <= answer <= len(question.order):
            raise ValueError(f"answer: must be 1 to {len(question.order)}, or 0 for a tie, got {answer}.")
        choice = TIE if answer == 0 else question.order[answer - 1]
        row = {
            "rater": self.rater.strip(),
            "item": question.item.name,
            "shown": list(question.order),
            "choice": choice,
            "run": self.run,
            "time": time.time(),
        }
        table = pd.DataFrame([*self.table().to_dict("records"), row])
        atomic_write(self.path, table.to_parquet)

    def remove_last(self) -> None:
        """Remove the last answer of the rater from disk.

        Raises:
            ValueError: the rater has not answered a question.
        """
        table = self.table()
        if table.empty:
            raise ValueError("there is no answer to undo: answer a question first.")
        remaining = table.iloc[:-1]
        if remaining.empty:
            self.path.unlink()
        else:
            atomic_write(self.path, remaining.to_parquet)
