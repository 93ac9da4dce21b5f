"""The tab Seeds: what lies between the seeds of images, and in their middle."""

from __future__ import annotations

from functools import partial

import gradio as gr
from PIL import Image

from experiments.app.context import Studio
from experiments.app.messages import in_words, line
from experiments.app.seeds import MOST, POINTS, Between, between, invert_several, norm_figure, one_each
from experiments.app.uploads import shown
from experiments.app.widgets import ALONE, QUIET, several_pictures


def seeds_tab(studio: Studio) -> None:
    """Lays the tab out."""
    found = gr.State(None)
    with gr.Row():
        with gr.Column():
            pictures, prompts = several_pictures(studio, "seeds", MOST)
            join = gr.Button("Join the seeds", variant="primary", elem_id="seeds-join")
            said = gr.HTML(elem_id="seeds-said")
        with gr.Column():
            place = gr.Slider(1, POINTS, 1, step=1, label="Place on the path", buttons=[], elem_id="seeds-place")
            picture = gr.Image(label="There", interactive=False, height=300, buttons=[], elem_id="seeds-picture")
            norms = gr.Plot(show_label=False, elem_id="seeds-norms")
            averages = gr.Gallery(
                label="Averages", columns=2, fit_columns=False, height="auto", buttons=[], interactive=False,
        allow_preview=False,
                object_fit="contain", elem_classes="examples", elem_id="seeds-averages",
            )  # fmt: skip
    joined = join.click(in_words(partial(_joined, studio)), [pictures, prompts], [found, said, averages], **ALONE)
    joined.success(_there, [found, place], [picture, norms], **QUIET)
    place.input(_there, [found, place], [picture, norms], trigger_mode="always_last", **QUIET)


def _joined(studio: Studio, pictures: list[Image.Image], text: str) -> tuple:
    if not text.strip():
        raise ValueError("the description is empty: say what the images show.")
    prompts = one_each(text, len(pictures))
    found = between(studio, invert_several(studio, pictures, prompts), prompts[0])
    said = f"The path is from the first image to the second, under: {prompts[0]}"
    return found, line(said), [(shown(p), f"{name}, norm {norm:.1f}") for name, norm, p in found.averages]


def _there(found: Between | None, place: int) -> tuple:
    if found is None:
        return gr.skip(), gr.skip()
    return shown(found.pictures[int(place) - 1]), norm_figure(found, int(place) - 1)
