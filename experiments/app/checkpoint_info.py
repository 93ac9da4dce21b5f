"""Information on the training data of a checkpoint: a sentence, a vocabulary, and edits that are known to work."""

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
"""Name of an optional file in the folder of a checkpoint; the file contains the fields of :class:`CheckpointInfo`."""
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class MeasuredEdits:
    """An example drawing and edits of this drawing. Measurements have shown that these edits work.

    Attributes:
        image_id: value of the column ``image_id`` of the drawing in the table of examples.
        prompt: prompt of the drawing.
        edited_prompts: dict that maps the text of a button to an edited prompt. The page shows the first edit with the
            example.
    """

    image_id: int
    prompt: NonEmptyStr
    edited_prompts: Annotated[dict[str, NonEmptyStr], MinLen(1)]


@dataclass(frozen=True)
class CheckpointInfo:
    """Information on the training data of a checkpoint.

    Attributes:
        training_data: sentence that describes the training data; empty if the training data are unknown.
        words: all words of the training captions in lower case; empty if the words are unknown.
        backgrounds: the words with which training captions name the color of the background.
        edits: edits of example drawings that are known to work.
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
        """Return HTML with ``prompt``, its unknown words marked, and a sentence about them.

        Unknown words do not occur in the training captions. If no word is unknown, the returned string is empty.
        """
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
            f'<p class="status">The training captions contain {total - len(unknown)} of {total} words; the model does '
            f"not know the marked words: {marked}</p>"
        )

    def background_edits(self, prompt: str) -> dict[str, str]:
        """Return a dict that maps the text of a button to ``prompt`` with another background color.

        The dict is empty if ``prompt`` does not contain a background color of ``backgrounds``.
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
    """Read ``page.json`` in the local folder ``checkpoint``. If the file does not exist, all fields are empty.

    Raises:
        ConfigError: the content of ``page.json`` is not valid.
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
    """Return Markdown with the name and the path of the model, followed by the sentence about its training data."""
    lora_text = f" with the LoRA {Path(lora).name}" if lora else ""
    path = checkpoint.removeprefix(f"{PROJECT}/")
    return f"Model: **{Path(checkpoint).name}**{lora_text} (`{path}`). {info.training_data}".rstrip()
