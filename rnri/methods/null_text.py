"""Methods that change the negative prompt's embedding instead of the seed."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import ddim_path, inversion
from rnri.models.predictor import Condition, NoisePredictor
from rnri.models.sampling import LatentCallback, ddim_step, no_callback, sample
from rnri.models.schedule import Schedule
from rnri.validation import dataclass

RATE_STEPS = 100  # in which null-text's published rate falls to 0


@dataclass(frozen=True)
class NegativePrompt(Inverter):
    """Negative-prompt inversion (Miyake et al. 2023, arXiv 2305.16807): the source prompt as the negative one.

    Guidance away from the source towards the source cancels, so the reconstruction is DDIM's without guidance
    whatever the scale; an edited prompt is guided away from the source. Nothing is stored but the prompt.
    """

    seed_only: ClassVar[bool] = False

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        found, _ = ddim_path(z0, predictor.unguided(), schedule, on_step)
        # Its residuals are those of the equation without guidance, which is not the predictor's.
        return replace(found, seed_only=False, residuals=torch.full_like(found.residuals, torch.nan))

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        return sample(inversion.seed, predictor.unguided(), schedule)


@dataclass(frozen=True)
class NullText(Inverter):
    """Null-text inversion (Mokady et al. 2023, arXiv 2211.09794).

    DDIM inversion without guidance gives pivots; then, from noisy to clean, the negative embedding of each step
    is optimized until the guided sampler meets the next pivot. The embeddings are kept,
    ``aux["negative"] [B,N,L,D]``. As in the authors' code, Adam's rate is ``learning_rate (1 - j / 100)`` at the
    ``j``-th step from the noisy end, each step begins with the embedding of the one before, and an image stops after
    the update whose loss was below ``threshold (1 + 2 j)``. The rate falls to 0 in 100 steps.

    The authors took 50 steps. Counting ``j`` in fiftieths of a shorter schedule, so that rate and threshold fall as
    far, is worse: latent MSE of eight drawings on the embedded model at guidance 7.5, as published and so rescaled:
    0.20 and 0.22 in 4 steps, 0.036 and 0.057 in 10, 1.2e-3 and 2.1e-3 in 20.

    Without guidance there is no negative embedding, and it is DDIM inversion.

    Attributes:
        iterations: Adam's updates for each step of the sampler, at most.
    """

    iterations: PositiveInt = 10
    learning_rate: PositiveFloat = 0.01
    threshold: NonNegativeFloat = 1e-5

    seed_only: ClassVar[bool] = False

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of ``z0 [B,C,h,w]``; needs gradients of the network, hence no ``torch.inference_mode``.

        Raises:
            ValueError: guidance over a schedule of more than 100 steps.
        """
        negative = getattr(predictor.denoiser, "negative", None)
        if negative is not None and len(schedule) > RATE_STEPS:
            raise ValueError(
                f"null-text inversion over {len(schedule)} steps: its rate falls to 0 in {RATE_STEPS}; "
                f"use at most {RATE_STEPS}."
            )
        with torch.no_grad():
            found, path = ddim_path(z0, predictor.unguided(), schedule, on_step)
        if negative is None:
            return replace(found, seed_only=False)
        z = found.seed
        forward, backward = found.nfe.clone(), found.backward.clone()
        embeddings: list[Tensor] = []
        for i in range(len(schedule)):
            k = len(schedule) - 1 - i
            negative, spent, returned = self._fit(z, path[k], negative, predictor, schedule, i)
            embeddings.append(negative.text)
            forward[k] += spent + 1
            backward[k] += returned
            with torch.no_grad():
                z = ddim_step(z, predictor.with_negative(negative), schedule, i)
        return inversion(
            found.seed, found.z0, forward, backward=backward, exact=False, seed_only=False,
            aux={"negative": torch.stack(embeddings, 1)},
        )  # fmt: skip

    @torch.enable_grad()  # the caller may well have switched it off, as Lightning's loops do
    def _fit(
        self, z: Tensor, target: Tensor, negative: Condition, predictor: NoisePredictor, schedule: Schedule, i: int
    ) -> tuple[Condition, Tensor, Tensor]:
        """The negative condition of step ``i``, and its forward and backward evaluations, int64 ``[B]``."""
        (a, b), t, denoiser = schedule.coefficients(i), schedule.timestep(i), predictor.denoiser
        with torch.no_grad():
            positive = predictor.unguided()(z, t)
        dtype = negative.text.dtype
        # In half precision Adam's epsilon and squared gradients are zero, and its step is 0 / 0.
        text = negative.text.detach().to(torch.promote_types(dtype, torch.float32), copy=True).requires_grad_()
        optimizer = torch.optim.Adam([text], lr=self.learning_rate * (1 - i / RATE_STEPS))
        forward, backward = torch.ones(len(z), dtype=torch.int64), torch.zeros(len(z), dtype=torch.int64)
        active = torch.arange(len(z))
        for _ in range(self.iterations):
            rows = active.to(z.device)
            condition = replace(negative, text=text.to(dtype)).select(active)
            alone = replace(denoiser.unguided(), positive=condition)
            noise = replace(predictor, denoiser=alone)(z[rows], t)
            guided = noise + denoiser.guidance * (positive[rows] - noise)
            loss = ((z[rows] - b * guided) / a - target[rows]).square().flatten(1).mean(1)
            forward[active] += 1
            optimizer.zero_grad()
            loss.sum().backward()
            backward[active] += 1
            text = self._step(optimizer, text, active)
            active = active[(loss.detach() >= self.threshold * (1 + 2 * i)).cpu()]
            if not len(active):
                break
        return replace(negative, text=text.detach().to(dtype)), forward, backward

    @staticmethod
    def _step(optimizer: torch.optim.Adam, text: Tensor, rows: Tensor) -> Tensor:
        """A step for ``rows``; the others' embeddings stay, whatever momentum they have."""
        before = text.detach().clone()
        optimizer.step()
        stays = torch.ones(len(text), dtype=torch.bool)
        stays[rows] = False
        with torch.no_grad():
            text[stays.to(text.device)] = before[stays.to(text.device)]
        return text

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        if "negative" not in inversion.aux:
            return sample(inversion.seed, predictor, schedule)
        z = inversion.seed
        for i in range(len(schedule)):
            negative = replace(predictor.denoiser.negative, text=inversion.aux["negative"][:, i])
            z = ddim_step(z, predictor.with_negative(negative), schedule, i)
        return z
