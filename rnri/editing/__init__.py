"""Editing of an inverted image by its prompt, in any pipeline: its attention is changed while it runs, no more."""

from rnri.editing.edit import Edited, edit
from rnri.editing.injection import Injection
from rnri.editing.prompt_to_prompt import PromptToPrompt
from rnri.editing.words import Alignment, Prompt, align

__all__ = ["Alignment", "Edited", "Injection", "Prompt", "PromptToPrompt", "align", "edit"]
