"""The tab Compare: visitors rate the images of a finished run without seeing which method made an image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from experiments.app.messages import catch_errors, status_html
from experiments.app.ratings import Item, Question, Ratings, build_questions, methods_of, read_run
from experiments.app.uploads import enlarge
from experiments.app.widgets import NO_PROGRESS
from experiments.cache.atomic import atomic_write
from experiments.reporting.human_ratings import preference_table, read_ratings

KEYBOARD_SHORTCUTS_JS = """<script>
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, [contenteditable]")) return;
  const box = document.getElementById("compare-answer-" + event.key);
  const button = box && (box.matches("button") ? box : box.querySelector("button"));
  if (button && button.offsetParent && !button.disabled) button.click();
});
</script>"""
"""Script for keyboard shortcuts: the keys 1, 2, 3 and 0 press the answer buttons while the buttons are visible."""
MAX_METHODS = 3
NO_RUN = "To rate images, start the page with `run=FOLDER`, the folder of a finished run with several methods."


@dataclass(frozen=True)
class RatingSession:
    """A finished run whose images visitors rate.

    Args:
        run: folder of the run.
        items: the items of the run. Raters compare the images of an item.
        methods: the two or three compared methods. Raters do not see the names of the methods.
        ratings: folder with one file of ratings per rater.
    """

    run: str
    items: list[Item]
    methods: list[str]
    ratings: Path


def open_session(run: str, methods: list[str] | None, ratings: str) -> RatingSession:
    """Read the run in the folder ``run``. By default, the first three methods of the run are compared.

    Raises:
        ValueError: ``run`` is not a finished run, or a method in ``methods`` is not part of the run.
    """
    items = read_run(run)
    available = methods_of(items)
    selected = list(methods) if methods else available[:MAX_METHODS]
    unknown = [name for name in selected if name not in available]
    if unknown:
        raise ValueError(f"methods: the run has no {unknown[0]!r}; choose from {', '.join(available)}.")
    build_questions(items, selected, "test")  # raises ValueError if the methods have no item in common
    return RatingSession(run, items, selected, Path(ratings))


def compare_tab(session: RatingSession | None, folder: Path) -> None:
    """Create the components of the tab. The ratings for download are written to ``folder``."""
    if session is None:
        gr.Markdown(NO_RUN, elem_id="compare-none")
        return
    count = len(session.methods)
    remaining, rater = gr.State([]), gr.State("")
    with gr.Row():
        name = gr.Textbox(label="Your name", placeholder="name of the rater", max_length=60, elem_id="compare-name")
        start = gr.Button("Start or continue", variant="primary", elem_id="compare-start")
    status = gr.HTML(elem_id="compare-status")
    with gr.Row():
        input_image = gr.Image(label="Input", interactive=False, height=300, buttons=[], visible=False)
        images = [
            gr.Image(label=str(k + 1), interactive=False, height=300, buttons=[], elem_id=f"compare-image-{k + 1}")
            for k in range(count)
        ]
    with gr.Row():
        answers = [
            gr.Button(f"{k} is better" if k else "Tie", elem_id=f"compare-answer-{k}", interactive=False)
            for k in (*range(1, count + 1), 0)
        ]
    gr.Markdown(f"Keyboard: {', '.join(map(str, range(1, count + 1)))} for the better image, 0 for a tie.")
    with gr.Accordion("Results", open=False, elem_id="compare-results"):
        show = gr.Button("Show the results of all raters", elem_id="compare-show")
        table = gr.Markdown(elem_id="compare-table")
        export = gr.DownloadButton("Download all ratings", interactive=False, elem_id="compare-export")

    outputs = [remaining, rater, status, input_image, *images, *answers]
    start.click(catch_errors(partial(_start, session)), name, outputs, **NO_PROGRESS)
    name.submit(catch_errors(partial(_start, session)), name, outputs, **NO_PROGRESS)
    for k, button in zip((*range(1, count + 1), 0), answers, strict=True):
        button.click(catch_errors(partial(_answer, session, k)), [remaining, rater], outputs, **NO_PROGRESS)
    show.click(catch_errors(partial(_results, session, folder)), None, [table, export], **NO_PROGRESS)


def _start(session: RatingSession, rater: str) -> tuple:
    questions = build_questions(session.items, session.methods, rater)
    remaining = Ratings(session.ratings, session.run, rater).unanswered(questions)
    return _show_question(session, remaining, rater)


def _answer(session: RatingSession, answer: int, remaining: list[Question], rater: str) -> tuple:
    if not remaining:
        raise ValueError("there is no image to rate: enter your name and press Start or continue.")
    Ratings(session.ratings, session.run, rater).add(remaining[0], answer)
    return _show_question(session, remaining[1:], rater)


def _show_question(session: RatingSession, remaining: list[Question], rater: str) -> tuple:
    """Return the updates that show the first of the ``remaining`` questions, or that all questions are answered."""
    num_methods = len(session.methods)
    total = len(build_questions(session.items, session.methods, rater))
    if not remaining:
        no_images: list[Any] = [gr.update(value=None)] * num_methods
        disabled = [gr.update(interactive=False)] * (num_methods + 1)
        status = status_html(f"All {total} are rated. Thank you.")
        return [], rater, status, gr.update(visible=False), *no_images, *disabled
    item = remaining[0].item
    text = f"{total - len(remaining) + 1} of {total}. Which image is better"
    input_update = gr.update(visible=False)
    if item.input is not None:
        text = f"{text}, given the input"
        input_update = gr.update(value=enlarge(item.input.read()), visible=True)
    text = f"{text}: {item.prompt}?" if item.prompt else f"{text}?"
    images = [enlarge(image) for image in remaining[0].images()]
    enabled = [gr.update(interactive=True)] * (num_methods + 1)
    return remaining, rater, status_html(text), input_update, *images, *enabled


def _results(session: RatingSession, folder: Path) -> tuple:
    ratings = read_ratings([session.ratings])
    of_run = ratings[ratings["run"] == session.run] if "run" in ratings else ratings
    if of_run.empty:
        raise ValueError("there are no ratings of this run yet.")
    path = folder / "ratings.parquet"
    atomic_write(path, of_run.assign(shown=[list(shown) for shown in of_run["shown"]]).to_parquet)
    return preference_table(of_run), gr.update(value=str(path), interactive=True)
