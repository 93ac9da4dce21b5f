"""The tab Edit: choose an image, invert it once, then edit it by changing its prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from experiments.app.context import AppContext
from experiments.app.edit_session import (
    COMPARISONS,
    DEFAULT_SETTINGS,
    YOUR_IMAGE,
    EditSession,
    EditSettings,
    EditStep,
    open_example,
    open_image,
    open_seed,
    variants,
)
from experiments.app.edits import edit_controls, quality
from experiments.app.messages import report_errors, status_html
from experiments.app.seed_files import read_seed, read_stored_seed, write_image, write_seed
from experiments.app.uploads import enlarge
from experiments.app.widgets import EXCLUSIVE, LATEST_ONLY, NO_PROGRESS, PROGRESS, step_title, upload_box

NUM_SUGGESTIONS = 5
"""Number of buttons with suggested edits."""
SIDE_BY_SIDE = "Side by side"
SLIDER = "Slider"
VIEWS = (SIDE_BY_SIDE, SLIDER)
"""The two ways to show an edit next to another image: two images, or one image with a slider."""
CSS = """
.edit-layout { align-items: flex-start; }
.edit-layout .edit-side, .edit-layout .edit-side > .column { gap: 10px; }
#edit-source-words:not(:has(p)), #edit-words:not(:has(p)), #edit-message:not(:has(p)) { display: none; }
#edit-invert { align-self: stretch; }
.edit-layout mark { background: #fde68a; color: #713f12; padding: 0 2px; border-radius: 3px; }
#edit-both { flex-wrap: nowrap; }
#edit-both img { object-fit: contain !important; width: 100%; }
#edit-variants .thumbnail-lg { display: flex; flex-direction: column; height: auto; aspect-ratio: auto; }
#edit-variants .caption-label { position: static; text-align: center; }
#edit-history .caption-label { display: none; }
#edit-examples .caption-label { display: none; }
#edit-suggestions button { min-width: 0; flex: 1 1 auto; }
"""
MOBILE_CSS = """
@media (max-width: 640px) {
  .gradio-container { overflow: clip !important; }  /* with overflow: hidden, no element could be sticky */
  .edit-layout { flex-direction: column !important; }
  .edit-layout > .edit-side { display: contents !important; }
  .edit-layout > .edit-side > * { width: 100%; }
  #edit-show { order: -1; position: sticky; top: 0; z-index: 40; background: var(--body-background-fill); }
}
"""
"""CSS for small screens: the images stay at the top of the screen while the visitor scrolls."""


def edit_tab(context: AppContext, folder: Path, page: gr.Blocks) -> None:
    """Create the components of the tab Edit on ``page``. Files for download are written to ``folder``."""
    EditTab(context, folder).connect(page)


class EditTab:
    """Components and event handlers of the tab Edit.

    A handler returns a dict that maps components to their new values.
    """

    def __init__(self, context: AppContext, folder: Path) -> None:
        self.context = context
        self.folder = folder
        self.names = edit_controls(context.model.family)
        self.example_sessions: dict[int, EditSession] = {}
        finished = [k for k, example in enumerate(context.edit_examples) if example.edited_prompts]
        session = self._open_example(finished[0]) if finished else EditSession()
        with gr.Row(elem_classes="edit-layout"):
            with gr.Column(elem_classes="edit-side", min_width=300):
                with gr.Column(elem_id="edit-step-1"):
                    self._create_step_1()
                with gr.Column(elem_id="edit-step-2"):
                    self._create_step_2(session)
            with gr.Column(elem_classes="edit-side", min_width=300):
                with gr.Column(elem_id="edit-show"):
                    self._create_images(session)
                with gr.Column(elem_id="edit-step-3"):
                    self._create_step_3(session)
        self.session = gr.State(session)
        self.variant_steps = gr.State({})
        secret = "the settings are not secret"  # a fixed secret stays valid when the server restarts
        self.saved = gr.BrowserState(
            list(self._defaults().values()),
            storage_key=f"seed-exploration-edit-{'-'.join(self.names)}",
            secret=secret,
        )
        self.saved_edit = gr.BrowserState([], storage_key="seed-exploration-seed", secret=secret)

    def connect(self, page: gr.Blocks) -> None:
        """Connect the events of the components to the event handlers."""
        settings = list(self.settings.values())
        session = [self.session, self.comparison]
        state = [*session, *settings]
        everything = [*self._view_components(), self.message]
        with_progress = {**EXCLUSIVE, "show_progress_on": self.status}
        silent = {**EXCLUSIVE, **NO_PROGRESS}

        def on(triggers: list[Callable], handler: Callable, inputs: list, outputs: list, **options: Any) -> None:
            gr.on(triggers, report_errors(handler, self.message), inputs, outputs, **options)

        on([self.upload.upload], self._upload, [*session, self.upload, self.prompt], everything, **silent)
        on([self.examples.select], self._choose_example, session, everything, **with_progress)
        on(
            [self.invert.click, self.prompt.submit],
            self._invert,
            [*session, self.prompt, *settings],
            everything,
            **with_progress,
        )
        on([self.file.upload], self._load_seed, [*session, self.file, *settings], everything, **with_progress)

        inputs = [*session, self.target, *settings]
        outputs = [*self._edit_components(), self.message]
        changes = [component.change for component in (self.target, *settings)]
        on(changes, self._render, inputs, outputs, **LATEST_ONLY)
        finished = [self.target.submit, self.target.blur]
        for setting in settings:
            finished.append(setting.release if isinstance(setting, gr.Slider) else setting.submit)
        on(finished, self._commit, inputs, outputs, **silent)
        outputs = [*outputs, self.target, *settings]
        for k, button in enumerate(self.suggestions):
            on([button.click], partial(self._suggest, k), state, outputs, **silent)
        on([self.undo.click], self._undo, session, outputs, **silent)
        on([self.history.select], self._select_step, session, outputs, **silent)
        on(
            [self.vary.click],
            self._vary,
            inputs,
            [self.variant_steps, self.variants, self.message],
            **EXCLUSIVE,
            show_progress_on=self.variants,
        )
        on([self.variants.select], self._select_variant, [*session, self.variant_steps], outputs, **silent)

        local = {"queue": False, **NO_PROGRESS}
        self.comparison.change(self._compare, session, [self.left, self.slider], **local)
        self.view.change(_show_view, self.view, [self.side_by_side, self.slider], **local)
        for prompt, words in ((self.prompt, self.prompt_words), (self.target, self.target_words)):
            prompt.change(self.context.info.mark_unknown_words, prompt, words, **local)
        gr.on([page.load], self._restore_settings, self.saved, settings, **local)
        on([page.load], self._restore_edit, [*session, self.saved, self.saved_edit], everything, **silent)
        gr.on([setting.change for setting in settings], lambda *values: list(values), settings, self.saved, **local)

    def _create_step_1(self) -> None:
        step_title(1, "Choose an image")
        self.upload = upload_box("edit-upload")
        examples = self.context.edit_examples
        has_edits = any(example.edited_prompts for example in examples)
        self.examples = gr.Gallery(
            [(enlarge(example.image), next(iter(example.edited_prompts), example.prompt)) for example in examples],
            label="Or click an example of a finished edit" if has_edits else "Or choose an example",
            columns=6,
            object_fit="contain",
            allow_preview=False,
            height="auto",
            buttons=[],
            visible=bool(examples),
            interactive=False,
            elem_classes="examples",
            elem_id="edit-examples",
        )

    def _create_step_2(self, session: EditSession) -> None:
        step_title(2, "Invert the image to its seed: the noise from which the model generates the image")
        with gr.Row(equal_height=False):
            self.prompt = gr.Textbox(
                session.seed.prompt if session.seed else "",
                label="Prompt: what the image shows",
                placeholder="a drawing of a cat on a white background",
                scale=4,
                min_width=260,
                elem_id="edit-source-prompt",
            )
            self.invert = gr.Button("Invert", variant="primary", min_width=100, scale=1, elem_id="edit-invert")
        self.prompt_words = gr.HTML(padding=False, elem_id="edit-source-words")
        self.status = gr.HTML(self._status(session), padding=False, elem_id="edit-status")

    def _create_images(self, session: EditSession) -> None:
        image = partial(gr.Image, interactive=False, buttons=["fullscreen"], min_width=120)
        with gr.Row(elem_id="edit-both") as self.side_by_side:
            self.left = image(_enlarged(session.compared_image(YOUR_IMAGE)), label=YOUR_IMAGE, elem_id="edit-left")
            self.right = image(_enlarged(session.edited_image), label="Edit", elem_id="edit-right")
        self.slider = gr.ImageSlider(
            _both_images(session, YOUR_IMAGE),
            label=_slider_label(YOUR_IMAGE),
            interactive=False,
            visible=False,
            buttons=["fullscreen"],
            elem_id="edit-slider",
        )
        self.message = gr.HTML(padding=False, elem_id="edit-message")

    def _create_step_3(self, session: EditSession) -> None:
        step_title(3, "Change the prompt")
        self.target = gr.Textbox(
            session.step.prompt if session.step else "",
            label="Edited prompt",
            interactive=session.seed is not None,
            elem_id="edit-prompt",
        )
        self.target_words = gr.HTML(padding=False, elem_id="edit-words")
        with gr.Row(elem_id="edit-suggestions"):
            self.suggestions = [
                gr.Button(**properties, size="sm", elem_id=f"edit-suggestion-{k}")
                for k, properties in enumerate(_suggestions(session))
            ]
        with gr.Row():
            self.undo = gr.Button("Undo", size="sm", elem_id="edit-undo")
            self.vary = gr.Button("Three variants", size="sm", elem_id="edit-vary")
            self.png = gr.DownloadButton(
                "Download PNG", self._png(session), interactive=session.step is not None, size="sm", elem_id="edit-png"
            )
        strip = partial(
            gr.Gallery, height="auto", object_fit="contain", allow_preview=False, buttons=[], interactive=False
        )
        self.variants = strip(
            label="Variants of this edit", columns=3, visible=False, elem_classes="examples", elem_id="edit-variants"
        )
        self.history = strip(
            _history(session),
            label="History",
            columns=6,
            fit_columns=False,
            visible=bool(session.history),
            elem_classes="examples",
            elem_id="edit-history",
        )
        self.comparison = gr.Radio(list(COMPARISONS), value=YOUR_IMAGE, label="Left image", elem_id="edit-comparison")
        self.view = gr.Radio(list(VIEWS), value=SIDE_BY_SIDE, label="View", elem_id="edit-view")
        with gr.Accordion("Settings of the edit", open=False, elem_id="edit-settings"):
            self.settings = edit_settings(self.names)
        with gr.Accordion("Seed", open=False, elem_id="edit-seed"):
            self.summary = gr.Textbox(
                session.seed.summary if session.seed else "",
                label="Seed",
                interactive=False,
                buttons=["copy"],
                lines=2,
                elem_id="edit-seed-summary",
            )
            self.download = gr.DownloadButton(
                "Download the seed",
                self._seed_file(session),
                interactive=session.seed is not None,
                elem_id="edit-download",
            )
            self.file = gr.File(label="Load a seed", file_types=[".safetensors"], height=110, elem_id="edit-load")

    def _edit_components(self) -> list[gr.Component]:
        """Return the components that show an edit."""
        return [self.session, self.left, self.right, self.slider, self.history, self.png, self.saved_edit]

    def _view_components(self) -> list[gr.Component]:
        """Return all components whose content depends on the image that the visitor edits."""
        edited = [*self._edit_components(), self.target, *self.suggestions, self.variants, self.variant_steps]
        return [
            *edited,
            self.examples,
            self.upload,
            self.prompt,
            self.status,
            self.summary,
            self.download,
            *self.settings.values(),
        ]

    def _edit(self, session: EditSession, comparison: str) -> dict:
        """Return the updates of the components that show the edit of ``session``."""
        return {
            self.session: session,
            self.left: gr.update(value=_enlarged(session.compared_image(comparison)), label=comparison),
            self.right: _enlarged(session.edited_image),
            self.slider: gr.update(value=_both_images(session, comparison), label=_slider_label(comparison)),
            self.saved_edit: _digest_and_prompt(session),
            self.history: gr.update(value=_history(session), visible=bool(session.history)),
            self.png: gr.update(value=self._png(session), interactive=session.step is not None),
        }

    def _view(self, session: EditSession, comparison: str, prompt: str) -> dict:
        """Return the updates of all components that depend on ``session``."""
        return self._edit(session, comparison) | {
            self.prompt: prompt,
            self.target: gr.update(
                value=session.step.prompt if session.step else "", interactive=session.seed is not None
            ),
            **{
                button: gr.update(**properties)
                for button, properties in zip(self.suggestions, _suggestions(session), strict=True)
            },
            self.examples: gr.update(selected_index=None),
            self.variants: gr.update(value=[], visible=False),
            self.variant_steps: {},
            self.status: self._status(session),
            self.summary: session.seed.summary if session.seed else "",
            self.download: gr.update(value=self._seed_file(session), interactive=session.seed is not None),
        }

    def _with_settings(self, session: EditSession, comparison: str) -> dict:
        """Return the updates of the components that show the edit of ``session``, its prompt and its settings."""
        updates = {self.settings[name]: value for name, value in session.step.settings.items()}
        return self._edit(session, comparison) | updates | {self.target: session.step.prompt}

    def _upload(self, session: EditSession, comparison: str, path: str, prompt: str) -> dict:
        image = self.context.read_image(path)
        prompts = {example.prompt for example in self.context.edit_examples}
        if session.seed is not None:
            prompts.add(session.seed.prompt)
        return self._view(EditSession(image=image), comparison, "" if prompt in prompts else prompt)

    def _choose_example(self, event: gr.SelectData, session: EditSession, comparison: str) -> dict:
        example = self.context.edit_examples[event.index]
        if not example.edited_prompts:
            return self._view(EditSession(image=example.image), comparison, example.prompt) | {self.upload: None}
        session = self._open_example(event.index)
        return (
            self._view(session, comparison, example.prompt)
            | self._with_settings(session, comparison)
            | {self.upload: None}
        )

    def _open_example(self, index: int) -> EditSession:
        """Return the session of the example with the index ``index``.

        An example is inverted only once. All visitors share the cached session.
        """
        if index not in self.example_sessions:
            example = self.context.edit_examples[index]
            self.example_sessions[index] = open_example(self.context, example, self._defaults())
        return self.example_sessions[index]

    def _invert(
        self,
        session: EditSession,
        comparison: str,
        prompt: str,
        progress: gr.Progress = PROGRESS,
        *settings: Any,
    ) -> dict:
        if session.image is None:
            raise ValueError("there is no image yet: upload an image or choose an example.")
        start = time.perf_counter()

        def show_progress(done: int, steps: int) -> None:
            progress((done, steps), desc="Inverting", unit="steps")

        session = open_image(self.context, session.image, prompt, self._named(settings), on_step=show_progress)
        seconds = time.perf_counter() - start
        return self._view(session, comparison, prompt) | {self.status: self._status(session, f"{seconds:.1f} s.")}

    def _load_seed(self, session: EditSession, comparison: str, path: str, *settings: Any) -> dict:
        seed = read_seed(path, self.context)
        session = open_seed(self.context, seed, self._named(settings))
        return self._view(session, comparison, seed.prompt) | {self.upload: None}

    def _restore_settings(self, settings: list[Any]) -> dict:
        """Return the updates that restore the edit settings when a visitor loads the page again."""
        saved = zip(self.settings.values(), settings, self._defaults().values(), strict=True)
        return {setting: gr.skip() if value == default else value for setting, value, default in saved}

    def _restore_edit(self, session: EditSession, comparison: str, settings: list[Any], edit: list[str]) -> dict:
        """Return the updates that restore the last edit when a visitor loads the page again.

        The server stores the seed of an edit for an hour, see :data:`experiments.app.seed_files.MAX_FILE_AGE_S`. If the
        visitor has changed the page before the edit is restored, the edit is not restored.
        """
        if not edit or _digest_and_prompt(session) != _digest_and_prompt(self.session.value):
            return {}
        saved = self._saved_session(*edit, self._named(settings))
        return {} if saved is None else self._view(saved, comparison, saved.seed.prompt)

    def _saved_session(self, digest: str, prompt: str, settings: EditSettings) -> EditSession | None:
        """Read the stored seed whose hash is ``digest``; return a session that displays its edit with ``prompt``.

        If the file of the seed was deleted, return None.
        """
        for example in self.example_sessions.values():
            if example.seed.digest == digest:
                return example.render(self.context, prompt, settings).remember()
        seed = read_stored_seed(digest, self.context, self.folder)
        if seed is None:
            return None
        return open_seed(self.context, seed, settings).render(self.context, prompt, settings).remember()

    def _render(self, session: EditSession, comparison: str, prompt: str, *settings: Any) -> dict:
        """Generate the edited image while the visitor types; the history does not change."""
        rendered = session.render(self.context, prompt, self._named(settings))
        return {} if rendered is session else self._edit(rendered, comparison)

    def _commit(self, session: EditSession, comparison: str, prompt: str, *settings: Any) -> dict:
        """Generate the edited image and append it to the history."""
        rendered = session.render(self.context, prompt, self._named(settings)).remember()
        return {} if rendered is session else self._edit(rendered, comparison)

    def _suggest(self, index: int, session: EditSession, comparison: str, *settings: Any) -> dict:
        prompt = list(session.suggestions.values())[index]
        session = session.render(self.context, prompt, self._named(settings)).remember()
        return self._with_settings(session, comparison)

    def _undo(self, session: EditSession, comparison: str) -> dict:
        return self._with_settings(session.undo(), comparison)

    def _select_step(self, event: gr.SelectData, session: EditSession, comparison: str) -> dict:
        return self._with_settings(session.show(session.history[event.index]), comparison)

    def _vary(self, session: EditSession, comparison: str, prompt: str, *settings: Any) -> dict:
        steps = variants(self.context, session, prompt, self._named(settings))
        images = [(enlarge(step.edited), name) for name, step in steps.items()]
        return {self.variant_steps: steps, self.variants: gr.update(value=images, visible=True)}

    def _select_variant(
        self, event: gr.SelectData, session: EditSession, comparison: str, steps: dict[str, EditStep]
    ) -> dict:
        step = list(steps.values())[event.index]
        return self._with_settings(session.show(step).remember(), comparison)

    def _compare(self, session: EditSession, comparison: str) -> tuple:
        return (
            gr.update(value=_enlarged(session.compared_image(comparison)), label=comparison),
            gr.update(value=_both_images(session, comparison), label=_slider_label(comparison)),
        )

    def _defaults(self) -> dict[str, Any]:
        return {name: DEFAULT_SETTINGS[name] for name in self.names}

    def _named(self, settings: Sequence[Any]) -> dict[str, Any]:
        """Return the values of the edit settings by name.

        Gradio reports None for a Textbox that the visitor has not changed; None is replaced by the default value.
        """
        pairs = zip(self.names, settings, strict=True)
        return {name: DEFAULT_SETTINGS[name] if value is None else value for name, value in pairs}

    def _status(self, session: EditSession, seconds: str = "") -> str:
        if session.seed is None:
            return ""
        if session.seed.inversion is None:
            return status_html("The image is generated from the loaded seed.")
        return status_html(f"{quality(session.seed.inversion)} {seconds}".strip())

    def _png(self, session: EditSession) -> str | None:
        if session.step is None:
            return None
        return str(write_image(session.step.edited, session.step.prompt, self.folder))

    def _seed_file(self, session: EditSession) -> str | None:
        return None if session.seed is None else str(write_seed(session.seed, self.folder))


def edit_settings(names: tuple[str, ...]) -> dict[str, gr.Component]:
    """Create one component for each edit setting in ``names``; return a dict of the components by name."""
    slider = partial(
        gr.Slider,
        0.0,
        1.0,
        step=0.05,
        buttons=["reset"],
        info="fraction of the sampling steps that use the attention of the source image",
    )
    settings: dict[str, gr.Component] = {}
    if "cross" in names:
        with gr.Row():
            settings["cross"] = slider(value=DEFAULT_SETTINGS["cross"], label="Keep the layout")
            settings["self_attention"] = slider(value=DEFAULT_SETTINGS["self_attention"], label="Keep the shapes")
        with gr.Row():
            settings["weights"] = gr.Textbox(
                value=DEFAULT_SETTINGS["weights"],
                label="Word weights",
                placeholder="pink=2, dog=0.5",
                elem_id="edit-weights",
            )
            settings["blend"] = gr.Textbox(
                value=DEFAULT_SETTINGS["blend"],
                label="Change only where these words are",
                placeholder="cat, dog",
                elem_id="edit-blend",
            )
    if "share" in names:
        settings["share"] = slider(value=DEFAULT_SETTINGS["share"], label="Keep the shapes")
    return settings


def _show_view(view: str) -> tuple:
    """Return the updates that show either the two images or the image with the slider."""
    return gr.update(visible=view == SIDE_BY_SIDE), gr.update(visible=view == SLIDER)


def _both_images(session: EditSession, comparison: str) -> tuple[Image.Image, Image.Image] | None:
    """Return the left image and the edited image, or None if no edit is displayed."""
    if session.edited_image is None:
        return None
    return enlarge(session.compared_image(comparison)), enlarge(session.edited_image)


def _slider_label(comparison: str) -> str:
    return f"{comparison} (left) and edit (right)"


def _enlarged(image: Image.Image | None) -> Image.Image | None:
    return None if image is None else enlarge(image)


def _digest_and_prompt(session: EditSession) -> list[str]:
    """Return the digest of the seed and the prompt of the edit, which the browser stores to restore the edit."""
    return [] if session.step is None else [session.step.digest, session.step.prompt]


def _history(session: EditSession) -> list[tuple[Image.Image, str]]:
    return [(enlarge(step.edited), step.prompt) for step in session.history]


def _suggestions(session: EditSession) -> list[dict[str, Any]]:
    """Return the properties ``value`` (text) and ``visible`` of each button with a suggested edit.

    Buttons without a suggestion are hidden.
    """
    names = list(session.suggestions)[:NUM_SUGGESTIONS]
    names += [""] * (NUM_SUGGESTIONS - len(names))
    return [{"value": name, "visible": bool(name)} for name in names]
