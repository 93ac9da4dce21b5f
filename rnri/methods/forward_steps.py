"""TABA: random noise replaces the inversion steps with the least noise; any method computes the other steps."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import PositiveInt
from torch import Tensor

from rnri.inversion import Inversion, check_schedule
from rnri.methods.common import InverterWrapper, check_noisy_start, ddim
from rnri.methods.noise_maps import draw_noise
from rnri.methods.registry import register_method
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import RandomSeed, dataclass


@dataclass(frozen=True)
class ForwardSteps(InverterWrapper):
    """TABA (Staniszewski et al. 2024, arXiv 2410.23530): random noise replaces the first inversion steps.

    The inversion runs from clean to noisy, and its first ``k`` steps, which have the least noise, are replaced. The
    latent after these steps is ``z_k = alpha_k z_0 + sigma_k n`` with the clean latent ``z_0``, random noise ``n``, and
    the signal level ``alpha_k`` and noise level ``sigma_k`` of the schedule. The inversion method ``inverter`` computes
    the inversion steps after ``z_k``. Solvers that need the clean latent are rejected: ``GNRI`` and ``RNRISign`` with
    ``prior_weight`` above 0, and ``ReNoise`` with regularization. The authors use DDIM inversion and replace 2 or 3 of
    50 or 100 steps. The replaced steps need no network evaluation. The reconstruction is not exact, because the sampler
    does not use the noise ``n``.

    Attributes:
        inverter: inversion method for the steps that are not replaced. ``nfe_per_step`` is an upper bound, because the
            replaced steps need no network evaluation.
        steps: number of replaced steps; must be less than the number of sampler steps.
        seed: random seed of the noise, which is the same for every image.
    """

    steps: PositiveInt = 2
    seed: RandomSeed = 0

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if ``schedule`` has too few steps or ``inverter`` does not support the remaining steps.

        ValueError is also raised if the solver of ``inverter`` needs the clean latent.
        """
        check_noisy_start(self.inverter)
        if self.steps >= len(schedule):
            raise ValueError(
                f"steps: must be less than the number of sampler steps ({len(schedule)}), got {self.steps}; "
                "use fewer forward steps."
            )
        check_schedule(self.inverter, self._remaining(schedule))

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds (noise latents) of the clean latents ``z0``; the residuals of the replaced steps are NaN.

        Raises:
            ValueError: ``check_schedule`` rejects the schedule.
        """
        self.check_schedule(schedule)
        z0 = to_state_dtype(z0.detach())
        noise = draw_noise(z0, 1, self.seed)
        noisy = z0
        for k in range(self.steps):
            _, _, alpha, sigma = schedule.alpha_sigma(len(schedule) - k - 2)
            noisy = alpha * z0 + sigma * noise
            on_step(k, noisy)
        inversion = self.inverter.invert(
            noisy, predictor, self._remaining(schedule), lambda k, z: on_step(self.steps + k, z)
        )
        skipped = (self.steps, len(z0))
        counts = torch.zeros(skipped, dtype=torch.int64)
        return replace(
            inversion,
            z0=z0,
            residuals=torch.cat([torch.full(skipped, torch.nan, dtype=torch.float64), inversion.residuals]),
            nfe=torch.cat([counts, inversion.nfe]),
            backward=torch.cat([counts, inversion.backward]),
            solved=torch.cat([counts.bool(), inversion.solved]),
        )

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]``; the schedule's own sampler computes the replaced steps."""
        noisy = self.inverter.reconstruct(inversion, predictor, self._remaining(schedule))
        return sample(noisy, predictor, schedule.tail(self.steps))

    def _remaining(self, schedule: Schedule) -> Schedule:
        return schedule.head(len(schedule) - self.steps)


@register_method(
    "taba",
    paper="TABA, Staniszewski et al. 2024, arXiv 2410.23530",
    source="luk-st/taba@22f916f taba/ext/style_aligned/inversion.py:162-197",
)
def taba() -> ForwardSteps:
    """Return TABA as published: random noise in the first two inversion steps, DDIM inversion in the other steps."""
    return ForwardSteps(ddim())
