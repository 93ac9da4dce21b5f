"""SlerpFlow: Euler steps with the spherical interpolation of the velocities at the start and the end of the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from rnri.inversion import Inversion
from rnri.methods.explicit import ExplicitInverter
from rnri.methods.registry import register_method
from rnri.models.midpoint import timestep_at_sigma
from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule
from rnri.validation import ConfigError, dataclass


@register_method(
    "slerp_flow",
    paper="SlerpFlow, ICML 2026, poster 65935",
    source="0answer0/SlerpFlow@16a0000 flux/sampling.py:325-389",
    requires="flow",
)
@dataclass(frozen=True)
class SlerpFlow(ExplicitInverter):
    """SlerpFlow (ICML 2026, https://icml.cc/virtual/2026/poster/65935), for flow matching.

    Inversion and reconstruction use the same step::

        v' = v(z + h v, sigma + h);    z <- z + h ||v'|| slerp(v / ||v||, v' / ||v'||, 1/2);    v <- v'

    Here ``v(z, sigma)`` is the velocity that the network predicts, and ``h`` is the change of sigma in the step. The
    velocity ``v'`` at the predicted end of a step is the velocity ``v`` of the next step. Before the first step, ``v``
    is the velocity at the initial latent, so that N steps use N + 1 network evaluations. The norms and the spherical
    interpolation (``slerp``) are computed for each token: a token of FLUX consists of all channels of 2 x 2 neighboring
    elements of the latent. The pipeline's own Euler sampler does not regenerate the image from the seed.

    Attributes:
        token_size: height and width of a token in elements of the latent; both sides of the latent must be multiples of
            ``token_size``.
    """

    token_size: PositiveInt = 2

    title: ClassVar[str] = "SlerpFlow"
    start_nfe: ClassVar[int] = 1

    def trajectory(self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule) -> Iterator[Tensor]:
        sigmas = [*schedule.sigma.tolist(), schedule.sigma_next[-1].item()]
        return self._steps(z0, sigmas[::-1], predictor, schedule)

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that SlerpFlow's sampler generates."""
        sigmas = [*schedule.sigma.tolist(), schedule.sigma_next[-1].item()]
        return list(self._steps(inversion.seed, sigmas, predictor, schedule))[-1]

    def _steps(self, z: Tensor, sigmas: list[float], predictor: NoisePredictor, schedule: Schedule) -> Iterator[Tensor]:
        """Yield the latents ``[B,C,h,w]`` at the noise levels ``sigmas[1:]``.

        The first step starts from the latents ``z [B,C,h,w]`` at the noise level ``sigmas[0]``.
        """
        self._check_size(z)
        velocity = predictor(z, timestep_at_sigma(schedule, 0, sigmas[0]))
        for k in range(len(sigmas) - 1):
            h = sigmas[k + 1] - sigmas[k]
            end = predictor(z + h * velocity, timestep_at_sigma(schedule, 0, sigmas[k + 1]))
            z = z + h * self._interpolated(velocity, end)
            velocity = end
            yield z

    def _interpolated(self, start: Tensor, end: Tensor) -> Tensor:
        """Return, per token, the velocity with the norm of ``end`` and the mean direction of ``start`` and ``end``."""
        size = self.token_size
        tokens = [F.pixel_unshuffle(velocity, size) for velocity in (start, end)]
        # The normalized sum of two unit vectors is their spherical interpolation at 1/2.
        direction = F.normalize(F.normalize(tokens[0], dim=1) + F.normalize(tokens[1], dim=1), dim=1)
        return F.pixel_shuffle(tokens[1].norm(dim=1, keepdim=True) * direction, size)

    def _check_size(self, z: Tensor) -> None:
        if any(side % self.token_size for side in z.shape[-2:]):
            raise ConfigError(
                "token_size",
                f"must divide the height and the width of the latent, got {self.token_size} for "
                f"{z.shape[-2]} x {z.shape[-1]}; choose token_size=1.",
            )
