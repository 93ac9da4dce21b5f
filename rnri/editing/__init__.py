"""Edit an image by changing its prompt: sample from its inverted seed and reuse the attention of the source image."""

from rnri.editing.edit import EditResult, edit
from rnri.editing.inversion_free import Editor, FlowEdit, PseudoGuidance
from rnri.editing.latents import edit_config_class, edit_latents
from rnri.models.attention.injection import Injection
from rnri.models.attention.prompt_to_prompt import PromptToPrompt
from rnri.models.attention.token_alignment import Alignment, Prompt, align

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
    "edit",
    "edit_config_class",
    "edit_latents",
]
