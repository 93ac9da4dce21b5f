"""Edits of latents by any inversion method, also those that keep more than a seed: attention controlled around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from rnri.editing.edit import attn_processor, control_of
from rnri.editing.injection import Injection
from rnri.editing.prompt_to_prompt import PromptToPrompt
from rnri.editing.state import EditState
from rnri.inversion import Inversion, Inverter
from rnri.models.diffusion import LatentDiffusion
from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule
from rnri.models.unet import UNetFamily


def attention_edit(model: LatentDiffusion) -> type[PromptToPrompt] | type[Injection]:
    """What edits by attention in the model's network: ``PromptToPrompt`` in UNets, ``Injection`` in transformers."""
    return PromptToPrompt if isinstance(model.family, UNetFamily) else Injection


def edit_latents(
    model: LatentDiffusion,
    inverter: Inverter,
    inversion: Inversion,
    prompts: Sequence[str],
    edited: Sequence[str],
    schedule: Schedule,
    edit_config: PromptToPrompt | Injection | None = None,
    guidance: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """``(reconstructions, edits)``, clean latents ``[B,C,h,w]`` each, of one reconstruction of both in a batch.

    What ``rnri.editing.edit`` does by a call of the pipeline, done within ``inverter.reconstruct``: every method edits
    so, also those whose sampler is their own or that keep noise maps, offsets or a second latent. Which step it is
    follows from the timestep that the network is called at.

    Args:
        inversion: by ``inverter``, of ``prompts``, one an image.
        edited: one edited prompt an image.
        edit_config: what is taken over; None is the default of ``attention_edit``.
        guidance: of the reconstruction.

    Raises:
        ValueError: prompts and images that are not as many; a blend, which needs the latents after every step; and as
            ``rnri.editing.edit``.
    """
    count = len(inversion.seed)
    if not len(prompts) == len(edited) == count:
        raise ValueError(f"{len(prompts)} prompts and {len(edited)} edits of {count} images: give as many.")
    if isinstance(edit_config, PromptToPrompt) and edit_config.blend:
        raise ValueError(
            f"blend={list(edit_config.blend)} acts on the latents after every step: leave it empty, or use edit."
        )
    texts = [*prompts, *edited]
    state = EditState([*range(count)] * 2, steps=lambda: len(schedule))
    control = control_of(model.family, edit_config, state, texts, model.image_size)
    plain = model.predictor(texts, guidance)
    predictor = SteppedPredictor(plain.denoiser, plain.nfe, state=state, timesteps=schedule.timesteps)
    with torch.no_grad(), attn_processor(model.family.network, control.processor):
        z = inverter.reconstruct(_duplicate_batch(inversion), predictor, schedule)
    return z[:count], z[count:]


@dataclass(frozen=True)
class SteppedPredictor(NoisePredictor):
    """A predictor that tells ``state`` the step that its timestep belongs to, before it predicts."""

    state: EditState = field(kw_only=True)
    timesteps: Tensor = field(kw_only=True)  # [N]

    def __call__(self, z: Tensor, t: float) -> Tensor:
        self.state.step = min(int((self.timesteps > t).sum()), len(self.timesteps) - 1)
        return super().__call__(z, t)


def _duplicate_batch(inversion: Inversion) -> Inversion:
    """The rows of ``inversion`` followed by themselves."""
    by_row = {name: torch.cat([getattr(inversion, name)] * 2) for name in ("seed", "z0")}
    tables = ("residuals", "nfe", "backward", "solved")
    by_column = {name: torch.cat([getattr(inversion, name)] * 2, dim=1) for name in tables}
    aux = {name: torch.cat([kept] * 2) for name, kept in inversion.aux.items()}
    own = {f.name: getattr(inversion, f.name) for f in fields(Inversion)} | by_row | by_column | {"aux": aux}
    return Inversion(**own)
