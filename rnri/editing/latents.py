"""Edits images with any inversion method: changes the attention while the method reconstructs the images.

Unlike ``rnri.editing.edit``, which calls a pipeline, this module supports methods that store more than a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rnri.editing.edit import attention_control, attn_processor
from rnri.inversion import Inversion, Inverter
from rnri.models.attention.injection import Injection
from rnri.models.attention.prompt_to_prompt import PromptToPrompt
from rnri.models.attention.state import EditState
from rnri.models.diffusion import LatentDiffusion
from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule


def edit_config_class(model: LatentDiffusion) -> type[PromptToPrompt] | type[Injection]:
    """Return the settings class of the model's edits: ``PromptToPrompt`` for UNets, ``Injection`` for transformers."""
    return model.family.attention_editor().config_class


def edit_latents(
    model: LatentDiffusion,
    inverter: Inverter,
    inversion: Inversion,
    schedule: Schedule,
    *,
    prompts: Sequence[str],
    edited: Sequence[str],
    edit_config: PromptToPrompt | Injection | None = None,
    guidance: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the clean latents of the reconstructions and of the edits, each ``[B,C,h,w]``, computed in one batch.

    This function computes the same edit as ``rnri.editing.edit``, but inside ``inverter.reconstruct`` instead of a
    pipeline call. The function therefore works for all inversion methods, including methods with their own sampler and
    methods that store noise maps, offsets or a second latent in addition to the seed. The attention edit needs the
    index of the current step, which is computed from the timestep of each network call.

    Args:
        inversion: the inversion that ``inverter`` returned for the source prompts.
        prompts: source prompts, one per image.
        edited: edited prompts, one per image.
        edit_config: settings of the edit; None means the default settings of ``edit_config_class(model)``.
        guidance: guidance scale of the reconstructions and of the edits.

    Raises:
        ValueError: the numbers of prompts, edited prompts and images differ; ``edit_config`` is invalid as described in
            ``rnri.editing.edit``; or ``edit_config.blend`` is not empty. Blending changes the latents after every step,
            which is not possible inside ``inverter.reconstruct``.
    """
    images = len(inversion.seed)
    if not len(prompts) == len(edited) == images:
        raise ValueError(
            f"prompts, edited: got {len(prompts)} prompts and {len(edited)} edited prompts for {images} images; pass "
            "one prompt and one edited prompt per image."
        )
    if isinstance(edit_config, PromptToPrompt) and edit_config.blend:
        raise ValueError(
            f"blend={list(edit_config.blend)} needs the latents after every step, which edit_latents cannot change: "
            "leave blend empty, or use rnri.editing.edit."
        )
    texts = [*prompts, *edited]
    state = EditState([*range(images)] * 2, steps=lambda: len(schedule))
    control = attention_control(model.family, edit_config, state, texts, image_size=model.image_size)
    predictor = model.predictor(texts, guidance)
    tracking = StepTrackingPredictor(predictor.denoiser, predictor.nfe, state=state, timesteps=schedule.timesteps)
    with torch.no_grad(), attn_processor(model.family.network, control.processor):
        z = inverter.reconstruct(_duplicate_batch(inversion), tracking, schedule)
    return z[:images], z[images:]


@dataclass(frozen=True)
class StepTrackingPredictor(NoisePredictor):
    """A predictor that sets ``state.step`` in each call, so that attention processors know the current sampling step.

    Attributes:
        state: state of the edit, which the attention processors read.
        timesteps: descending timesteps of the N sampling steps, ``[N]``. A call at timestep ``t`` belongs to the first
            step whose timestep is at most ``t``, or to the last step if ``t`` is below all timesteps.
    """

    state: EditState = field(kw_only=True)
    timesteps: Tensor = field(kw_only=True)  # [N]

    def __call__(self, z: Tensor, t: float) -> Tensor:
        self.state.step = min(int((self.timesteps > t).sum()), len(self.timesteps) - 1)
        return super().__call__(z, t)


def _duplicate_batch(inversion: Inversion) -> Inversion:
    """Return an inversion of 2B samples: two copies of the B samples of ``inversion``, one after the other."""
    by_row: dict[str, Any] = {name: torch.cat([getattr(inversion, name)] * 2) for name in ("seed", "z0")}
    tables = ("residuals", "nfe", "backward", "solved")  # [N,B]
    by_column: dict[str, Any] = {name: torch.cat([getattr(inversion, name)] * 2, dim=1) for name in tables}
    aux = {name: torch.cat([values] * 2) for name, values in inversion.aux.items()}
    return replace(inversion, **by_row, **by_column, aux=aux)
