"""Base class of the inversion methods that store the noise of every step of a stochastic sampler."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import constant_counts, make_inversion
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import RandomSeed, dataclass

Step = Callable[[Tensor, NoisePredictor, int], tuple[Tensor, float]]
"""Function ``(z, predictor, i)`` that computes step ``i`` of a stochastic sampler.

The function returns the mean ``[B,C,h,w]`` and the standard deviation of the next latent. The function must be called
for all steps in order, from noisy to clean.
"""


@dataclass(frozen=True)
class NoiseMaps(Inverter):
    """Draws a noisy latent at every noise level, and stores noise maps with which the sampler generates these latents.

    The noisy latents are ``z_t = alpha_t z_0 + sigma_t n_t`` with the clean latent ``z_0`` and independent noise
    ``n_t``. The noise map of a step is ``(z_s - mean) / deviation``, where ``mean`` and ``deviation`` are the mean and
    the standard deviation of the sampler's step from ``z_t`` to ``z_s``. There is one noise map per step; the noise
    maps are stored as ``aux["maps"] [B,N,C,h,w]``. The inversion is exact by construction if every step adds noise. A
    step adds no noise if it ends at the clean latent (``alpha = 1``) or does not change the noise level. The noise map
    of a step that adds no noise is zero, so that the inversion is not exact.

    All images of a batch use the same random noise, so that the result of an image in float32 does not depend on the
    other images of the batch.

    Attributes:
        seed: random seed of the noise.
    """

    seed: RandomSeed = 0

    seed_only: ClassVar[bool] = False

    @property
    def nfe_per_step(self) -> float:
        return 1.0

    @abstractmethod
    def sampler(self, schedule: Schedule) -> Step:
        """Return the function that computes the steps of a new stochastic sampler with ``schedule``.

        The first call of the returned function must be for step 0, the noisiest step.
        """

    def stores_map(self, i: int, schedule: Schedule) -> bool:
        """Return whether the noise map of step ``i`` is stored; a noise map that is not stored is zero."""
        return True

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the inversion of ``z0 [B,C,h,w]``: the noisiest latent as the seed, and the noise maps in ``aux``."""
        z0 = to_state_dtype(z0)
        noisy = diffused(z0, schedule, self.seed)
        step = self.sampler(schedule)
        maps = []
        exact = True
        for i, (z, target) in enumerate(pairwise([*noisy, z0])):
            mean, deviation = step(z, predictor, i)
            has_map = deviation > 0 and self.stores_map(i, schedule)
            maps.append((target - mean) / deviation if has_map else torch.zeros_like(z0))
            exact &= has_map
        for k, z in enumerate(reversed(noisy)):
            on_step(k, z)
        nfe = constant_counts(1, schedule, len(z0))
        aux = {"maps": torch.stack(maps, 1)}
        return make_inversion(noisy[0], z0, nfe, exact=exact, seed_only=False, aux=aux)

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that the stochastic sampler generates with the stored noise maps."""
        z = inversion.seed
        step = self.sampler(schedule)
        for i in range(len(schedule)):
            mean, deviation = step(z, predictor, i)
            z = mean + deviation * inversion.aux["maps"][:, i]
        return z


def diffused(z0: Tensor, schedule: Schedule, seed: int) -> list[Tensor]:
    """Return the noisy latents ``alpha z_0 + sigma n`` before every sampling step, from noisy to clean.

    The noise ``n`` of each noise level is independent of the noise of the other levels.
    """
    draws = draw_noise(z0, len(schedule), seed)
    levels = zip(schedule.alpha.tolist(), schedule.sigma.tolist(), draws, strict=True)
    return [alpha * z0 + sigma * n for alpha, sigma, n in levels]


def draw_noise(like: Tensor, count: int, seed: int) -> Tensor:
    """Return standard normal noise ``[count,C,h,w]`` with the dtype and device of ``like [B,C,h,w]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *like.shape[1:], generator=generator, dtype=torch.float64).to(like)
