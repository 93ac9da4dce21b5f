"""The tab Compare: visitors rate the images of a finished run without seeing which method made an image."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from experiments.app.figure_grid import CaptionedImage, grid_html
from experiments.app.messages import catch_errors, error_message, status_html
from experiments.app.ratings import (
    Item,
    Question,
    Ratings,
    build_questions,
    methods_of,
    read_references,
    read_run,
    validate_rater,
)
from experiments.app.settings import Settings
from experiments.app.uploads import enlarge
from experiments.app.widgets import NO_PROGRESS
from experiments.cache.atomic import atomic_write
from experiments.config.project import project_path
from experiments.reporting.human_ratings import preference_table, read_ratings

log = logging.getLogger(__name__)

KEYBOARD_SHORTCUTS_JS = """<script>
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, [contenteditable]")) return;
  const name = event.key === "Backspace" ? "undo" : "answer-" + event.key;
  const box = document.getElementById("compare-" + name);
  const button = box && (box.matches("button") ? box : box.querySelector("button"));
  if (button && button.offsetParent && !button.disabled) button.click();
});
</script>"""
"""Script for keyboard shortcuts: the keys 1, 2, 3 and 0 press the answer buttons, and Backspace presses Undo.

A key has no effect if its button is hidden or disabled.
"""
CSS = """
#compare-images { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 8px; }
#compare-images > * { min-width: 0 !important; width: auto !important; }
#compare-images .image-frame, #compare-images img {
  width: 100%; aspect-ratio: 1; max-height: 36vh; object-fit: contain;
}
#compare-question { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 8px; }
#compare-status p { font-size: 1.1em; font-weight: 600; }
#compare-references { max-width: 360px; }
"""
MAX_METHODS = 3
"""Maximum number of methods whose images are shown next to each other."""
EXAMPLE_RUN = "assets/example_run"
"""Folder of the example run, which visitors rate if ``run`` is null; relative to the root of the repository."""
EXAMPLE_TEXT = (
    "This is an example run that ships with the repository: five rare concepts, three methods. To rate your own run, "
    "start the page with `run=FOLDER`, the folder of a finished run."
)


@dataclass(frozen=True)
class RatingSession:
    """The finished run whose images the visitors of the page rate, and the settings of the rating.

    Args:
        run: folder of the run.
        items: the items of the run. An item consists of the images of several methods for the same prompt.
        available: names of all methods that have images in the run.
        methods: names of the two or three methods that are compared unless a visitor selects other methods.
        ratings: folder to which the ratings are written, with one file per rater.
        references: dict that maps the name of a concept to its reference images.
        show_results: whether visitors can see the results of all raters.
        is_example: whether the run is the example run.
    """

    run: str
    items: list[Item]
    available: list[str]
    methods: list[str]
    ratings: Path
    references: dict[str, list[Image.Image]] = field(default_factory=dict)
    show_results: bool = False
    is_example: bool = False


def open_session(settings: Settings) -> RatingSession:
    """Read the run in the folder ``settings.run``, or the example run if ``settings.run`` is None.

    If ``settings.methods`` is None, the first three methods of the run's results table are compared.

    Raises:
        ValueError: the folder is not a finished run, or a method in ``settings.methods`` is not part of the run.
    """
    run = settings.run or project_path(EXAMPLE_RUN)
    items = read_run(run)
    available = methods_of(items, run)
    selected = list(settings.methods or available[:MAX_METHODS])
    unknown = [name for name in selected if name not in available]
    if unknown:
        raise ValueError(f"methods: the run has no method {unknown[0]!r}; choose from {', '.join(available)}.")
    build_questions(items, selected, "test")  # raises ValueError if no item has an image of every selected method
    try:
        references = read_references(run, items)
    except (ValueError, OSError) as error:
        log.warning("The tab Compare shows no references: %s", error_message(error))
        references = {}
    return RatingSession(
        run,
        items,
        available,
        selected,
        Path(settings.ratings),
        references=references,
        show_results=settings.results or settings.run is None,
        is_example=settings.run is None,
    )


def compare_tab(session: RatingSession, folder: Path) -> None:
    """Create the components of the tab Compare. Ratings for download are written to ``folder``."""
    if session.is_example:
        gr.Markdown(EXAMPLE_TEXT, elem_id="compare-example")
    state = gr.State(None)
    with gr.Row():
        name = gr.Textbox(label="Your name", placeholder="name of the rater", max_length=60, elem_id="compare-name")
        start = gr.Button("Start or continue", variant="primary", elem_id="compare-start")
    with gr.Row(elem_id="compare-question"):
        status = gr.HTML(elem_id="compare-status")
        references = gr.HTML(elem_id="compare-references")
    with gr.Row(elem_id="compare-images"):
        images = [
            gr.Image(
                label=str(k + 1),
                interactive=False,
                buttons=["fullscreen"],
                visible=k < len(session.methods),
                elem_id=f"compare-image-{k + 1}",
            )
            for k in range(MAX_METHODS)
        ]
    with gr.Row(elem_id="compare-answers"):
        answers = [
            gr.Button(
                f"{k} is better" if k else "Tie",
                elem_id=f"compare-answer-{k}",
                interactive=False,
                visible=k <= len(session.methods),
                min_width=80,
            )
            for k in (*range(1, MAX_METHODS + 1), 0)
        ]
        undo = gr.Button("Undo", elem_id="compare-undo", interactive=False, min_width=80)
    gr.Markdown("Keyboard: 1, 2 or 3 for the better image, 0 for a tie, Backspace to undo the last answer.")
    with gr.Accordion("Methods", open=False, elem_id="compare-settings"):
        methods = gr.CheckboxGroup(
            session.available,
            value=session.methods,
            label="Two or three methods to compare",
            info='Press "Start or continue" after a change. The key methods=[...] sets the default for all raters.',
            elem_id="compare-methods",
        )
    outputs = [state, status, references, *images, *answers, undo]
    begin = catch_errors(partial(_start, session))
    start.click(begin, [name, methods], outputs, **NO_PROGRESS)
    name.submit(begin, [name, methods], outputs, **NO_PROGRESS)
    for k, button in zip((*range(1, MAX_METHODS + 1), 0), answers, strict=True):
        button.click(catch_errors(partial(_answer, session, k)), state, outputs, **NO_PROGRESS)
    undo.click(catch_errors(partial(_undo, session)), state, outputs, **NO_PROGRESS)
    if session.show_results:
        with gr.Accordion("Results", open=False, elem_id="compare-results"):
            show = gr.Button("Show the results of all raters", elem_id="compare-show")
            table = gr.Markdown(elem_id="compare-table")
            export = gr.DownloadButton("Download all ratings", interactive=False, elem_id="compare-export")
        show.click(catch_errors(partial(_results, session, folder)), None, [table, export], **NO_PROGRESS)


@dataclass(frozen=True)
class RaterState:
    """The name of a rater, the methods that the rater compares, and the questions without an answer."""

    rater: str
    methods: tuple[str, ...]
    remaining: tuple[Question, ...]


def _start(session: RatingSession, rater: str, methods: list[str]) -> tuple:
    return _show_question(session, validate_rater(rater), tuple(methods))


def _answer(session: RatingSession, answer: int, state: RaterState | None) -> tuple:
    if state is None or not state.remaining:
        raise ValueError('there is no image to rate: enter your name and press "Start or continue".')
    _ratings(session, state.rater).add(state.remaining[0], answer)
    return _show_question(session, state.rater, state.methods)


def _undo(session: RatingSession, state: RaterState | None) -> tuple:
    if state is None:
        raise ValueError('there is no answer to undo: enter your name and press "Start or continue".')
    _ratings(session, state.rater).remove_last()
    return _show_question(session, state.rater, state.methods)


def _ratings(session: RatingSession, rater: str) -> Ratings:
    return Ratings(session.ratings, session.run, rater)


def _show_question(session: RatingSession, rater: str, methods: tuple[str, ...]) -> tuple:
    """Return the component updates that show the next question that the rater has not answered.

    If the rater has answered all questions, the updates show a message instead.
    """
    questions = build_questions(session.items, methods, rater)
    ratings = _ratings(session, rater)
    remaining = ratings.unanswered(questions)
    state = RaterState(rater, methods, tuple(remaining))
    is_open = bool(remaining)
    shown: list[Any] = [gr.update(value=None, visible=k < len(methods)) for k in range(MAX_METHODS)]
    if is_open:
        images = remaining[0].images()
        shown[: len(images)] = [gr.update(value=enlarge(image), visible=True) for image in images]
    answers = [gr.update(interactive=is_open, visible=k <= len(methods)) for k in (*range(1, MAX_METHODS + 1), 0)]
    undo = gr.update(interactive=not ratings.table().empty)
    total = len(questions)
    if not is_open:
        return state, status_html(f"All {total} questions are answered. Thank you."), "", *shown, *answers, undo
    item = remaining[0].item
    text, references = _question_text(session, item)
    status = status_html(f"Question {total - len(remaining) + 1} of {total}. {text}")
    return state, status, references, *shown, *answers, undo


def _question_text(session: RatingSession, item: Item) -> tuple[str, str]:
    """Return the question about an item (the images of several methods for one prompt), and HTML with images.

    The HTML shows the input image of the item, or reference images of the item's concept. The HTML is empty if the item
    has neither an input image nor reference images.
    """
    images: list[CaptionedImage] = []
    compared_with = ""
    if item.input is not None:
        compared_with = ", compared with the input"
        images = [CaptionedImage(item.input.read(), "Input")]
    elif item.concept in session.references:
        compared_with = ", compared with the references"
        references = session.references[item.concept]
        images = [CaptionedImage(image, f"Reference {k}") for k, image in enumerate(references, 1)]
    question = f"Which image is better{compared_with}"
    text = f"{question}: {item.prompt}?" if item.prompt else f"{question}?"
    return text, grid_html(images, 3) if images else ""


def _results(session: RatingSession, folder: Path) -> tuple:
    ratings = read_ratings([session.ratings])
    of_run = ratings[ratings["run"] == session.run] if "run" in ratings else ratings
    if of_run.empty:
        raise ValueError("there are no ratings of this run yet: rate an image first.")
    path = folder / "ratings.parquet"
    atomic_write(path, of_run.assign(shown=[list(shown) for shown in of_run["shown"]]).to_parquet)
    return preference_table(of_run), gr.update(value=str(path), interactive=True)
