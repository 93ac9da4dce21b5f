"""Interface with which ``rnri.editing`` changes the attention layers of a network architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rnri.models.attention.state import EditState


def identity(latents: Tensor) -> Tensor:
    return latents


@dataclass(frozen=True)
class AttentionControl:
    """The attention processor of one pipeline call, and a function that changes the latents after each sampling step.

    Attributes:
        processor: diffusers attention processor for all attention layers of the network.
        after_step: function that maps the latents after a sampling step to the latents of the next step.
    """

    processor: Any
    after_step: Callable[[Tensor], Tensor] = identity


class AttentionEditor(ABC):
    """Creates the attention processors of edits; ``Family.attention_editor()`` returns the editor of a model family."""

    config_class: ClassVar[type]
    """Class of the edit settings, ``PromptToPrompt`` or ``Injection``; all arguments of the class have defaults."""

    @abstractmethod
    def control(
        self, config: Any, state: EditState, prompts: Sequence[str], image_size: tuple[int, int]
    ) -> AttentionControl:
        """Return the attention processor of an edit, and the function that changes the latents after each step.

        Args:
            config: settings of the edit, an instance of ``config_class``.
            state: state of the edit, which all attention layers share.
            prompts: all prompts of the batch, source prompts and edited prompts.
            image_size: height and width ``(H, W)`` of the images in pixels.

        Raises:
            ValueError: ``config`` names words that no prompt contains.
        """
