"""Creates an editing benchmark in PIE-Bench's format from the emoji corpus, with ground-truth edited images.

Usage: ``python -m experiments.editing.make_benchmark FOLDER``. Every call of the command writes the same files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from experiments.config.project import project_path
from experiments.data.backgrounds import AUGMENTATIONS, BACKGROUNDS, Augmentation, composite
from experiments.data.concepts import EmojiConcepts
from experiments.data.emoji import EmojiImages, check_corpus
from experiments.editing.benchmark import IMAGES, KINDS, MAPPING, SIDE, encode_mask

PROMPT = "a drawing of {phrase} in {style} style on a {background} background"
COUNTS = {"concept": 120, "background": 100, "style": 100, "added": 50, "removed": 50}
MASK_MARGIN = 3  # pixels by which a mask is widened, because resizing blurs the edges of a drawing
MIN_BACKGROUND = 0.05  # minimum fraction of the image that must be outside the mask
HEAD = 1000
TAIL = 42
"""A concept is frequent (head) above ``HEAD`` captions and rare (tail) below ``TAIL`` captions.

Keep the two numbers equal to ``head`` and ``tail`` in configs/data/emoji.yaml.
"""

SOURCE_SPLITS = ("reference", "fid")  # splits of the corpus on which the text-to-image model was not trained


@dataclass(frozen=True)
class EditImage:
    """The source or target image of an edit, which is a drawing on a background.

    ``row`` is the table row of the drawing in the corpus.
    """

    row: dict
    augmentation: Augmentation

    def prompt(self, marked: str = "") -> str:
        """Return the prompt of the image.

        ``marked`` (phrase, style or background) names the part of the prompt that is put in square brackets.
        """
        words = {"phrase": self.row["phrase"], "style": self.row["style"], "background": self.augmentation.background}
        return PROMPT.format(**words | ({marked: f"[{words[marked]}]"} if marked else {}))


@dataclass(frozen=True)
class PlannedEdit:
    """An edit that changes the image ``source`` to the image ``target``.

    Attributes:
        name: kind of the edit, a key of ``COUNTS``.
        changed: name of the part of the prompt that the edit changes: phrase, style or background.
        source, target: the images before and after the edit.
    """

    name: str
    changed: str
    source: EditImage
    target: EditImage

    @property
    def kind(self) -> int:
        kinds = {"concept": "change object", "background": "change background", "style": "change style"}
        return KINDS.index(kinds.get(self.name, "change attribute content"))

    @property
    def words(self) -> tuple[str, str]:
        if self.changed == "background":
            return self.source.augmentation.background, self.target.augmentation.background
        return self.source.row[self.changed], self.target.row[self.changed]


def plan(drawings: EmojiImages, concepts: Sequence[str], seed: int = 0) -> Iterator[PlannedEdit]:
    """Yield random edits of images that show one of ``concepts``. ``COUNTS`` contains the number of edits of each kind.

    Raises:
        ValueError: the corpus has too few drawings.
    """
    rng = np.random.default_rng(seed)
    rows = [row for row in drawings.rows if row["concept"] in set(concepts)]
    sources = [row for row in rows if row["split"] in SOURCE_SPLITS]
    for name, count in COUNTS.items():
        planned = 0
        for k in rng.permutation(len(sources)):
            if planned == count:
                break
            augmentation = Augmentation.from_seed(int(rng.integers(AUGMENTATIONS)))
            edit = _plan_edit(name, EditImage(sources[k], augmentation), rows, rng)
            if edit is not None and (~mask_of(drawings, edit)).mean() >= MIN_BACKGROUND:
                planned += 1
                yield edit
        if planned < count:
            raise ValueError(
                f"the corpus has drawings for only {planned} of {count} edits of kind {name!r}: use a larger corpus."
            )


def _plan_edit(name: str, source: EditImage, rows: Sequence[dict], rng: np.random.Generator) -> PlannedEdit | None:
    """Return a random edit of kind ``name`` that changes ``source``.

    The result is None if no drawing in ``rows`` can be the target of such an edit.
    """
    row = source.row
    if name == "background":
        others = [color for color in BACKGROUNDS if color != source.augmentation.background]
        color = others[rng.integers(len(others))]
        return PlannedEdit(name, name, source, EditImage(row, replace(source.augmentation, background=color)))
    if name == "concept":
        others = [r for r in rows if r["style"] == row["style"] and r["concept"] != row["concept"]]
    else:
        others = [
            r for r in rows if r["concept"] == row["concept"] and _has_target_style(name, row["style"], r["style"])
        ]
    if not others:
        return None
    target = EditImage(others[rng.integers(len(others))], source.augmentation)
    return PlannedEdit(name, "phrase" if name == "concept" else "style", source, target)


def _has_target_style(name: str, style: str, other: str) -> bool:
    """Return whether an edit of the kind ``name`` may change an image of the style ``style`` to the style ``other``.

    For an edit of the kind ``style``, ``other`` must be the style of another designer. For an edit of the kind
    ``added`` or ``removed``, ``other`` must be ``style`` with one first word added or removed, such as "flat fluent"
    for "fluent".
    """
    added = other.endswith(f" {style}")
    removed = style.endswith(f" {other}")
    return {"style": style != other and not added and not removed, "added": added, "removed": removed}[name]


def mask_of(drawings: EmojiImages, edit: PlannedEdit) -> np.ndarray:
    """Return a mask ``bool [H,W]`` that is True where the source image and the target image of an edit may differ.

    The mask is computed from the alpha channels of the drawings.
    """
    source, target = (_alpha(drawings.images[e.row["image_id"]], e.augmentation) for e in (edit.source, edit.target))
    mask = source < 255 if edit.changed == "background" else (source > 0) | (target > 0)
    widened = Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * MASK_MARGIN + 1))
    return np.asarray(widened) > 0


def _alpha(drawing: Image.Image, augmentation: Augmentation) -> np.ndarray:
    """Return the alpha channel ``uint8 [H,W]`` of a drawing that is placed in an image.

    The drawing has the same size, position and mirroring as in :func:`experiments.data.backgrounds.composite`.
    """
    alpha = drawing.getchannel("A")
    if augmentation.mirrored:
        alpha = alpha.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    inner = round(drawing.width * augmentation.scale)
    placed = Image.new("L", drawing.size, 0)
    corner = (round(drawing.width * augmentation.left), round(drawing.width * augmentation.top))
    placed.paste(alpha.resize((inner, inner), Image.Resampling.NEAREST), corner)
    return np.asarray(placed)


def write(folder: Path, corpus: str | Path) -> int:
    """Write the benchmark to ``folder``; return the number of edits.

    Raises:
        ValueError: ``folder`` is not empty, or ``corpus`` is incomplete.
    """
    check_corpus(corpus)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose a new or empty folder.")
    drawings = EmojiImages(corpus, ["corpus", *SOURCE_SPLITS])
    if SIDE % drawings.size[0]:
        raise ValueError(
            f"the side of the drawings must divide {SIDE} pixels, got {drawings.size[0]}; use another corpus."
        )
    concepts = EmojiConcepts(str(corpus), "a drawing of {phrase}", "white", head=HEAD, tail=TAIL).concepts()
    (folder / IMAGES).mkdir(parents=True)
    mapping = {}
    for k, edit in enumerate(plan(drawings, [concept.name for concept in concepts if concept.bucket == "head"])):
        mapping[f"{k:012d}"] = _write_edit(folder, f"{k:012d}", edit, drawings)
    (folder / MAPPING).write_text(json.dumps(mapping, indent=1) + "\n")
    return len(mapping)


def _write_edit(folder: Path, key: str, edit: PlannedEdit, drawings: EmojiImages) -> dict:
    """Write the source image and the target image of an edit; return the entry of the edit in the mapping file."""
    for edit_image, name in ((edit.source, f"{edit.name}/{key}.png"), (edit.target, f"{edit.name}/{key}_target.png")):
        path = folder / IMAGES / name
        path.parent.mkdir(exist_ok=True)
        image = composite(drawings.images[edit_image.row["image_id"]], edit_image.augmentation)
        image.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(path)
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
    parser.add_argument("folder", type=Path, help="output folder, new or empty")
    parser.add_argument("--corpus", default=project_path("assets/emoji"), help="folder of the built corpus of drawings")
    options = parser.parse_args()
    try:
        count = write(options.folder, options.corpus)
    except ValueError as error:
        parser.error(str(error))
    print(f"{count} edits in {options.folder}")


if __name__ == "__main__":
    main()
