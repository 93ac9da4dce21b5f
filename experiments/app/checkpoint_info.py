"""What a checkpoint states about its training data: a sentence, its vocabulary, and edits that were measured."""

from __future__ import annotations

import html
import json
import re
from dataclasses import field
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from experiments.config.project import PROJECT
from rnri.validation import ConfigError, NonEmptyStr, dataclass

FILE = "page.json"
"""Name of the optional file in the folder of a checkpoint, with the fields of :class:`CheckpointInfo`."""
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class MeasuredEdits:
    """Edits of a drawing of the examples table that were measured to work.

    Attributes:
        image_id: number of the drawing in the table.
        prompt: prompt of the drawing.
        edited_prompts: edited prompts by the text of their button. The first one is shown with the example.
    """

    image_id: int
    prompt: NonEmptyStr
    edited_prompts: Annotated[dict[str, NonEmptyStr], MinLen(1)]


@dataclass(frozen=True)
class CheckpointInfo:
    """Training data of a checkpoint.

    Attributes:
        training_data: sentence that describes the training data; empty if it is unknown.
        words: all words of the training captions in lower case; empty if they are unknown.
        backgrounds: the words of the training captions for colors of the background.
        edits: measured edits of example drawings.
    """

    training_data: str = ""
    words: list[str] = field(default_factory=list)
    backgrounds: list[str] = field(default_factory=list)
    edits: list[MeasuredEdits] = field(default_factory=list)

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the words of ``prompt`` that are not in ``words``. If ``words`` is empty, no word is unknown."""
        if not self.words:
            return []
        vocabulary = set(self.words)
        return [word for word in WORD.findall(prompt) if word.lower() not in vocabulary]

    def mark_unknown_words(self, prompt: str) -> str:
        """Return ``prompt`` as HTML with marked unknown words and a sentence; empty if all words are in ``words``."""
        unknown = self.unknown_words(prompt)
        if not unknown:
            return ""
        pattern = rf"(?<![^\W_])({'|'.join(map(re.escape, dict.fromkeys(unknown)))})(?![^\W_])"
        parts = re.split(pattern, prompt)
        marked = "".join(
            f"<mark>{html.escape(part)}</mark>" if k % 2 else html.escape(part) for k, part in enumerate(parts)
        )
        total = len(WORD.findall(prompt))
        return (
            f'<p class="status">The model has learned {total - len(unknown)} of {total} words; marked words have no '
            f"meaning for it: {marked}</p>"
        )

    def background_edits(self, prompt: str) -> dict[str, str]:
        """Return edited prompts with other background colors by the text of their button.

        The dictionary is empty if ``prompt`` does not name a background color of ``backgrounds``.
        """
        names = "|".join(map(re.escape, self.backgrounds))
        match = re.search(rf"\b({names}) background\b", prompt) if names else None
        if match is None:
            return {}
        return {
            f"{color} background": prompt[: match.start(1)] + color + prompt[match.end(1) :]
            for color in self.backgrounds
            if color != match[1]
        }


def read_checkpoint_info(checkpoint: str) -> CheckpointInfo:
    """Read ``page.json`` in the local folder ``checkpoint``. Without this file, all fields are empty.

    Raises:
        ConfigError: the file is not valid.
    """
    path = Path(checkpoint) / FILE
    if not path.is_file():
        return CheckpointInfo()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        edits = [MeasuredEdits(**edit) for edit in values.pop("edits", [])]
        return CheckpointInfo(**values, edits=edits)
    except (ConfigError, ValueError, TypeError) as error:
        raise ConfigError("model.path", f"{path} is not valid ({error}); correct or delete this file.") from error


def model_sentence(checkpoint: str, lora: str | None, info: CheckpointInfo) -> str:
    """Return the name and the path of the model, and the sentence about its training data if there is one."""
    lora_text = f" with the LoRA {Path(lora).name}" if lora else ""
    path = checkpoint.removeprefix(f"{PROJECT}/")
    return f"Model: **{Path(checkpoint).name}**{lora_text} (`{path}`). {info.training_data}".rstrip()
