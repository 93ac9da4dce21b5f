"""Interface between ``rnri.editing`` and the attention of one architecture."""

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
    """What changes during one call of a pipeline: the attention processor, and the latents after each step."""

    processor: Any
    after_step: Callable[[Tensor], Tensor] = identity


class AttentionEditor(ABC):
    """Creates the attention processors of edits; a family returns its editor from ``attention_editor()``."""

    config_class: ClassVar[type]
    """Class of the edit's settings, constructible without arguments: ``PromptToPrompt`` or ``Injection``."""

    @abstractmethod
    def control(
        self, config: Any, state: EditState, prompts: Sequence[str], image_size: tuple[int, int]
    ) -> AttentionControl:
        """Return the control of a batch of source and edited ``prompts``, for images ``(H, W)``.

        Raises:
            ValueError: ``config`` names words that no prompt contains.
        """
