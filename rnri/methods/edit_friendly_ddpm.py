"""Edit-friendly DDPM inversion: stores one noise map for each step of the DDPM sampler."""

from __future__ import annotations

import math

from torch import Tensor

from rnri.methods.noise_maps import NoiseMaps, Step
from rnri.methods.registry import register_method
from rnri.models.schedule import Schedule
from rnri.validation import dataclass

PAPER = "Edit-friendly DDPM, Huberman-Spiegelglas et al. 2024, arXiv 2304.06140"
SOURCE = "inbarhub/DDPM_inversion@58fc881 ddm_inversion/inversion_utils.py:153-176"


@register_method("edit_friendly", paper=PAPER, source=SOURCE)
@dataclass(frozen=True)
class EditFriendly(NoiseMaps):
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024, arXiv 2304.06140).

    The sampler is DDPM, which equals DDIM with eta = 1. A step of the sampler is ``z_s = mean(z_t) + deviation * map``,
    where ``map`` is the noise map of the step. By default, as in the authors' code, the noise map of the last step is
    zero. Therefore the inversion is not exact. With ``keep_last_map``, the noise map of the last step is also stored,
    as in Algorithm 1 of the paper, and the inversion is exact. Without the last noise map, the mean squared error of
    the reconstructed latents is 1.4e-3, 1.5e-3 and 2.2e-3 at guidance scale 1, 3.5 and 7.5. With the last noise map,
    the mean squared error is below 1e-30. The errors were measured with eight images, 10 steps and the small model
    ``emoji`` that ships with the repository. If the last step of a schedule ends at noise level 0, as in flow matching,
    the last step adds no noise, and ``keep_last_map`` has no effect.

    Attributes:
        keep_last_map: whether the noise map of the last step is stored.
    """

    keep_last_map: bool = False

    def sampler(self, schedule: Schedule) -> Step:
        return lambda z, predictor, i: posterior(z, predictor(z, schedule.timestep(i)), schedule, i)

    def stores_map(self, i: int, schedule: Schedule) -> bool:
        return self.keep_last_map or i < len(schedule) - 1


@register_method("edit_friendly_exact", paper=f"{PAPER}, Algorithm 1", source=SOURCE)
def edit_friendly_exact() -> EditFriendly:
    """Return edit-friendly DDPM inversion that also stores the noise map of the last step."""
    return EditFriendly(keep_last_map=True)


def posterior(z: Tensor, prediction: Tensor, schedule: Schedule, i: int) -> tuple[Tensor, float]:
    """Return the mean ``[B,C,h,w]`` and the standard deviation of the latent after step ``i`` of DDPM.

    ``z`` is the latent before step ``i``, and ``prediction`` is the network's prediction for ``z``.
    """
    alpha, sigma, alpha_next, sigma_next = schedule.alpha_sigma(i)
    added_variance = max(sigma**2 - (alpha / alpha_next * sigma_next) ** 2, 0)  # variance of q(z_t | z_s)
    deviation = sigma_next / sigma * math.sqrt(added_variance)
    clean, noise = schedule.clean_and_noise(i, z, prediction)
    return alpha_next * clean + math.sqrt(max(sigma_next**2 - deviation**2, 0)) * noise, deviation
