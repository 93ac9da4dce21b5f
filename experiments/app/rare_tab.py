"""The tab Rare concept: plain samples (images from random seeds), and the result of every update of SeedSelect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr
from PIL import Image

from experiments.app.context import AppContext
from experiments.app.example_sets import rare_concept_sets
from experiments.app.figure_grid import CaptionedImage, grid_html
from experiments.app.messages import catch_errors, status_html
from experiments.app.rare import (
    MAX_REFERENCES,
    SelectionProgress,
    check_inputs,
    iterate_seedselect,
    loss_figure,
    nearest_references,
    plain_samples,
)
from experiments.app.seed_files import write_seed
from experiments.app.widgets import EXCLUSIVE, NO_PROGRESS, connect_set, enable_download, image_list_input

INTRODUCTION = """
Diffusion models often fail on concepts that training captions rarely mention.

1. Choose a set of references of a rare concept, or add one to five images and a prompt. The page shows plain samples:
   images of the prompt from random seeds.
2. Press *Optimize*. The page inverts the references to seeds, starts at the NAO centroid of these seeds, and improves
   the seed with SeedSelect.
"""
EXPLANATION = (
    "The loss measures how far an image is from the mean of the references, in the features of CLIP and in the latent "
    "space. A lower loss means that the image is closer. An image is a *copy* if its perceptual distance to a "
    "reference is smaller than 95 % of the distances between two references. Every other image is *new*."
)
SCROLL_TO_RESULTS_JS = """() => {
  if (window.innerWidth < 768) document.getElementById("rare-results").scrollIntoView({behavior: "smooth"});
}"""


@dataclass
class RunState:
    """State that the buttons Optimize and Stop share: the optimization stops when ``active`` is False.

    Gradio's option ``cancels`` is not used, because it interrupts a running iteration, and every output then shows
    "Error".
    """

    active: bool = False


@dataclass(frozen=True)
class PlainSamples:
    """The plain samples of a prompt: images that are generated from random seeds."""

    prompt: str
    images: list[Image.Image]


def rare_tab(context: AppContext, folder: Path, tab: gr.Tab) -> None:
    """Create the components of the tab Rare concept. Seed files for download are written to ``folder``."""
    gr.Markdown(INTRODUCTION)
    plain = gr.State(None)
    with gr.Row():
        with gr.Column():
            sets = rare_concept_sets(context)
            with gr.Row(elem_classes="set-buttons"):
                buttons = [gr.Button(each.label, size="sm", min_width=120, elem_classes="rare-set") for each in sets]
            references, prompt, selected = image_list_input(
                context, "rare", MAX_REFERENCES, prompt_per_image=False, initial=sets[0] if sets else None
            )
            with gr.Row():
                start = gr.Button("Optimize", variant="primary", elem_id="rare-start")
                stop = gr.Button("Stop and keep the best", interactive=False, elem_id="rare-stop")
            status = gr.HTML(elem_id="rare-status")
            stopped = gr.HTML(elem_id="rare-stopped")
        with gr.Column(), gr.Column(visible=False, elem_id="rare-results") as results:
            gr.Markdown("### Plain samples: random seeds, same prompt")
            plain_images = gr.HTML(elem_id="rare-plain")
            gr.Markdown("### Ours: NAO centroid of the references' seeds, then SeedSelect")
            ours = gr.HTML(elem_id="rare-ours")
            curve = gr.Plot(show_label=False, visible=False, elem_id="rare-curve")
            gr.Markdown(EXPLANATION)
            with gr.Accordion("Best seed", open=False, elem_id="rare-best"):
                summary = gr.Textbox(
                    show_label=False, interactive=False, buttons=["copy"], lines=2, elem_id="rare-seed"
                )
                download = gr.DownloadButton("Download the best seed", interactive=False, elem_id="rare-download")

    run = gr.State(RunState())
    sampled = [plain, results, plain_images, ours, curve]
    for button, each in zip(buttons, sets, strict=True):
        connect_set(button, each.images, each.prompts[0], [references, selected, prompt])
    tab.select(
        catch_errors(partial(_tab_selected, context)), [plain, references, prompt], sampled, **EXCLUSIVE, **NO_PROGRESS
    )
    selected.change(
        catch_errors(partial(_images_changed, context)),
        [plain, references, prompt],
        [*sampled, status, stopped],
        **EXCLUSIVE,
        **NO_PROGRESS,
    )
    started = start.click(_start, run, [start, stop, stopped], queue=False, **NO_PROGRESS)
    prepared = started.then(
        catch_errors(partial(_prepare, context)), [plain, references, prompt], [*sampled, status], **EXCLUSIVE
    )
    prepared.success(None, None, None, js=SCROLL_TO_RESULTS_JS)
    finished = prepared.success(
        catch_errors(partial(_optimize, context, folder)),
        [run, plain, references, prompt],
        [status, plain_images, ours, curve, summary, download],
        **EXCLUSIVE,
        **NO_PROGRESS,
    )
    prepared.failure(_finish, run, [start, stop, stopped], queue=False, **NO_PROGRESS)
    finished.then(_finish, run, [start, stop, stopped], queue=False, **NO_PROGRESS)
    stop.click(_stop, run, stopped, queue=False, **NO_PROGRESS)


def _buttons(is_running: bool) -> tuple[gr.Button, gr.Button]:
    """Return the updates that enable or disable the buttons Optimize and Stop."""
    return gr.Button(interactive=not is_running), gr.Button(interactive=is_running)


def _start(run: RunState) -> tuple:
    run.active = True
    return *_buttons(is_running=True), ""


def _stop(run: RunState) -> str:
    run.active = False
    return status_html("The optimization stops after this update.")


def _finish(run: RunState) -> tuple:
    return *_buttons(is_running=False), "" if run.active else status_html("Stopped; the best seed is kept.")


def _tab_selected(
    context: AppContext, plain: PlainSamples | None, references: Sequence[Image.Image], prompt: str
) -> tuple:
    """Return the updates that show plain samples when the tab is opened for the first time.

    Plain samples are images that are generated from random seeds with the prompt of the initial references.
    """
    if plain is None and references and prompt.strip():
        return _sample_plain(context, plain, references, prompt)
    return (gr.skip(),) * 5


def _images_changed(
    context: AppContext, plain: PlainSamples | None, references: Sequence[Image.Image], prompt: str
) -> tuple:
    """Return the updates that remove the results that were computed for the previous references.

    If there are references and a prompt, the updates also show plain samples (images from random seeds).
    """
    if references and prompt.strip():
        return *_sample_plain(context, plain, references, prompt), "", ""
    return plain, gr.update(visible=False), "", "", gr.update(visible=False), "", ""


def _sample_plain(
    context: AppContext, plain: PlainSamples | None, references: Sequence[Image.Image], prompt: str
) -> tuple:
    """Return the updates that show the plain samples of ``prompt``, and hide the results of SeedSelect.

    Plain samples are images from random seeds. They are generated unless ``plain`` contains the samples of ``prompt``.
    """
    check_inputs(prompt, references)
    prompt = prompt.strip()
    if plain is None or plain.prompt != prompt:
        plain = PlainSamples(prompt, plain_samples(context, prompt))
    return plain, gr.update(visible=True), _plain_html(context, plain, references, None), "", gr.update(visible=False)


def _prepare(context: AppContext, plain: PlainSamples | None, references: Sequence[Image.Image], prompt: str) -> tuple:
    status = status_html("Inverting the references and computing the NAO centroid of the seeds.")
    return *_sample_plain(context, plain, references, prompt), status


def _plain_html(
    context: AppContext, plain: PlainSamples, references: Sequence[Image.Image], losses: Sequence[float] | None
) -> str:
    texts = _captions(context, plain.images, references, losses)
    figures = [
        CaptionedImage(image, f"Plain {k}", text)
        for k, (image, text) in enumerate(zip(plain.images, texts, strict=True), 1)
    ]
    return grid_html(figures, 3)


def _captions(
    context: AppContext,
    images: Sequence[Image.Image],
    references: Sequence[Image.Image],
    losses: Sequence[float] | None,
) -> list[str]:
    """Return one caption per image, which contains the nearest reference and whether the image is a copy.

    If ``losses`` is not None, the caption also contains the loss of the image.
    """
    nearest = nearest_references(context, images, references)
    captions = ["" if nearest is None else nearest[k].text for k in range(len(images))]
    if losses is None:
        return captions
    return [f"loss {loss:.3f}; {caption}".removesuffix("; ") for loss, caption in zip(losses, captions, strict=True)]


def _optimize(
    context: AppContext,
    folder: Path,
    run: RunState,
    plain: PlainSamples,
    *,
    references: list[Image.Image],
    prompt: str,
) -> Iterator[tuple]:
    iterations = iterate_seedselect(context, prompt.strip(), references)
    losses: list[float] = []
    first: SelectionProgress | None = None
    while run.active and (progress := next(iterations, None)) and run.active:
        first = first or progress
        losses.append(progress.loss)
        yield (
            status_html(_status(losses, progress.iterations)),
            gr.skip() if progress is not first else _plain_html(context, plain, references, progress.plain_losses),
            _ours_html(context, references, losses, first=first, progress=progress),
            gr.update(value=loss_figure(losses, progress.plain_losses, progress.iterations), visible=True),
            progress.seed.summary,
            enable_download(write_seed(progress.seed, folder)),
        )


def _status(losses: Sequence[float], iterations: int) -> str:
    """Return the progress of the optimization in one line. ``losses[0]`` is the loss of the initial seed."""
    updates = len(losses) - 1
    if not updates:
        return f"Start: loss {losses[0]:.3f}. Computing update 1 of {iterations}."
    best = min(losses[1:])
    result = f"lowest loss {best:.3f}" if best < losses[0] else f"no update is better than the start ({losses[0]:.3f})"
    return f"Update {updates} of {iterations}: loss {losses[-1]:.3f}; {result}."


def _ours_html(
    context: AppContext,
    references: Sequence[Image.Image],
    losses: Sequence[float],
    *,
    first: SelectionProgress,
    progress: SelectionProgress,
) -> str:
    """Return HTML with the images of the initial seed, of the seed with the lowest loss, and of the current seed."""
    images = [first.image]
    shown_losses = [losses[0]]
    titles = ["Start (NAO centroid)"]
    if progress.iteration:
        if progress.best_loss < losses[0]:
            images.append(progress.best_image)
            shown_losses.append(progress.best_loss)
            titles.append(f"Best (update {losses.index(min(losses))})")
        images.append(progress.image)
        shown_losses.append(progress.loss)
        titles.append(f"Current (update {progress.iteration})")
    captions = _captions(context, images, references, shown_losses)
    return grid_html([CaptionedImage(*each) for each in zip(images, titles, captions, strict=True)], 3)
