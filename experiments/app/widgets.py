"""Gradio components that several tabs use, and options of Gradio events."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from experiments.app.context import AppContext
from experiments.app.example_sets import ExampleSet
from experiments.app.messages import catch_errors
from experiments.app.seeds import add_prompt_lines
from experiments.app.uploads import enlarge

EXCLUSIVE = {"concurrency_id": "model", "concurrency_limit": 1}
"""Options of events that run a network. Only one of these events runs at a time, among the events of all visitors."""
NO_PROGRESS = {"show_progress": "hidden"}
"""Options of events for which Gradio shows no progress indicator."""
LATEST_ONLY = {"trigger_mode": "always_last", **EXCLUSIVE, **NO_PROGRESS}
"""Options of events that arrive faster than they are processed: of all waiting events, only the latest is processed."""
PROGRESS = gr.Progress()
"""Default value of the argument ``progress`` of event handlers.

When Gradio calls a handler, it replaces the value by the progress bar of the call.
"""


def step_title(number: int, text: str) -> gr.HTML:
    """Create the title of one step of the instructions, with the number of the step."""
    return gr.HTML(f'<p class="step"><b>{number}</b> {html.escape(text)}</p>', padding=False)


def upload_box(elem_id: str, *, multiple: bool = False) -> gr.File:
    """Create a file input for one image, or for several images if ``multiple`` is true."""
    return gr.File(
        label="Upload images" if multiple else "Upload an image",
        file_types=["image", ".heic", ".heif"],
        file_count="multiple" if multiple else "single",
        height=122,
        elem_id=elem_id,
    )


def example_gallery(context: AppContext, label: str = "Or choose an example") -> gr.Gallery:
    """Create a gallery of the example images. The gallery is hidden if there are no example images."""
    return gr.Gallery(
        [(example.image, None) for example in context.examples],
        label=label,
        columns=6,
        object_fit="contain",
        allow_preview=False,
        height="auto",
        buttons=[],
        visible=bool(context.examples),
        interactive=False,
        elem_classes="examples",
    )


def image_list_input(
    context: AppContext, prefix: str, max_images: int, *, prompt_per_image: bool, initial: ExampleSet | None = None
) -> tuple[gr.State, gr.Textbox, gr.Gallery]:
    """Create components that collect up to ``max_images`` images and their prompts.

    Args:
        context: the model and the settings of the page.
        prefix: first part of the HTML ids (``elem_id``) of the components, such as ``seeds``.
        max_images: maximum number of images.
        prompt_per_image: if True, the prompts have one line per image. If False, all images have the same prompt, which
            is set automatically only if the first image is an example.
        initial: images and prompts at the start. If ``initial`` is set, the inputs for other images are collapsed.

    Returns:
        The state with the list of images, the text box with the prompts, and the gallery that shows the images.
    """
    images = gr.State(initial.images if initial else [])
    with gr.Accordion("Your own images, or single examples", open=initial is None, elem_id=f"{prefix}-inputs"):
        source = upload_box(f"{prefix}-upload", multiple=True)
        examples = example_gallery(context)
    selected = gr.Gallery(
        [enlarge(image) for image in images.value],
        label="Your images",
        fit_columns=False,
        columns=4,
        height="auto",
        buttons=[],
        interactive=False,
        allow_preview=False,
        object_fit="contain",
        elem_classes="examples",
        elem_id=f"{prefix}-chosen",
    )
    clear = gr.Button("Start over", size="sm", elem_id=f"{prefix}-clear")
    labels = {"label": "Prompt", "info": "one prompt for all images", "lines": 1}
    if prompt_per_image:
        labels = {"label": "Prompts", "info": "one line per image, or a single line for all", "lines": 2}
    text = "" if initial is None else "\n".join(initial.prompts if prompt_per_image else initial.prompts[:1])
    prompts = gr.Textbox(text, elem_id=f"{prefix}-prompt", **labels)

    def add(current: list[Image.Image], new: Sequence[Image.Image], text: str, new_prompts: Sequence[str]) -> tuple:
        count = len(current) + len(new)
        if count > max_images:
            raise ValueError(f"got {count} images: at most {max_images} images are allowed; press Start over.")
        combined = [*current, *new]
        if prompt_per_image:
            text = add_prompt_lines(text, len(current), new_prompts)
        elif not current and not text.strip():
            text = new_prompts[0]
        return combined, [enlarge(image) for image in combined], text

    def upload(current: list[Image.Image], paths: list[str], text: str) -> tuple:
        return add(current, [context.read_image(path) for path in paths], text, [""] * len(paths))

    def choose(current: list[Image.Image], text: str, event: gr.SelectData) -> tuple:
        example = context.examples[event.index]
        return add(current, [example.image], text, [example.prompt])

    outputs = [images, selected, prompts]
    source.upload(catch_errors(upload), [images, source, prompts], outputs, **NO_PROGRESS)
    examples.select(catch_errors(choose), [images, prompts], outputs, **NO_PROGRESS)
    clear.click(lambda: ([], [], "", None), None, [*outputs, source], **NO_PROGRESS)
    return images, prompts, selected


def connect_set(button: gr.Button, images: Sequence[Image.Image], prompts: str, outputs: list[Any]) -> None:
    """Make a click on ``button`` write ``images``, the enlarged images and ``prompts`` to the three ``outputs``."""
    chosen = (list(images), [enlarge(image) for image in images], prompts)
    button.click(lambda: chosen, None, outputs, **NO_PROGRESS)


def enable_download(path: Path) -> dict[str, Any]:
    """Return the update that enables a download button for the file ``path``."""
    return gr.update(value=str(path), interactive=True)
