"""What several tabs lay out alike, and how their events share the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from experiments.app.context import Studio
from experiments.app.messages import in_words
from experiments.app.uploads import shown

ALONE = {"concurrency_id": "model", "concurrency_limit": 1}
"""Of every event that runs a network: one visitor at a time."""
QUIET = {"show_progress": "hidden"}
AGAIN = {"trigger_mode": "always_last", **ALONE, **QUIET}
"""Of events that come faster than they can be answered: the last one counts."""
PROGRESS = gr.Progress()
"""Gradio gives each call its own in its place."""


def upload_box(name: str, *, several: bool = False) -> gr.File:
    return gr.File(
        label="Upload images" if several else "Upload an image", file_types=["image"], height=130, elem_id=name,
        file_count="multiple" if several else "single",
    )  # fmt: skip


def example_gallery(studio: Studio, label: str = "Or begin with one of these") -> gr.Gallery:
    return gr.Gallery(
        [(example.image, None) for example in studio.examples], label=label, columns=6, object_fit="contain",
        allow_preview=False,
        height="auto", buttons=[], visible=bool(studio.examples), interactive=False, elem_classes="examples",
    )  # fmt: skip


def pick_example(examples: gr.Gallery, studio: Studio, outputs: list[Any]) -> None:
    """A click on an example gives its image, the same to be shown, and its description."""

    def picked(event: gr.SelectData) -> tuple[Image.Image, Image.Image, str]:
        example = studio.examples[event.index]
        return example.image, shown(example.image), example.prompt

    examples.select(in_words(picked), None, outputs, **QUIET)


def several_pictures(studio: Studio, name: str, most: int) -> tuple[gr.State, gr.Textbox]:
    """Boxes to gather up to ``most`` images and describe them; the images, and a line of text each."""
    pictures = gr.State([])
    source = upload_box(f"{name}-upload", several=True)
    examples = example_gallery(studio)
    chosen = gr.Gallery(
        label="Your images", fit_columns=False, columns=4, height="auto", buttons=[], interactive=False,
        allow_preview=False,
        object_fit="contain", elem_classes="examples", elem_id=f"{name}-chosen",
    )  # fmt: skip
    clear = gr.Button("Begin anew", size="sm", elem_id=f"{name}-clear")
    prompts = gr.Textbox(
        label="What they show", info="one line an image, or one for all", lines=2, elem_id=f"{name}-prompt"
    )

    def more(found: list[Image.Image], added: Sequence[Image.Image], text: str) -> tuple:
        if len(found) + len(added) > most:
            raise ValueError(f"{len(found) + len(added)} images: at most {most} are taken; begin anew.")
        together = [*found, *added]
        return together, [shown(picture) for picture in together], text

    def uploaded(found: list[Image.Image], paths: list[str], text: str) -> tuple:
        return more(found, [studio.read(path) for path in paths], text)

    def picked(found: list[Image.Image], text: str, event: gr.SelectData) -> tuple:
        example = studio.examples[event.index]
        return more(found, [example.image], f"{text.rstrip()}\n{example.prompt}".strip())

    outputs = [pictures, chosen, prompts]
    source.upload(in_words(uploaded), [pictures, source, prompts], outputs, **QUIET)
    examples.select(in_words(picked), [pictures, prompts], outputs, **QUIET)
    clear.click(lambda: ([], [], "", None), None, [*outputs, source], **QUIET)
    return pictures, prompts


def file_of(path: Path) -> dict[str, Any]:
    """What a button to download shows of a file that is there."""
    return gr.update(value=str(path), interactive=True)
