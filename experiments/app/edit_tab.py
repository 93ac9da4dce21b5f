"""The tab Edit: invert an image once, then edit the image by changing its prompt."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from experiments.app.context import AppContext
from experiments.app.edits import Seed, edit_config, edit_controls, edit_image, invert_image
from experiments.app.messages import catch_errors, error_message, status_html
from experiments.app.seed_files import read_seed, write_seed
from experiments.app.uploads import enlarge
from experiments.app.widgets import (
    EXCLUSIVE,
    LATEST_ONLY,
    NO_PROGRESS,
    PROGRESS,
    connect_examples,
    enable_download,
    example_gallery,
    upload_box,
)


def edit_tab(context: AppContext, folder: Path) -> None:
    """Create the components of the tab. Seed files for download are written to ``folder``."""
    image, seed = gr.State(None), gr.State(None)
    with gr.Row():
        with gr.Column():
            source = upload_box("edit-upload")
            examples = example_gallery(context)
            selected = gr.Image(label="Your image", interactive=False, height=260, buttons=[], elem_id="edit-chosen")
            prompt = gr.Textbox(label="Prompt", placeholder="a photo of a cat", elem_id="edit-source-prompt")
            invert = gr.Button("Invert", variant="primary", elem_id="edit-invert")
            status = gr.HTML(elem_id="edit-status")
        with gr.Column():
            slider = gr.ImageSlider(
                label="Reconstruction and edit", interactive=False, buttons=["download"], elem_id="edit-both"
            )
            target = gr.Textbox(label="Edited prompt", elem_id="edit-prompt", interactive=False)
            error = gr.HTML(elem_id="edit-error")
            settings = edit_settings(edit_controls(context.model.family))
            with gr.Accordion("Seed", open=False, elem_id="edit-seed"):
                summary = gr.Textbox(
                    label="Seed", interactive=False, buttons=["copy"], lines=2, elem_id="edit-seed-summary"
                )
                download = gr.DownloadButton("Download the seed", interactive=False, elem_id="edit-download")
                file = gr.File(label="Load a seed", file_types=[".safetensors"], height=110, elem_id="edit-load")

    rendered = gr.State(None)
    view = [slider, error, rendered]
    inputs = [rendered, seed, target, *settings.values()]
    render = catch_errors(partial(_render, context, tuple(settings)))
    seed_outputs = [seed, status, summary, download, target]

    source.upload(catch_errors(partial(_upload, context)), [source, prompt], [image, selected, prompt], **NO_PROGRESS)
    connect_examples(examples, context, [image, selected, prompt])
    inverted = invert.click(catch_errors(partial(_invert, context, folder)), [image, prompt], seed_outputs, **EXCLUSIVE)
    inverted.success(render, inputs, view, **EXCLUSIVE, **NO_PROGRESS)
    loaded = file.upload(
        catch_errors(partial(_load_seed, context, folder)), file, [*seed_outputs, prompt, image, selected], **EXCLUSIVE
    )
    loaded.success(render, inputs, view, **EXCLUSIVE, **NO_PROGRESS)
    gr.on([target.change, *(setting.change for setting in settings.values())], render, inputs, view, **LATEST_ONLY)


def edit_settings(names: tuple[str, ...]) -> dict[str, gr.Component]:
    """Create one component for each edit setting in ``names``; return the components by name."""
    slider = partial(
        gr.Slider, 0.0, 1.0, step=0.05, buttons=[], info="fraction of steps with the attention of the source image"
    )
    settings: dict[str, gr.Component] = {}
    if "cross" in names:
        with gr.Row():
            settings["cross"] = slider(value=0.4, label="Keep the layout")
            settings["self_attention"] = slider(value=0.4, label="Keep the shapes")
        with gr.Row():
            settings["weights"] = gr.Textbox(
                label="Word weights", placeholder="pink=2, dog=0.5", elem_id="edit-weights"
            )
            settings["blend"] = gr.Textbox(
                label="Change only where these words are", placeholder="cat, dog", elem_id="edit-blend"
            )
    if "share" in names:
        settings["share"] = slider(value=0.2, label="Keep the shapes")
    return settings


def _upload(context: AppContext, path: str, prompt: str) -> tuple[Image.Image, Image.Image, str]:
    """Return an uploaded image, the enlarged image, and its prompt: empty if ``prompt`` is that of an example."""
    image = context.read_image(path)
    is_of_example = prompt in {example.prompt for example in context.examples}
    return image, enlarge(image), "" if is_of_example else prompt


def _invert(
    context: AppContext, folder: Path, image: Image.Image | None, prompt: str, progress: gr.Progress = PROGRESS
) -> tuple:
    if image is None:
        raise ValueError("there is no image yet: upload an image or choose an example.")
    start = time.perf_counter()

    def show_progress(done: int, steps: int) -> None:
        progress((done, steps), desc="Inverting", unit="steps")

    result = invert_image(context, image, prompt, on_step=show_progress)
    return _reset(result.seed, f"Reconstruction: {result.summary}. {time.perf_counter() - start:.1f} s.", folder)


def _load_seed(context: AppContext, folder: Path, path: str) -> tuple:
    """Return the updates for a loaded seed and its prompt. The chosen image is removed: the prompt is not of it."""
    seed = read_seed(path, context)
    return *_reset(seed, "Seed loaded; the image is generated from it.", folder), seed.prompt, None, None


def _reset(seed: Seed, status: str, folder: Path) -> tuple:
    """Return the updates of the tab for a new seed: seed, status, summary, download button and prompt."""
    download = enable_download(write_seed(seed, folder))
    return seed, status_html(status), seed.summary, download, gr.update(value=seed.prompt, interactive=True)


def _render(
    context: AppContext, names: tuple[str, ...], rendered: tuple | None, seed: Seed | None, target: str, *values: Any
) -> tuple:
    """Generate the reconstruction and the edited image, unless the displayed images are up to date.

    ``rendered`` is the key of the displayed images: seed, prompt and edit settings. If an input is invalid, an error
    message is shown below the displayed images, and the images do not change.
    """
    if seed is None:
        return gr.skip(), "", None
    key = (seed.digest, target, *values)
    if key == rendered:
        return gr.skip(), "", rendered
    defaults = {"cross": 0.0, "self_attention": 0.0, "weights": "", "blend": "", "share": 0.0}
    try:
        config = edit_config(context.model.family, **defaults | dict(zip(names, values, strict=True)))
        before, after = edit_image(context, seed, target, config)
    except (ValueError, OSError) as error:
        return gr.skip(), status_html(error_message(error), "error"), rendered
    return (enlarge(before), enlarge(after)), "", key
