"""The tab Seeds: interpolate between the seeds of two images, and average the seeds of several images."""

from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path

import gradio as gr
from PIL import Image

from experiments.app.context import AppContext
from experiments.app.example_sets import example_pairs
from experiments.app.figure_grid import CaptionedImage, grid_html, strip_html
from experiments.app.messages import catch_errors, status_html
from experiments.app.seeds import (
    MAX_IMAGES,
    NUM_POINTS,
    SeedPaths,
    broadcast_prompts,
    explore,
    invert_images,
    norm_figure,
    write_gif,
    write_mp4,
)
from experiments.app.uploads import enlarge
from experiments.app.widgets import EXCLUSIVE, NO_PROGRESS, connect_set, enable_download, image_list_input

INTRODUCTION = """
1. Choose a pair of example images, or add two to eight images and their prompts.
2. Press *Show the path*. The page inverts the images to seeds. Then the page generates images from points on the path
   between the first two seeds, and from averages of all seeds.
"""
DETAIL = "The detail of an image is the mean absolute difference between neighboring pixels."
SCROLL_TO_RESULTS_JS = """() => {
  if (window.innerWidth < 768) document.getElementById("seeds-results").scrollIntoView({behavior: "smooth"});
}"""


def seeds_tab(context: AppContext, folder: Path) -> None:
    """Create the components of the tab Seeds. Animations for download are written to ``folder``."""
    paths = gr.State(None)
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        with gr.Column():
            pairs = example_pairs(context)
            with gr.Row(elem_classes="set-buttons"):
                buttons = [gr.Button(pair.label, size="sm", min_width=120, elem_classes="seeds-pair") for pair in pairs]
            images, prompts, selected = image_list_input(
                context, "seeds", MAX_IMAGES, prompt_per_image=True, initial=pairs[0] if pairs else None
            )
            for button, pair in zip(buttons, pairs, strict=True):
                connect_set(button, pair.images, "\n".join(pair.prompts), [images, selected, prompts])
            interpolate = gr.Button("Show the path", variant="primary", elem_id="seeds-interpolate")
            status = gr.HTML(elem_id="seeds-status")
        with gr.Column(), gr.Column(visible=False, elem_id="seeds-results") as results:
            gr.Markdown("### Path from image 1 to image 2")
            strip = gr.HTML(elem_id="seeds-strip")
            point = gr.Slider(1, NUM_POINTS, 1, step=1, label="Point on the path", buttons=[], elem_id="seeds-point")
            image = gr.Image(
                label="Image at this point", interactive=False, height=260, buttons=[], elem_id="seeds-image"
            )
            with gr.Row():
                gif = gr.DownloadButton("Download the path as GIF", interactive=False, size="sm", elem_id="seeds-gif")
                mp4 = gr.DownloadButton("Download the path as MP4", interactive=False, size="sm", elem_id="seeds-mp4")
            gr.Markdown("### Averages of all seeds")
            averages = gr.HTML(elem_id="seeds-averages")
            gr.Markdown(DETAIL)
            norms = gr.Plot(show_label=False, elem_id="seeds-norms")
    selected.change(lambda: (gr.update(visible=False), ""), None, [results, status], **NO_PROGRESS)
    computed = interpolate.click(
        catch_errors(partial(_compute, context, folder)),
        [images, prompts],
        [paths, status, results, strip, averages, gif, mp4, point],
        **EXCLUSIVE,
    )
    shown = computed.success(_select_point, [paths, point], [image, norms], **NO_PROGRESS)
    shown.then(None, None, None, js=SCROLL_TO_RESULTS_JS)
    point.input(_select_point, [paths, point], [image, norms], trigger_mode="always_last", **NO_PROGRESS)


def _compute(context: AppContext, folder: Path, images: list[Image.Image], text: str) -> tuple:
    if not text.strip():
        raise ValueError("the prompt is empty: describe the images.")
    prompts = broadcast_prompts(text, len(images))
    paths = explore(context, invert_images(context, images, prompts), prompts)
    strip = strip_html([CaptionedImage(image, str(k)) for k, image in enumerate(paths.images, 1)])
    averages = grid_html([CaptionedImage(each.image, each.name, each.description) for each in paths.averages], 3)
    path = folder / f"path-{secrets.token_hex(8)}"
    gif = enable_download(write_gif(paths.images, path.with_suffix(".gif")))
    mp4 = enable_download(write_mp4(paths.images, path.with_suffix(".mp4")))
    status = status_html(f"{_describe_prompts(prompts)} {paths.summary}")
    return paths, status, gr.update(visible=True), strip, averages, gif, mp4, 1


def _describe_prompts(prompts: list[str]) -> str:
    """Return a sentence that states with which prompts the images of the path and of the averages are generated."""
    if len(set(prompts)) == 1:
        return f"All images are generated with the prompt: {prompts[0]}."
    if prompts[0] == prompts[1]:
        return "The path uses the prompt of image 1; the averages use the mean of the text embeddings of all prompts."
    return (
        "The prompts of image 1 and image 2 differ, so that the text embeddings are interpolated linearly along the "
        "path. The averages use the mean of the text embeddings of all prompts."
    )


def _select_point(paths: SeedPaths | None, point: int) -> tuple:
    if paths is None:
        return gr.skip(), gr.skip()
    index = int(point) - 1
    return enlarge(paths.images[index]), norm_figure(paths, index)
