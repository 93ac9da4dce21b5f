"""Prompt-aware adjustment of a latent before it is inverted (RNRI, arXiv 2312.12540, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.predictor import NoisePredictor
from rnri.sampling import LatentObserver, ignore, in_state_dtype, sample
from rnri.schedule import Schedule


@dataclass(frozen=True)
class PromptAware:
    """Adjusts the latent to the prompt, then inverts it with ``inverter``.

    The VAE's encoder knows no prompt, so its latent need not lie where the sampler ends under that prompt, and
    at large guidance there may then be no seed for it. The adjustment is ``z0 <- h(z0)``, ``iterations``
    times, where ``h`` adds noise for the ``steps`` cleanest steps of the schedule and removes it with the
    sampler under the prompt. What comes out is, by construction, a latent that the sampler reaches from an
    intermediate one. It is the reconstruction's target (``Inversion.z0``); how far it lies from the given
    latent is the method's price.

    The paper does not say how noise is added. ``inversion`` takes explicit DDIM inversion steps, so that ``h``
    changes nothing that the sampler can already reach; ``random`` draws ``q(z_t | z_0)``, with the same noise
    for every image.

    The evaluations of the adjustment are counted in the first row of the inversion's tables.
    """

    inverter: Inverter
    steps: int = 2
    iterations: int = 1
    noising: Literal["inversion", "random"] = "inversion"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.iterations < 1:
            raise ValueError(f"steps={self.steps}, iterations={self.iterations}: the adjustment needs at least 1.")
        if self.noising not in ("inversion", "random"):
            raise ValueError(f"noising={self.noising!r} is unknown; choose inversion or random.")

    @property
    def single_latent(self) -> bool:
        return self.inverter.single_latent

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentObserver = ignore
    ) -> Inversion:
        """The seeds of the adjusted latents of ``z0 [B,C,h,w]``."""
        before = predictor.calls
        adjusted = self.adjust(z0, predictor, schedule)
        spent = predictor.calls - before  # each over the whole batch
        inversion = self.inverter.invert(adjusted, predictor, schedule, on_step)
        evaluations = inversion.evaluations.clone()
        evaluations[0] += spent
        return replace(inversion, evaluations=evaluations)

    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        return self.inverter.reconstruct(inversion, predictor, schedule)

    @torch.no_grad()
    def adjust(self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """``h`` applied ``iterations`` times to ``z0 [B,C,h,w]``; float64."""
        end = schedule.last(min(self.steps, len(schedule)))
        z = in_state_dtype(z0)
        for k in range(self.iterations):
            noisy = self._invert(z, predictor, end) if self.noising == "inversion" else self._diffuse(z, end, k)
            z = sample(noisy, predictor, end)
        return z

    @staticmethod
    def _invert(z: Tensor, predictor: NoisePredictor, end: Schedule) -> Tensor:
        for i in reversed(range(len(end))):
            a, b = end.coefficients(i)
            z = a * z + b * predictor(z, int(end.timesteps[i]))
        return z

    def _diffuse(self, z: Tensor, end: Schedule, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + k)
        noise = torch.randn(z.shape[1:], generator=generator, dtype=torch.float64).to(z)
        a = float(end.alpha_bar[0])
        return a**0.5 * z + (1 - a) ** 0.5 * noise
