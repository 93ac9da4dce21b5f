"""The tab Rare concept: SeedSelect, live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr
from PIL import Image

from experiments.app.context import Studio
from experiments.app.messages import in_words, line
from experiments.app.rare import MOST_REFERENCES, select_live
from experiments.app.seed_files import write_seed
from experiments.app.uploads import shown
from experiments.app.widgets import ALONE, QUIET, file_of, several_pictures


def rare_tab(studio: Studio, folder: Path) -> None:
    """Lays the tab out. The best seeds are written to ``folder``."""
    with gr.Row():
        with gr.Column():
            references, prompts = several_pictures(studio, "rare", MOST_REFERENCES)
            with gr.Row():
                start = gr.Button("Optimize", variant="primary", elem_id="rare-start")
                stop = gr.Button("Stop, keep the best", interactive=False, elem_id="rare-stop")
            said, stopped = gr.HTML(elem_id="rare-said"), gr.HTML(elem_id="rare-stopped")
        with gr.Column():
            with gr.Row():
                now = gr.Image(label="Now", interactive=False, height=280, buttons=[], elem_id="rare-now")
                best = gr.Image(label="Best so far", interactive=False, height=280, buttons=[], elem_id="rare-best")
            words = gr.Textbox(label="Best seed", interactive=False, buttons=["copy"], lines=2, elem_id="rare-seed")
            download = gr.DownloadButton("Download the best seed", interactive=False, elem_id="rare-download")
    run = gr.State(Run())
    begun = start.click(_begin, run, [start, stop, stopped], queue=False, **QUIET)
    walked = begun.then(
        in_words(partial(_live, studio, folder)), [run, references, prompts], [said, now, best, words, download],
        **ALONE, show_progress="minimal",
    )  # fmt: skip
    walked.then(_end, run, [start, stop, stopped], queue=False, **QUIET)
    stop.click(_stop, run, stopped, queue=False, **QUIET)


@dataclass
class Run:
    """A visitor's own, which the handlers of both buttons share.

    Gradio's ``cancels`` would leave "Error" on every box where it meets an iteration at work.
    """

    wanted: bool = False


def _buttons(running: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(interactive=not running), gr.Button(interactive=running)


def _begin(run: Run) -> tuple:
    run.wanted = True
    return *_buttons(running=True), ""


def _stop(run: Run) -> str:
    run.wanted = False
    return line("Stopping after this iteration.")


def _end(run: Run) -> tuple:
    return *_buttons(running=False), "" if run.wanted else line("Stopped; the best is kept.")


def _live(studio: Studio, folder: Path, run: Run, references: list[Image.Image], text: str) -> Iterator[tuple]:
    prompt = text.strip().partition("\n")[0]
    walk = select_live(studio, prompt, references)
    while run.wanted and (each := next(walk, None)) and run.wanted:
        said = f"Iteration {each.iteration} of {each.iterations}: loss {each.loss:.3f}, the least {each.best_loss:.3f}."
        file = file_of(write_seed(each.seed, folder))
        yield line(said), shown(each.picture), shown(each.best), each.seed.words, file
