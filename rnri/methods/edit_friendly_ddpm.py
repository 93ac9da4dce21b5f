"""Edit-friendly DDPM inversion."""

from __future__ import annotations

import math

from torch import Tensor

from rnri.methods.noise_maps import NoiseMaps, Step
from rnri.methods.registry import register_method
from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule
from rnri.validation import dataclass

PAPER = "Edit-friendly DDPM, Huberman-Spiegelglas et al. 2024, arXiv 2304.06140"


@register_method("edit_friendly", paper=PAPER)
@dataclass(frozen=True)
class EditFriendly(NoiseMaps):
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024, arXiv 2304.06140), eta = 1.

    The sampler is DDPM. By default the noise map of the last step is zero, as in the authors' code: the last step
    returns the sampler's mean, and the inversion is not exact. ``keep_last_map`` stores this map too, as Algorithm 1
    of the paper does, and the inversion is exact. Latent MSE of eight images on the embedded model, 10 steps, guidance
    1, 3.5 and 7.5: 1.4e-3, 1.5e-3 and 2.2e-3 without the last map, below 1e-30 with it.

    Attributes:
        keep_last_map: store the noise map of the last step.
    """

    keep_last_map: bool = False

    def sampler(self, schedule: Schedule) -> Step:
        return lambda z, predictor, i: _posterior(z, predictor, schedule, i)

    def stores_map(self, i: int, schedule: Schedule) -> bool:
        return self.keep_last_map or i < len(schedule) - 1


register_method("edit_friendly_exact", lambda: EditFriendly(keep_last_map=True), paper=f"{PAPER}, Algorithm 1")


def _posterior(z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int) -> tuple[Tensor, float]:
    """Return mean and standard deviation of ``q(z_s | z_t, x0)``, the DDPM step ``i`` (DDIM with eta = 1)."""
    alpha, sigma, alpha_next, sigma_next = schedule.alpha_sigma(i)
    added_variance = max(sigma**2 - (alpha / alpha_next * sigma_next) ** 2, 0)  # of q(z_t | z_s)
    deviation = sigma_next / sigma * math.sqrt(added_variance)
    clean, noise = schedule.clean_and_noise(i, z, predictor(z, schedule.timestep(i)))
    return alpha_next * clean + math.sqrt(max(sigma_next**2 - deviation**2, 0)) * noise, deviation
