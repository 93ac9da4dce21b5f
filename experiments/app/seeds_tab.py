"""The tab Seeds: interpolate between the seeds of two images, and average the seeds of several images."""

from __future__ import annotations

from functools import partial

import gradio as gr
from PIL import Image

from experiments.app.context import AppContext
from experiments.app.messages import catch_errors, status_html
from experiments.app.seeds import (
    MAX_IMAGES,
    NUM_POINTS,
    SeedPaths,
    broadcast_prompts,
    explore,
    invert_images,
    norm_figure,
)
from experiments.app.uploads import enlarge
from experiments.app.widgets import EXCLUSIVE, NO_PROGRESS, image_list_input


def seeds_tab(context: AppContext) -> None:
    """Create the components of the tab."""
    paths = gr.State(None)
    with gr.Row():
        with gr.Column():
            images, prompts = image_list_input(context, "seeds", MAX_IMAGES, prompt_per_image=True)
            interpolate = gr.Button("Interpolate", variant="primary", elem_id="seeds-interpolate")
            status = gr.HTML(elem_id="seeds-status")
        with gr.Column():
            point = gr.Slider(1, NUM_POINTS, 1, step=1, label="Point on the path", buttons=[], elem_id="seeds-point")
            image = gr.Image(
                label="Image at this point", interactive=False, height=300, buttons=[], elem_id="seeds-image"
            )
            norms = gr.Plot(show_label=False, elem_id="seeds-norms")
            averages = gr.Gallery(
                label="Averages of all seeds",
                columns=2,
                fit_columns=False,
                height="auto",
                buttons=[],
                interactive=False,
                allow_preview=False,
                object_fit="contain",
                elem_classes="examples",
                elem_id="seeds-averages",
            )
    computed = interpolate.click(
        catch_errors(partial(_compute, context)), [images, prompts], [paths, status, averages], **EXCLUSIVE
    )
    computed.success(_select_point, [paths, point], [image, norms], **NO_PROGRESS)
    point.input(_select_point, [paths, point], [image, norms], trigger_mode="always_last", **NO_PROGRESS)


def _compute(context: AppContext, images: list[Image.Image], text: str) -> tuple:
    if not text.strip():
        raise ValueError("the prompt is empty: describe the images.")
    prompts = broadcast_prompts(text, len(images))
    paths = explore(context, invert_images(context, images, prompts), prompts[0])
    status = f"Path from the first image to the second, with the prompt: {prompts[0]}"
    gallery = [(enlarge(image), f"{name}, norm {norm:.1f}") for name, norm, image in paths.averages]
    return paths, status_html(status), gallery


def _select_point(paths: SeedPaths | None, point: int) -> tuple:
    if paths is None:
        return gr.skip(), gr.skip()
    index = int(point) - 1
    return enlarge(paths.images[index]), norm_figure(paths, index)
