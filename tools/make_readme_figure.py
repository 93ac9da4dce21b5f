"""Create the first figure of the README: drawings, their seeds, reconstructions and edits.

The command is ``python -m tools.make_readme_figure``. The command also writes the drawing ``docs/figures/fox.png``,
which the README and the guides invert. The emoji model that ships with the repository was not trained on these
drawings.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import rnri
from experiments.config.project import PROJECT
from experiments.data.backgrounds import composite, no_augmentation
from experiments.data.emoji import EmojiImages
from experiments.reporting import figures
from rnri.editing import edit

PROMPT = "a drawing of {} on a white background"
EXAMPLE = "fox.png"


@dataclass(frozen=True)
class Row:
    """A drawing in the figure, and the edits of the drawing.

    Attributes:
        concept: concept of the drawing in the corpus.
        phrase: words for the concept in the prompt.
        edits: one pair per edit: a part of the prompt, and the words that replace this part.
    """

    concept: str
    phrase: str
    edits: tuple[tuple[str, str], ...]

    @property
    def prompt(self) -> str:
        return PROMPT.format(self.phrase)


ROWS = (
    Row("fox", "a fox", (("white", "pink"), ("white", "yellow"), ("a fox", "a deer"))),
    Row("hot beverage", "a hot beverage", (("white", "pink"), ("white", "yellow"), ("a hot beverage", "a cactus"))),
)
DESIGNER = "noto"  # the drawings by this designer have the license Apache-2.0


def read_drawing(concept: str) -> Image.Image:
    """Return the reference drawing of ``concept`` by ``DESIGNER`` on a white background."""
    drawings = EmojiImages(PROJECT / "assets" / "emoji", ["reference"])
    rows = [row for row in drawings.rows if (row["concept"], row["designer"]) == (concept, DESIGNER)]
    return composite(drawings.images[rows[0]["image_id"]], no_augmentation())


def seed_image(latents: torch.Tensor) -> Image.Image:
    """Return the first three channels of a seed ``[1,C,h,w]`` as an RGB image. Values are clamped to [-3, 3]."""
    values = (latents[0, :3].float() / 6 + 0.5).clamp(0, 1)
    return Image.fromarray((values * 255).round().byte().permute(1, 2, 0).numpy())


def make_row(pipe: DiffusionPipeline, row: Row, steps: int) -> list[tuple[str, Image.Image]]:
    """Invert and edit the drawing of ``row``; return the images of the figure with their titles."""
    drawing = read_drawing(row.concept)
    images = [("drawing", drawing)]
    for method, name in (("ddim", "DDIM inversion"), ("accelerated", "this project")):
        inversion = rnri.invert(pipe, drawing, row.prompt, num_inference_steps=steps, method=method)
        if method == "accelerated":
            images.append(("seed", seed_image(inversion.latents)))
        title = f"{name}\n{float(inversion.psnr):.1f} of {float(inversion.vae_psnr):.1f} dB"
        images.append((title, inversion.reconstruct(pipe)[0]))
    edited = edit(pipe, inversion, [row.prompt.replace(old, new) for old, new in row.edits]).images
    names = [new if old in row.phrase else f"{new} background" for old, new in row.edits]
    return [*images, *zip([f"edit:\n{name}" for name in names], edited, strict=True)]


def draw(rows: list[list[tuple[str, Image.Image]]], path: Path) -> None:
    """Draw a figure with rows of images and their titles, and write the figure to ``path``."""
    figure, axes = figures.plt.subplots(len(rows), len(rows[0]), figsize=(1.45 * len(rows[0]), 1.8 * len(rows)))
    for line, row in zip(axes, rows, strict=True):
        for axis, (title, image) in zip(line, row, strict=True):
            axis.imshow(np.asarray(image), interpolation="nearest" if title == "seed" else "lanczos")
            axis.set_title(title, fontsize=8)
            axis.axis("off")
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=figures.DPI)
    figures.plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.make_readme_figure", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=PROJECT / "docs" / "figures", help="folder of the written files")
    parser.add_argument("--steps", type=int, default=20, help="number of sampling steps")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    read_drawing(ROWS[0].concept).save(options.folder / EXAMPLE)
    pipe = DiffusionPipeline.from_pretrained(PROJECT / "assets" / "models" / "emoji")
    pipe.set_progress_bar_config(disable=True)
    draw([make_row(pipe, row, options.steps) for row in ROWS], options.folder / "inversion_and_edits.png")


if __name__ == "__main__":
    main()
