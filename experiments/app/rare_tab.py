"""The tab Rare concept: run SeedSelect and show the result of every iteration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr
from PIL import Image

from experiments.app.context import AppContext
from experiments.app.messages import catch_errors, status_html
from experiments.app.rare import MAX_REFERENCES, iterate_seedselect
from experiments.app.seed_files import write_seed
from experiments.app.uploads import enlarge
from experiments.app.widgets import EXCLUSIVE, NO_PROGRESS, enable_download, image_list_input


@dataclass
class RunState:
    """Whether the optimization of a visitor should continue. The handlers of both buttons share this state.

    The optimization stops when ``active`` is False. The option ``cancels`` of Gradio is not used, because every output
    would show "Error" if an iteration were interrupted.
    """

    active: bool = False


def rare_tab(context: AppContext, folder: Path) -> None:
    """Create the components of the tab. Seed files for download are written to ``folder``."""
    with gr.Row():
        with gr.Column():
            references, prompt = image_list_input(context, "rare", MAX_REFERENCES, prompt_per_image=False)
            with gr.Row():
                start = gr.Button("Optimize", variant="primary", elem_id="rare-start")
                stop = gr.Button("Stop and keep the best", interactive=False, elem_id="rare-stop")
            status = gr.HTML(elem_id="rare-status")
            stopped = gr.HTML(elem_id="rare-stopped")
        with gr.Column():
            with gr.Row():
                current = gr.Image(label="Current", interactive=False, height=280, buttons=[], elem_id="rare-now")
                best = gr.Image(label="Best so far", interactive=False, height=280, buttons=[], elem_id="rare-best")
            summary = gr.Textbox(label="Best seed", interactive=False, buttons=["copy"], lines=2, elem_id="rare-seed")
            download = gr.DownloadButton("Download the best seed", interactive=False, elem_id="rare-download")
    run = gr.State(RunState())
    started = start.click(_start, run, [start, stop, stopped], queue=False, **NO_PROGRESS)
    finished = started.then(
        catch_errors(partial(_optimize, context, folder)),
        [run, references, prompt],
        [status, current, best, summary, download],
        **EXCLUSIVE,
        show_progress="minimal",
    )
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
    return status_html("Stopping after this iteration.")


def _finish(run: RunState) -> tuple:
    return *_buttons(is_running=False), "" if run.active else status_html("Stopped; the best seed is kept.")


def _optimize(
    context: AppContext, folder: Path, run: RunState, references: list[Image.Image], prompt: str
) -> Iterator[tuple]:
    iterations = iterate_seedselect(context, prompt.strip(), references)
    while run.active and (progress := next(iterations, None)) and run.active:
        status = (
            f"Iteration {progress.iteration} of {progress.iterations}: loss {progress.loss:.3f}, "
            f"best {progress.best_loss:.3f}."
        )
        download = enable_download(write_seed(progress.seed, folder))
        yield (
            status_html(status),
            enlarge(progress.image),
            enlarge(progress.best_image),
            progress.seed.summary,
            download,
        )
