"""Null-text inversion: optimizes the embedding of the negative prompt instead of the seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from rnri.inversion import NFE_PER_BACKWARD, Inversion, Inverter
from rnri.methods.common import ddim_path, make_inversion
from rnri.methods.registry import register_method
from rnri.models.predictor import Condition, NoisePredictor
from rnri.models.sampling import LatentCallback, ddim_step, no_callback, sample
from rnri.models.schedule import Schedule
from rnri.validation import dataclass

MAX_STEPS = 100
"""Number of sampler steps after which the learning rate of the published method reaches 0."""

FIXED_NFE_PER_STEP = 3
"""Number of network evaluations per step outside the optimization.

One evaluation is for DDIM inversion, one for the prediction with the prompt, and one for the sampler.
"""


@register_method(
    "null_text",
    paper="Null-text inversion, Mokady et al. 2023, arXiv 2211.09794",
    source="huggingface/diffusers@16163e3 examples/community/pipeline_null_text_inversion.py:119-138",
)
@dataclass(frozen=True)
class NullText(Inverter):
    """Null-text inversion (Mokady et al. 2023, arXiv 2211.09794).

    First, DDIM inversion without guidance computes a latent for each noise level; these latents are called pivots. Then
    the embedding ``e`` of the negative prompt is optimized for each sampler step, from noisy to clean:
    ``e = argmin mean |DDIM(z_t; e) - pivot_s|^2``. Here ``DDIM`` is the sampler's step with guidance, which should lead
    from the current latent ``z_t`` to the next pivot ``pivot_s``. The optimized embeddings are stored as
    ``aux["negative"] [B,N,L,D]`` for B images, N steps, L tokens and D embedding channels. As in the authors' code, the
    learning rate of Adam at sampler step ``j``, counted from 0 at the noisy end, is ``learning_rate * (1 - j / 100)``.
    The optimization of a step starts with the embedding of the previous step. At sampler step ``j``, the optimization
    of an image stops after the first update whose loss is below ``threshold * (1 + 2 j)``.

    The authors use 50 steps. With fewer steps, ``j`` is not rescaled to end at 49, because rescaling increases the
    reconstruction error. Without rescaling, the mean squared error of the reconstructed latents is 0.20 with 4 steps,
    0.036 with 10 steps and 1.2e-3 with 20 steps. With rescaling of ``j``, the mean squared error is 0.22 with 4 steps,
    0.057 with 10 steps and 2.1e-3 with 20 steps. The errors were measured at guidance scale 7.5 with eight images and
    the small model ``emoji`` that ships with the repository.

    Without guidance there is no negative embedding, and the method equals DDIM inversion.

    Attributes:
        iterations: maximum number of Adam updates per sampler step.
        learning_rate: learning rate of Adam at the noisiest sampler step.
        threshold: loss below which the optimization at the noisiest sampler step stops; at sampler step ``j`` the
            threshold is multiplied by ``1 + 2 j``.
    """

    iterations: PositiveInt = 10
    learning_rate: PositiveFloat = 0.01
    threshold: NonNegativeFloat = 1e-5

    seed_only: ClassVar[bool] = False

    @property
    def nfe_per_step(self) -> float:
        """Maximum number of network evaluations per step with guidance; a backward pass counts as two evaluations."""
        return float(FIXED_NFE_PER_STEP + self.iterations * (1 + NFE_PER_BACKWARD))

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the DDIM inversion of the clean latents ``z0 [B,C,h,w]``, with the optimized embeddings in ``aux``.

        ``invert`` computes gradients of the network, so that it cannot run under ``torch.inference_mode``.

        Raises:
            ValueError: guidance is used with a schedule of more than 100 steps.
        """
        negative = getattr(predictor.denoiser, "negative", None)
        if negative is not None and len(schedule) > MAX_STEPS:
            raise ValueError(
                f"null-text inversion supports at most {MAX_STEPS} sampler steps, got {len(schedule)}; use at most "
                f"{MAX_STEPS} steps, because the published learning rate is 0 after step {MAX_STEPS}."
            )
        with torch.no_grad():
            ddim, path = ddim_path(z0, predictor.unguided(), schedule, on_step)
        if negative is None:
            return replace(ddim, seed_only=False)
        z = ddim.seed
        nfe = ddim.nfe.clone()
        backward = ddim.backward.clone()
        embeddings: list[Tensor] = []
        for i in range(len(schedule)):
            k = len(schedule) - 1 - i
            negative, step_nfe, step_backward = self._fit(z, path[k], negative, predictor, schedule=schedule, i=i)
            embeddings.append(negative.text)
            nfe[k] += step_nfe + 1
            backward[k] += step_backward
            with torch.no_grad():
                z = ddim_step(z, predictor.with_negative(negative), schedule, i)
        aux = {"negative": torch.stack(embeddings, 1)}
        return make_inversion(ddim.seed, ddim.z0, nfe, backward=backward, exact=False, seed_only=False, aux=aux)

    @torch.enable_grad()  # gradients are disabled in Lightning's validation, test and predict loops
    def _fit(
        self, z: Tensor, target: Tensor, negative: Condition, predictor: NoisePredictor, *, schedule: Schedule, i: int
    ) -> tuple[Condition, Tensor, Tensor]:
        """Return the optimized negative condition of step ``i``, and the evaluation counts of each sample.

        The counts are the numbers of forward evaluations and of backward passes, each int64 ``[B]``.

        Args:
            z: latents before step ``i``, ``[B,C,h,w]``.
            target: latents to which step ``i`` should lead, ``[B,C,h,w]``.
            negative: negative condition with which the optimization starts.
            predictor: predictor with guidance.
            schedule: schedule of the sampler.
            i: index of the sampler step, 0 at the noisy end.
        """
        a, b = schedule.coefficients(i)
        t = schedule.timestep(i)
        denoiser: Any = predictor.denoiser
        with torch.no_grad():
            positive = predictor.unguided()(z, t)
        dtype = negative.text.dtype
        # Adam runs in float32 or float64, because in half precision its epsilon and the squared gradients underflow to
        # zero, and the update is 0 / 0.
        text = negative.text.detach().to(torch.promote_types(dtype, torch.float32), copy=True).requires_grad_()
        optimizer = torch.optim.Adam([text], lr=self.learning_rate * (1 - i / MAX_STEPS))
        forward = torch.ones(len(z), dtype=torch.int64)
        backward = torch.zeros(len(z), dtype=torch.int64)
        active = torch.arange(len(z))
        for _ in range(self.iterations):
            rows = active.to(z.device)
            condition = replace(negative, text=text.to(dtype)).select(active)
            unconditional = replace(denoiser.unguided(), positive=condition)
            noise = replace(predictor, denoiser=unconditional)(z[rows], t)
            guided = denoiser.guided(noise, positive[rows])
            loss = ((z[rows] - b * guided) / a - target[rows]).square().flatten(1).mean(1)
            forward[active] += 1
            optimizer.zero_grad()
            loss.sum().backward()
            backward[active] += 1
            text = self._update_rows(optimizer, text, active)
            active = active[(loss.detach() >= self.threshold * (1 + 2 * i)).cpu()]
            if not len(active):
                break
        return replace(negative, text=text.detach().to(dtype)), forward, backward

    @staticmethod
    def _update_rows(optimizer: torch.optim.Adam, text: Tensor, rows: Tensor) -> Tensor:
        """Update only the embeddings of the samples ``rows`` by one step of ``optimizer``; return the embeddings.

        The embeddings of all samples that are not in ``rows`` are restored after the step, because Adam's momentum also
        changes these embeddings.
        """
        before = text.detach().clone()
        optimizer.step()
        inactive = torch.ones(len(text), dtype=torch.bool)
        inactive[rows] = False
        with torch.no_grad():
            text[inactive.to(text.device)] = before[inactive.to(text.device)]
        return text

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that are sampled with the optimized negative embeddings."""
        if "negative" not in inversion.aux:
            return sample(inversion.seed, predictor, schedule)
        denoiser: Any = predictor.denoiser
        z = inversion.seed
        for i in range(len(schedule)):
            negative = replace(denoiser.negative, text=inversion.aux["negative"][:, i])
            z = ddim_step(z, predictor.with_negative(negative), schedule, i)
        return z
