"""Attention edits inside the reconstruction of any inversion method, also those that store more than a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
    """Return the class of the model's edit settings: ``PromptToPrompt`` for UNets, ``Injection`` for transformers."""
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
    """Return ``(reconstructions, edits)``, clean latents ``[B,C,h,w]`` each, from one batch that contains both.

    It is ``rnri.editing.edit`` inside ``inverter.reconstruct`` instead of a pipeline call. It therefore applies to all
    methods, also those with their own sampler and those that store noise maps, offsets or a second latent. The current
    step follows from the timestep at which the network is called.

    Args:
        inversion: result of ``inverter`` for ``prompts``.
        prompts: source prompts, one per image.
        edited: edited prompts, one per image.
        edit_config: None means the default settings of ``edit_config_class(model)``.
        guidance: guidance scale of the reconstruction.

    Raises:
        ValueError: the numbers of prompts and images differ; ``edit_config`` has a blend, which needs the latents
            after every step; and as ``rnri.editing.edit``.
    """
    images = len(inversion.seed)
    if not len(prompts) == len(edited) == images:
        raise ValueError(
            f"{len(prompts)} prompts and {len(edited)} edited prompts for {images} images: the numbers must be equal."
        )
    if isinstance(edit_config, PromptToPrompt) and edit_config.blend:
        raise ValueError(
            f"blend={list(edit_config.blend)} needs the latents after every step: leave it empty, or use edit."
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
    """A predictor that sets ``state.step`` to the step of the timestep at which it is called."""

    state: EditState = field(kw_only=True)
    timesteps: Tensor = field(kw_only=True)  # [N]

    def __call__(self, z: Tensor, t: float) -> Tensor:
        self.state.step = min(int((self.timesteps > t).sum()), len(self.timesteps) - 1)
        return super().__call__(z, t)


def _duplicate_batch(inversion: Inversion) -> Inversion:
    """Return an inversion with all samples twice: samples 0 to B-1, then again 0 to B-1."""
    by_row = {name: torch.cat([getattr(inversion, name)] * 2) for name in ("seed", "z0")}
    tables = ("residuals", "nfe", "backward", "solved")  # [N,B]
    by_column = {name: torch.cat([getattr(inversion, name)] * 2, dim=1) for name in tables}
    aux = {name: torch.cat([values] * 2) for name, values in inversion.aux.items()}
    return replace(inversion, **by_row, **by_column, aux=aux)
