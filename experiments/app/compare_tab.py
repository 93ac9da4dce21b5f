"""The tab Compare: a blind rating of what a finished run made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from experiments.app.messages import in_words, line
from experiments.app.ratings import Item, Question, Ratings, methods_of, questions, read_run
from experiments.app.uploads import shown
from experiments.app.widgets import QUIET
from experiments.cache.atomic import atomic_write
from experiments.reporting.human_ratings import preference_table, read_ratings

KEYS = """<script>
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, [contenteditable]")) return;
  const box = document.getElementById("compare-answer-" + event.key);
  const button = box && (box.matches("button") ? box : box.querySelector("button"));
  if (button && button.offsetParent && !button.disabled) button.click();
});
</script>"""
"""1, 2, 3 and 0 press the buttons of the answers, where these are to be seen."""
MOST_METHODS = 3
NO_RUN = "Start the page with `run=FOLDER`, the folder of a finished run, to rate what its methods made."


@dataclass(frozen=True)
class Booth:
    """A finished run to be rated.

    Args:
        run: its folder.
        items: what it made.
        methods: two or three, which raters do not see.
        ratings: the folder of their files.
    """

    run: str
    items: list[Item]
    methods: list[str]
    ratings: Path


def open_booth(run: str, methods: list[str] | None, ratings: str) -> Booth:
    """The booth of the run in the folder ``run``; without ``methods`` its first three, or both.

    Raises:
        ValueError: one sentence for a folder that is no finished run, or methods that it does not have.
    """
    items = read_run(run)
    known = methods_of(items)
    chosen = list(methods) if methods else known[:MOST_METHODS]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"methods={chosen}: the run has no {unknown[0]!r}; choose from {', '.join(known)}.")
    questions(items, chosen, "anyone")
    return Booth(run, items, chosen, Path(ratings))


def compare_tab(booth: Booth | None, folder: Path) -> None:
    """Lays the tab out. Tables to download are written to ``folder``."""
    if booth is None:
        gr.Markdown(NO_RUN, elem_id="compare-none")
        return
    count = len(booth.methods)
    left, rater = gr.State([]), gr.State("")
    with gr.Row():
        name = gr.Textbox(label="Your name", placeholder="who rates", max_length=60, elem_id="compare-name")
        begin = gr.Button("Begin, or go on", variant="primary", elem_id="compare-begin")
    said = gr.HTML(elem_id="compare-said")
    with gr.Row():
        given = gr.Image(label="Given", interactive=False, height=300, buttons=[], visible=False)
        made = [
            gr.Image(label=str(k + 1), interactive=False, height=300, buttons=[], elem_id=f"compare-image-{k + 1}")
            for k in range(count)
        ]
    with gr.Row():
        answers = [
            gr.Button(f"{k} is better" if k else "Tie", elem_id=f"compare-answer-{k}", interactive=False)
            for k in (*range(1, count + 1), 0)
        ]
    gr.Markdown(f"Keys: {', '.join(map(str, range(1, count + 1)))} for the better image, 0 for a tie.")
    with gr.Accordion("Results", open=False, elem_id="compare-results"):
        show = gr.Button("Show what all raters prefer", elem_id="compare-show")
        table = gr.Markdown(elem_id="compare-table")
        export = gr.DownloadButton("Download all ratings", interactive=False, elem_id="compare-export")

    outputs = [left, rater, said, given, *made, *answers]
    begin.click(in_words(partial(_begun, booth)), name, outputs, **QUIET)
    name.submit(in_words(partial(_begun, booth)), name, outputs, **QUIET)
    for k, button in zip((*range(1, count + 1), 0), answers, strict=True):
        button.click(in_words(partial(_answered, booth, k)), [left, rater], outputs, **QUIET)
    show.click(in_words(partial(_results, booth, folder)), None, [table, export], **QUIET)


def _begun(booth: Booth, name: str) -> tuple:
    asked = questions(booth.items, booth.methods, name)
    return _asked(Ratings(booth.ratings, booth.run, name).open(asked), len(asked), name, len(booth.methods))


def _answered(booth: Booth, answer: int, left: list[Question], rater: str) -> tuple:
    if not left:
        raise ValueError("there is nothing to rate: give your name and begin.")
    ratings = Ratings(booth.ratings, booth.run, rater)
    ratings.add(left[0], answer)
    return _asked(left[1:], len(questions(booth.items, booth.methods, rater)), rater, len(booth.methods))


def _asked(left: list[Question], count: int, rater: str, ways: int) -> tuple:
    """The next question, or that there is none."""
    if not left:
        empty: list[Any] = [gr.update(value=None)] * ways
        said = line(f"All {count} are rated. Thank you.")
        return [], rater, said, gr.update(visible=False), *empty, *[gr.update(interactive=False)] * (ways + 1)
    item = left[0].item
    said = f"{count - len(left) + 1} of {count}. Which is the better image"
    given = gr.update(visible=False)
    if item.given is not None:
        said, given = f"{said} of what was given", gr.update(value=shown(item.given.read()), visible=True)
    said = f"{said}: {item.prompt}?" if item.prompt else f"{said}?"
    pictures = [shown(picture) for picture in left[0].pictures()]
    return left, rater, line(said), given, *pictures, *[gr.update(interactive=True)] * (ways + 1)


def _results(booth: Booth, folder: Path) -> tuple:
    ratings = read_ratings([booth.ratings])
    own = ratings[ratings["run"] == booth.run] if "run" in ratings else ratings
    if own.empty:
        raise ValueError("nobody has rated this run yet.")
    path = folder / "ratings.parquet"
    atomic_write(path, own.assign(shown=[list(shown) for shown in own["shown"]]).to_parquet)
    return preference_table(own), gr.update(value=str(path), interactive=True)
