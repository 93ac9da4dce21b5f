"""Editing of an image by its prompt: an inverted one's attention is changed while the pipeline runs, no more."""

from rnri.editing.edit import EditResult, edit
from rnri.editing.injection import Injection
from rnri.editing.inversion_free import Editor, FlowEdit, PseudoGuidance
from rnri.editing.latents import attention_edit, edit_latents
from rnri.editing.prompt_to_prompt import PromptToPrompt
from rnri.editing.token_alignment import Alignment, Prompt, align

__all__ = [
    "Alignment",
    "EditResult",
    "Editor",
    "FlowEdit",
    "Injection",
    "Prompt",
    "PromptToPrompt",
    "PseudoGuidance",
    "align",
    "attention_edit",
    "edit",
    "edit_latents",
]
