"""The tab Edit: an image is inverted once, and follows its prompt."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from experiments.app.context import Studio
from experiments.app.edits import Seed, controls, edited_picture, how_to_edit, invert_picture
from experiments.app.messages import in_words, line, sentence
from experiments.app.seed_files import read_seed, write_seed
from experiments.app.uploads import shown
from experiments.app.widgets import AGAIN, ALONE, PROGRESS, QUIET, example_gallery, file_of, pick_example, upload_box


def edit_tab(studio: Studio, folder: Path) -> None:
    """Lays the tab out. Seeds to download are written to ``folder``."""
    picture, seed = gr.State(None), gr.State(None)
    with gr.Row():
        with gr.Column():
            source = upload_box("edit-upload")
            examples = example_gallery(studio)
            chosen = gr.Image(label="Your image", interactive=False, height=260, buttons=[], elem_id="edit-chosen")
            prompt = gr.Textbox(label="What it shows", placeholder="a photo of a cat", elem_id="edit-source-prompt")
            invert = gr.Button("Invert", variant="primary", elem_id="edit-invert")
            said = gr.HTML(elem_id="edit-said")
        with gr.Column():
            both = gr.ImageSlider(
                label="Before and after", interactive=False, buttons=["download"], elem_id="edit-both"
            )
            target = gr.Textbox(label="Edited prompt", elem_id="edit-prompt", interactive=False)
            message = gr.HTML(elem_id="edit-message")
            settings = edit_settings(controls(studio.model.family))
            with gr.Accordion("Seed", open=False, elem_id="edit-seed"):
                words = gr.Textbox(
                    label="Seed", interactive=False, buttons=["copy"], lines=2, elem_id="edit-seed-words"
                )
                download = gr.DownloadButton("Download the seed", interactive=False, elem_id="edit-download")
                loaded = gr.File(label="Load a seed", file_types=[".safetensors"], height=110, elem_id="edit-load")

    drawn = gr.State(None)
    view = [both, message, drawn]
    edit_inputs = [drawn, seed, target, *settings.values()]
    draw = in_words(partial(_drawn, studio, tuple(settings)))
    fresh = [seed, said, words, download, target]

    source.upload(in_words(partial(_uploaded, studio)), source, [picture, chosen], **QUIET)
    pick_example(examples, studio, [picture, chosen, prompt])
    started = invert.click(in_words(partial(_inverted, studio, folder)), [picture, prompt], fresh, **ALONE)
    started.success(draw, edit_inputs, view, **ALONE, **QUIET)
    opened = loaded.upload(in_words(partial(_loaded, studio, folder)), loaded, [*fresh, prompt], **ALONE)
    opened.success(draw, edit_inputs, view, **ALONE, **QUIET)
    gr.on([target.change, *(setting.change for setting in settings.values())], draw, edit_inputs, view, **AGAIN)


def edit_settings(names: tuple[str, ...]) -> dict[str, gr.Component]:
    """Those of the settings of an edit that act on the model, by name."""
    share = partial(gr.Slider, 0.0, 1.0, step=0.05, buttons=[], info="share of the steps with the source's attention")
    found: dict[str, gr.Component] = {}
    if "cross" in names:
        with gr.Row():
            found["cross"] = share(value=0.4, label="Keep words' places")
            found["self_attention"] = share(value=0.4, label="Keep the shape")
        with gr.Row():
            found["weights"] = gr.Textbox(label="Word weights", placeholder="pink=2, dog=0.5", elem_id="edit-weights")
            found["blend"] = gr.Textbox(label="Change only there", placeholder="cat, dog", elem_id="edit-blend")
    if "share" in names:
        found["share"] = share(value=0.2, label="Keep the shape")
    return found


def _uploaded(studio: Studio, path: str) -> tuple[Image.Image, Image.Image]:
    picture = studio.read(path)
    return picture, shown(picture)


def _inverted(
    studio: Studio, folder: Path, picture: Image.Image | None, prompt: str, progress: gr.Progress = PROGRESS
) -> tuple:
    if picture is None:
        raise ValueError("there is no image yet: upload one, or choose an example.")
    start = time.perf_counter()
    found = invert_picture(
        studio, picture, prompt, lambda done, steps: progress((done, steps), desc="Inverting", unit="steps")
    )
    return _fresh(found.seed, f"{found.words} {time.perf_counter() - start:.1f} s.", folder)


def _loaded(studio: Studio, folder: Path, path: str) -> tuple:
    seed = read_seed(path, studio)
    return *_fresh(seed, "The seed is loaded; its image is sampled, not inverted.", folder), seed.prompt


def _fresh(seed: Seed, said: str, folder: Path) -> tuple:
    """What the tab shows of a new seed, and the prompt to be edited."""
    file = file_of(write_seed(seed, folder))
    return seed, line(said), seed.words, file, gr.update(value=seed.prompt, interactive=True)


def _drawn(
    studio: Studio, names: tuple[str, ...], drawn: tuple | None, seed: Seed | None, target: str, *values: Any
) -> tuple:
    """The edit beside its reconstruction, and what it was ``drawn`` of, so that none is drawn twice.

    A fault of what is being typed is said below it, and the picture stays.
    """
    if seed is None:
        return gr.skip(), "", None
    key = (seed.digest, target, *values)
    if key == drawn:
        return gr.skip(), "", drawn
    given = dict(zip(names, values, strict=True))
    defaults = {"cross": 0.0, "self_attention": 0.0, "weights": "", "blend": "", "share": 0.0}
    try:
        how = how_to_edit(studio.model.family, **defaults | given)
        before, after = edited_picture(studio, seed, target, how)
    except (ValueError, OSError) as error:
        return gr.skip(), line(sentence(error), "message"), drawn
    return (shown(before), shown(after)), "", key
