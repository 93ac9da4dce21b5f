"""What a visitor edits: the image, its seed, the displayed edit, and the history of edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageChops

from experiments.app.context import AppContext
from experiments.app.edits import Seed, edit_config, edit_image, invert_image, no_progress
from experiments.app.uploads import Example, uint8_to_pil

EditSettings = Mapping[str, Any]
"""Values of the edit settings by name; the names are those of :func:`experiments.app.edits.edit_controls`."""

DEFAULT_SETTINGS: EditSettings = {"cross": 0.4, "self_attention": 0.4, "weights": "", "blend": "", "share": 0.2}
VARIANTS: Mapping[str, EditSettings] = {
    "close to the image": {"cross": 0.8, "self_attention": 0.8, "share": 0.4},
    "default": {"cross": 0.4, "self_attention": 0.4, "share": 0.2},
    "close to the prompt": {"cross": 0.0, "self_attention": 0.0, "share": 0.05},
}
"""Shares of the sampling steps with the attention of the source image, by the name of the variant."""
YOUR_IMAGE, RECONSTRUCTION, DIFFERENCE = "Your image", "Reconstruction", "Difference"
COMPARISONS = (YOUR_IMAGE, RECONSTRUCTION, DIFFERENCE)
"""Images that the page can show next to the edited image."""


@dataclass(frozen=True)
class EditStep:
    """An edited image, with the prompt and the settings that it was generated with."""

    digest: str
    prompt: str
    settings: dict[str, Any]
    reconstruction: Image.Image
    edited: Image.Image

    def is_of(self, seed: Seed, prompt: str, settings: EditSettings) -> bool:
        """Return whether this edited image has this seed, prompt and settings."""
        return (self.digest, self.prompt, self.settings) == (seed.digest, prompt, settings)


@dataclass(frozen=True)
class EditSession:
    """The state of a visitor in the tab Edit.

    Attributes:
        image: the uploaded or chosen image in the size of the model; None: there is none.
        seed: the seed of the image; None: it is not inverted yet.
        suggestions: edited prompts by the text of their button.
        step: the displayed edit; None: there is none yet.
        history: the edits that were kept, the oldest first.
    """

    image: Image.Image | None = None
    seed: Seed | None = None
    suggestions: dict[str, str] = field(default_factory=dict)
    step: EditStep | None = None
    history: tuple[EditStep, ...] = ()

    def render(self, context: AppContext, prompt: str, settings: EditSettings) -> EditSession:
        """Generate the edited image, unless it is displayed already. Without a seed, nothing changes.

        Raises:
            ValueError: the prompt or a setting is invalid.
        """
        if self.seed is None or (self.step and self.step.is_of(self.seed, prompt, settings)):
            return self
        return dataclasses.replace(self, step=generate(context, self.seed, prompt, settings))

    def remember(self) -> EditSession:
        """Append the displayed edit to the history, unless it is the last one of the history."""
        if self.step is None or (self.history and self.history[-1] is self.step):
            return self
        return dataclasses.replace(self, history=(*self.history, self.step))

    def show(self, step: EditStep) -> EditSession:
        """Display ``step``, an edit of the same seed."""
        return dataclasses.replace(self, step=step)

    def undo(self) -> EditSession:
        """Display the edit before the displayed one, and remove later edits from the history.

        Raises:
            ValueError: there is no earlier edit.
        """
        history = self.history[:-1] if self.history and self.history[-1] is self.step else self.history
        if not history:
            raise ValueError("there is no earlier edit.")
        return dataclasses.replace(self, step=history[-1], history=history)

    def compared_image(self, comparison: str) -> Image.Image | None:
        """Return the image that is shown next to the edited image; None without an image."""
        if self.step is None:
            return self.image
        original = self.image or self.step.reconstruction  # a seed from a file may have no image
        if comparison == RECONSTRUCTION:
            return self.step.reconstruction
        return ImageChops.difference(original, self.step.edited) if comparison == DIFFERENCE else original

    @property
    def edited_image(self) -> Image.Image | None:
        """The edited image; None as long as the image is not inverted."""
        return None if self.step is None else self.step.edited


def generate(context: AppContext, seed: Seed, prompt: str, settings: EditSettings) -> EditStep:
    """Generate the reconstruction and the edited image of ``seed``.

    Raises:
        ValueError: the prompt or a setting is invalid.
    """
    config = edit_config(context.model.family, **{**DEFAULT_SETTINGS, **settings})
    reconstruction, edited = edit_image(context, seed, prompt, config)
    return EditStep(seed.digest, prompt, dict(settings), reconstruction, edited)


def open_image(
    context: AppContext,
    image: Image.Image,
    prompt: str,
    settings: EditSettings,
    *,
    on_step: Callable[[int, int], Any] = no_progress,
    suggestions: Mapping[str, str] | None = None,
) -> EditSession:
    """Invert ``image`` and reconstruct it from its seed.

    Args:
        context: the model and the settings of the page.
        image: image in the size of the model.
        prompt: prompt of the image.
        settings: the edit settings.
        on_step: see :func:`invert_image`.
        suggestions: edited prompts by the text of their button; None: other background colors.

    Raises:
        ValueError: the prompt or a setting is invalid, or the image cannot be inverted.
    """
    seed = invert_image(context, image, prompt, on_step=on_step)
    if suggestions is None:
        suggestions = context.info.background_edits(prompt)
    session = EditSession(image=image, seed=seed, suggestions=dict(suggestions))
    return session.render(context, prompt, settings).remember()


def open_seed(context: AppContext, seed: Seed, settings: EditSettings) -> EditSession:
    """Generate the image of a seed from a file. A file of an inversion also contains the inverted image."""
    image = None if seed.inversion is None else uint8_to_pil(seed.inversion.images[0])
    session = EditSession(image=image, seed=seed, suggestions=context.info.background_edits(seed.prompt))
    return session.render(context, seed.prompt, settings).remember()


def open_example(context: AppContext, example: Example, settings: EditSettings) -> EditSession:
    """Invert an example that has edited prompts, and show its first edit, after the reconstruction in the history."""
    seed = invert_image(context, example.image, example.prompt)
    edit = generate(context, seed, next(iter(example.edited_prompts.values())), settings)
    unedited = dataclasses.replace(edit, prompt=example.prompt, edited=edit.reconstruction)
    suggestions = dict(example.edited_prompts)
    return EditSession(example.image, seed, suggestions, step=edit, history=(unedited, edit))


def variants(context: AppContext, session: EditSession, prompt: str, settings: EditSettings) -> dict[str, EditStep]:
    """Generate the edit with each of the settings ``VARIANTS``; word weights and the edited region do not change.

    Raises:
        ValueError: there is no seed, or the prompt or a setting is invalid.
    """
    if session.seed is None:
        raise ValueError("there is no seed yet: invert an image first.")
    return {
        name: generate(context, session.seed, prompt, {key: shares.get(key, value) for key, value in settings.items()})
        for name, shares in VARIANTS.items()
    }
