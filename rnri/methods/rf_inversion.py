"""RF-Inversion: the inversion is steered towards a noise sample, and the reconstruction towards the clean latent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion
from rnri.methods.explicit import ExplicitInverter
from rnri.methods.noise_maps import draw_noise
from rnri.methods.registry import register_method
from rnri.models.midpoint import timestep_at_sigma
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import ddim_step
from rnri.models.schedule import Schedule
from rnri.validation import ConfigError, RandomSeed, UnitInterval, dataclass


@register_method(
    "rf_inversion",
    paper="RF-Inversion, Rout et al. 2024, arXiv 2410.10792, Eq. 8 and 17",
    source="LituRout/RF-Inversion@7692b96 pipeline_rf_inversion_sde.py:266-276",
    requires="flow",
)
@dataclass(frozen=True)
class RFInversion(ExplicitInverter):
    """RF-Inversion (Rout et al. 2024, arXiv 2410.10792).

    Inversion and reconstruction are explicit Euler steps with the velocities::

        inversion:       v + gamma ((y1 - z) / (1 - sigma) - v),   sigma increasing from 0
        reconstruction:  v + eta   ((z - z_0) / sigma - v),        sigma decreasing; eta only from start to stop

    Here ``v`` is the velocity that the network predicts, ``z_0`` is the clean latent, and ``y1`` is a noise sample. As
    published, the inversion uses the empty prompt without guidance. The negative condition of ``predictor`` serves as
    the empty prompt; a predictor without guidance has no negative condition and is used unchanged. The reconstruction
    needs ``z_0`` in addition to the seed; ``z_0`` is stored as ``aux["clean"]``.

    Attributes:
        gamma: strength of the steering towards ``y1`` in the inversion. With ``gamma`` 0, the inversion is the explicit
            Euler method; with ``gamma`` 1, the inversion ends at ``y1``.
        eta: strength of the steering towards ``z_0`` in the steered steps of the reconstruction.
        start: position of the first steered reconstruction step, as a fraction of the schedule from its noisy end.
        stop: position at which the steered reconstruction steps end, as a fraction of the schedule from its noisy end.
            The paper steers the first 7 of 28 reconstruction steps.
        seed: random seed of ``y1``, which is the same for every image.
    """

    gamma: UnitInterval = 0.5
    eta: UnitInterval = 0.9
    start: UnitInterval = 0.0
    stop: UnitInterval = 0.25
    seed: RandomSeed = 0

    title: ClassVar[str] = "RF-Inversion"

    def __post_init__(self) -> None:
        if self.start > self.stop:
            raise ConfigError("start", f"must be <= stop={self.stop}, got {self.start}.")

    def aux(self, z0: Tensor) -> dict[str, Tensor]:
        return {"clean": z0}

    def trajectory(self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule) -> Iterator[Tensor]:
        z = z0
        y1 = draw_noise(z0, 1, self.seed)[0]
        unconditional = _unconditional(predictor)
        for i in reversed(range(len(schedule))):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            velocity = unconditional(z, timestep_at_sigma(schedule, i, sigma_next))
            velocity = velocity + self.gamma * ((y1 - z) / (1 - sigma_next) - velocity)
            z = z + (sigma - sigma_next) * velocity
            yield z

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that the Euler sampler generates with steering.

        The steps from the fraction ``start`` to the fraction ``stop`` of the schedule are steered towards the clean
        latent of the inversion.
        """
        z = inversion.seed
        clean = inversion.aux["clean"]
        steps = len(schedule)
        for i in range(steps):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            euler = ddim_step(z, predictor, schedule, i)
            controlled = self.start * steps <= i < self.stop * steps
            towards_clean = z + (sigma_next - sigma) / sigma * (z - clean)
            z = euler + self.eta * (towards_clean - euler) if controlled else euler
        return z


def _unconditional(predictor: NoisePredictor) -> NoisePredictor:
    """Return a predictor that uses only the negative condition; ``predictor`` itself if guidance is disabled."""
    denoiser: Any = predictor.denoiser
    negative = getattr(denoiser, "negative", None)
    if negative is None:
        return predictor
    return replace(predictor, denoiser=replace(denoiser, positive=negative, negative=None, guidance=1.0))
