"""Writes a benchmark of edits of known truth in PIE-Bench's format, from the embedded corpus.

``python -m experiments.editing.make_benchmark FOLDER``: the same files at every run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from experiments.config.project import embedded
from experiments.data.backgrounds import AUGMENTATIONS, BACKGROUNDS, Augmentation, composite
from experiments.data.concepts import EmojiConcepts
from experiments.data.emoji import EmojiImages, check_corpus
from experiments.editing.benchmark import IMAGES, KINDS, MAPPING, SIDE, encode_mask

PROMPT = "a drawing of {phrase} in {style} style on a {background} background"
COUNTS = {"concept": 120, "background": 100, "style": 100, "added": 50, "removed": 50}
REACH = 3  # pixels that resizing a drawing reaches beyond it
LEAST_KEPT = 0.05  # of the pixels
HEAD, TAIL = 1000, 42  # captions, as configs/data/emoji.yaml has them
SOURCES = ("reference", "fid")  # drawings that the model has not seen


@dataclass(frozen=True)
class Side:
    """One side of an edit: a drawing as a picture, and what its prompt says."""

    row: dict
    augmentation: Augmentation

    def prompt(self, marked: str = "") -> str:
        """With ``marked``, which of phrase, style and background stands in brackets."""
        words = {"phrase": self.row["phrase"], "style": self.row["style"], "background": self.augmentation.background}
        return PROMPT.format(**words | ({marked: f"[{words[marked]}]"} if marked else {}))


@dataclass(frozen=True)
class Planned:
    """An edit from one side to the other; ``changed`` is the part of the prompt that differs."""

    name: str
    changed: str
    source: Side
    target: Side

    @property
    def kind(self) -> int:
        of_name = {"concept": "change object", "background": "change background", "style": "change style"}
        return KINDS.index(of_name.get(self.name, "change attribute content"))

    @property
    def words(self) -> tuple[str, str]:
        if self.changed == "background":
            return self.source.augmentation.background, self.target.augmentation.background
        return self.source.row[self.changed], self.target.row[self.changed]


def plan(drawings: EmojiImages, concepts: Sequence[str], seed: int = 0) -> Iterator[Planned]:
    """As many edits of each kind as ``COUNTS`` says, drawn among the drawings of ``concepts``.

    Raises:
        ValueError: the corpus has too few drawings for them.
    """
    rng = np.random.default_rng(seed)
    rows = [row for row in drawings.rows if row["concept"] in set(concepts)]
    sources = [row for row in rows if row["split"] in SOURCES]
    for name, count in COUNTS.items():
        made = 0
        for k in rng.permutation(len(sources)):
            if made == count:
                break
            augmentation = Augmentation.from_seed(int(rng.integers(AUGMENTATIONS)))
            edit = _planned(name, Side(sources[k], augmentation), rows, rng)
            if edit is not None and (~mask_of(drawings, edit)).mean() >= LEAST_KEPT:
                made += 1
                yield edit
        if made < count:
            raise ValueError(f"the corpus has drawings for {made} of {count} edits of kind {name!r}: give another.")


def _planned(name: str, source: Side, rows: Sequence[dict], rng: np.random.Generator) -> Planned | None:
    """An edit of ``source``, or None where the corpus has no drawing that shows it."""
    row = source.row
    if name == "background":
        others = [color for color in BACKGROUNDS if color != source.augmentation.background]
        color = others[rng.integers(len(others))]
        return Planned(name, name, source, Side(row, replace(source.augmentation, background=color)))
    if name == "concept":
        others = [r for r in rows if r["style"] == row["style"] and r["concept"] != row["concept"]]
    else:
        others = [r for r in rows if r["concept"] == row["concept"] and _restyled(name, row["style"], r["style"])]
    if not others:
        return None
    target = Side(others[rng.integers(len(others))], source.augmentation)
    return Planned(name, "phrase" if name == "concept" else "style", source, target)


def _restyled(name: str, style: str, other: str) -> bool:
    """Whether ``other`` is another designer's, or this one's with one word more (``added``) or less (``removed``)."""
    added, removed = other.endswith(f" {style}"), style.endswith(f" {other}")
    return {"style": style != other and not added and not removed, "added": added, "removed": removed}[name]


def mask_of(drawings: EmojiImages, edit: Planned) -> np.ndarray:
    """Where the pictures of an edit may differ, bool ``[H,W]``, by the drawings' alpha."""
    alphas = [_alpha(drawings.images[side.row["image_id"]], side.augmentation) for side in (edit.source, edit.target)]
    mask = alphas[0] < 255 if edit.changed == "background" else (alphas[0] > 0) | (alphas[1] > 0)
    widened = Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * REACH + 1))
    return np.asarray(widened) > 0


def _alpha(drawing: Image.Image, augmentation: Augmentation) -> np.ndarray:
    """A drawing's alpha where :func:`experiments.data.backgrounds.place` puts it, uint8 ``[H,W]``."""
    alpha = drawing.getchannel("A")
    if augmentation.mirrored:
        alpha = alpha.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    inner = round(drawing.width * augmentation.scale)
    placed = Image.new("L", drawing.size, 0)
    corner = (round(drawing.width * augmentation.left), round(drawing.width * augmentation.top))
    placed.paste(alpha.resize((inner, inner), Image.Resampling.NEAREST), corner)
    return np.asarray(placed)


def write(folder: Path, corpus: str | Path) -> int:
    """Writes the benchmark into ``folder`` and returns how many edits it has.

    Raises:
        ValueError: ``folder`` holds files already, or ``corpus`` is no whole corpus.
    """
    check_corpus(corpus)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a new folder.")
    drawings = EmojiImages(corpus, ["corpus", *SOURCES])
    if SIDE % drawings.size[0]:
        raise ValueError(f"drawings of {drawings.size[0]} pixels do not divide {SIDE}: build the corpus anew.")
    known = EmojiConcepts(str(corpus), "a drawing of {phrase}", "white", head=HEAD, tail=TAIL).concepts()
    (folder / IMAGES).mkdir(parents=True)
    mapping = {}
    for k, edit in enumerate(plan(drawings, [concept.name for concept in known if concept.bucket == "head"])):
        mapping[f"{k:012d}"] = _written(folder, f"{k:012d}", edit, drawings)
    (folder / MAPPING).write_text(json.dumps(mapping, indent=1) + "\n")
    return len(mapping)


def _written(folder: Path, key: str, edit: Planned, drawings: EmojiImages) -> dict:
    """The mapping's entry of an edit, whose pictures are written."""
    for side, name in ((edit.source, f"{edit.name}/{key}.png"), (edit.target, f"{edit.name}/{key}_target.png")):
        path = folder / IMAGES / name
        path.parent.mkdir(exist_ok=True)
        picture = composite(drawings.images[side.row["image_id"]], side.augmentation)
        picture.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(path)
    scale = SIDE // drawings.size[0]
    before, after = edit.words
    return {
        "image_path": f"{edit.name}/{key}.png",
        "original_prompt": edit.source.prompt(),
        "editing_prompt": edit.target.prompt(edit.changed),
        "editing_instruction": f"Change {before} to {after}",
        "editing_type_id": str(edit.kind),
        "blended_word": f"{before.split()[-1]} {after.split()[-1]}",
        "mask": encode_mask(mask_of(drawings, edit).repeat(scale, 0).repeat(scale, 1)),
        "target_image_path": f"{edit.name}/{key}_target.png",
        "target_concept": edit.target.row["concept"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.editing.make_benchmark", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write it; new, or empty")
    parser.add_argument("--corpus", default=embedded("assets/emoji"), help="the built corpus of drawings")
    options = parser.parse_args()
    try:
        count = write(options.folder, options.corpus)
    except ValueError as error:
        parser.error(str(error))
    print(f"{count} edits in {options.folder}")


if __name__ == "__main__":
    main()
