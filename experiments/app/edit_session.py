"""The state of a visitor in the tab Edit: the image, its seed, the displayed edit, and the history of edits."""

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
"""Values of the edit settings by name; :func:`experiments.app.edits.edit_controls` returns the names."""

DEFAULT_SETTINGS: EditSettings = {"cross": 0.4, "self_attention": 0.4, "weights": "", "blend": "", "share": 0.2}
VARIANTS: Mapping[str, EditSettings] = {
    "close to the image": {"cross": 0.8, "self_attention": 0.8, "share": 0.4},
    "default": {"cross": 0.4, "self_attention": 0.4, "share": 0.2},
    "close to the prompt": {"cross": 0.0, "self_attention": 0.0, "share": 0.05},
}
"""The three variants of an edit that the page offers: dict from the name of a variant to its edit settings.

The values are fractions of the sampling steps. In this fraction of the steps, the edited image uses the attention of
the source image.
"""
YOUR_IMAGE = "Your image"
RECONSTRUCTION = "Reconstruction"
DIFFERENCE = "Difference"
COMPARISONS = (YOUR_IMAGE, RECONSTRUCTION, DIFFERENCE)
"""Names of the images that the page can show next to the edited image."""


@dataclass(frozen=True)
class EditStep:
    """An edited image, and the prompt and the settings with which the image was generated.

    Attributes:
        digest: hash of the seed (:attr:`experiments.app.edits.Seed.digest`).
        prompt: the edited prompt.
        settings: the edit settings by name.
        reconstruction: image that is generated from the seed with the prompt of the source image.
        edited: image that is generated from the seed with the edited prompt.
    """

    digest: str
    prompt: str
    settings: dict[str, Any]
    reconstruction: Image.Image
    edited: Image.Image

    def is_of(self, seed: Seed, prompt: str, settings: EditSettings) -> bool:
        """Return whether the image was generated from ``seed`` with ``prompt`` and ``settings``."""
        return (self.digest, self.prompt, self.settings) == (seed.digest, prompt, settings)


@dataclass(frozen=True)
class EditSession:
    """The state of a visitor in the tab Edit.

    Attributes:
        image: the uploaded or chosen image in the image size of the model; None if the visitor has not chosen an image.
        seed: the seed of the image; None if the image is not inverted.
        suggestions: dict that maps the text of a button to an edited prompt.
        step: the displayed edit; None if no edit is displayed.
        history: the finished edits, the oldest first.
    """

    image: Image.Image | None = None
    seed: Seed | None = None
    suggestions: dict[str, str] = field(default_factory=dict)
    step: EditStep | None = None
    history: tuple[EditStep, ...] = ()

    def render(self, context: AppContext, prompt: str, settings: EditSettings) -> EditSession:
        """Return a session with the edited image for ``prompt`` and ``settings``.

        If the session has no seed, or already displays this edit, the session is returned unchanged.

        Raises:
            ValueError: the prompt or a setting is invalid.
        """
        if self.seed is None or (self.step and self.step.is_of(self.seed, prompt, settings)):
            return self
        return dataclasses.replace(self, step=generate(context, self.seed, prompt, settings))

    def remember(self) -> EditSession:
        """Return a session whose history ends with the displayed edit.

        If no edit is displayed, or the displayed edit is already the last edit of the history, the session is returned
        unchanged.
        """
        if self.step is None or (self.history and self.history[-1] is self.step):
            return self
        return dataclasses.replace(self, history=(*self.history, self.step))

    def show(self, step: EditStep) -> EditSession:
        """Return a session that displays ``step``, an edit of the same seed."""
        return dataclasses.replace(self, step=step)

    def undo(self) -> EditSession:
        """Return a session that displays the last edit of the history.

        If the last edit is displayed already, it is removed from the history, and the edit before it is displayed.

        Raises:
            ValueError: there is no earlier edit.
        """
        history = self.history[:-1] if self.history and self.history[-1] is self.step else self.history
        if not history:
            raise ValueError("there is no earlier edit: only edits that this page has shown can be undone.")
        return dataclasses.replace(self, step=history[-1], history=history)

    def compared_image(self, comparison: str) -> Image.Image | None:
        """Return the image to show next to the edited image, or None if the session has no image.

        ``comparison`` is one of ``COMPARISONS``: the source image, its reconstruction, or the absolute difference
        between the source image and the edited image. If no edit is displayed, the source image is returned.
        """
        if self.step is None:
            return self.image
        original = self.image or self.step.reconstruction  # the file of a seed may contain no image
        if comparison == RECONSTRUCTION:
            return self.step.reconstruction
        return ImageChops.difference(original, self.step.edited) if comparison == DIFFERENCE else original

    @property
    def edited_image(self) -> Image.Image | None:
        """The edited image, or None if no edit is displayed."""
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
        image: image in the image size of the model.
        prompt: prompt of the image.
        settings: the edit settings.
        on_step: function that is called after each inversion step, see :func:`invert_image`.
        suggestions: dict that maps the text of a button to an edited prompt. None means ``prompt`` with other
            background colors.

    Raises:
        ValueError: the prompt or a setting is invalid, or the image cannot be inverted.
    """
    seed = invert_image(context, image, prompt, on_step=on_step)
    if suggestions is None:
        suggestions = context.info.background_edits(prompt)
    session = EditSession(image=image, seed=seed, suggestions=dict(suggestions))
    return session.render(context, prompt, settings).remember()


def open_seed(context: AppContext, seed: Seed, settings: EditSettings) -> EditSession:
    """Return a session for a seed that was read from a file, and generate the image of the seed.

    If the file also contains the inverted image, the session shows that image, too.
    """
    image = None if seed.inversion is None else uint8_to_pil(seed.inversion.images[0])
    session = EditSession(image=image, seed=seed, suggestions=context.info.background_edits(seed.prompt))
    return session.render(context, seed.prompt, settings).remember()


def open_example(context: AppContext, example: Example, settings: EditSettings) -> EditSession:
    """Invert an example that has edited prompts, and display its first edit.

    The history contains the reconstruction and the first edit.
    """
    seed = invert_image(context, example.image, example.prompt)
    edit = generate(context, seed, next(iter(example.edited_prompts.values())), settings)
    unedited = dataclasses.replace(edit, prompt=example.prompt, edited=edit.reconstruction)
    suggestions = dict(example.edited_prompts)
    return EditSession(example.image, seed, suggestions, step=edit, history=(unedited, edit))


def variants(context: AppContext, session: EditSession, prompt: str, settings: EditSettings) -> dict[str, EditStep]:
    """Generate the edit of ``prompt`` with the settings of each variant in ``VARIANTS``.

    All other settings, such as word weights, are the values in ``settings``.

    Raises:
        ValueError: there is no seed, or the prompt or a setting is invalid.
    """
    if session.seed is None:
        raise ValueError("there is no seed yet: invert an image first.")
    return {
        name: generate(context, session.seed, prompt, {key: shares.get(key, value) for key, value in settings.items()})
        for name, shares in VARIANTS.items()
    }
