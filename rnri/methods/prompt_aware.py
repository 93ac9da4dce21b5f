"""Prompt-aware adjustment of the clean latent before its inversion (RNRI, arXiv 2312.12540, section 4.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from rnri.inversion import Inversion, check_schedule
from rnri.methods.common import InverterWrapper, check_noisy_start
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import RandomSeed, dataclass


@dataclass(frozen=True)
class PromptAware(InverterWrapper):
    """Adjusts the clean latent to the prompt, and inverts the adjusted latent with ``inverter``.

    The VAE's encoder does not depend on the prompt, so that the sampler may be unable to generate the encoder's latent
    with the prompt. For a latent that the sampler cannot generate, and with strong guidance, the residual of the solver
    often stops decreasing before the solver converges.

    The adjustment applies a function ``h`` to the latent ``iterations`` times. The function ``h`` adds the noise of the
    ``steps`` schedule steps with the least noise, and then removes the noise by sampling these steps with the prompt.
    The adjusted latent is the target of the reconstruction (``Inversion.z0``). Even an exact inversion does not
    reconstruct the original latent, but the adjusted latent. With more ``steps`` the inversion converges for more
    images, but the adjusted latent differs more from the original latent.

    The paper does not specify how noise is added. With ``noising="inversion"``, noise is added by explicit DDIM
    inversion steps, so that ``h`` hardly changes a latent that the sampler can already generate. With
    ``noising="random"``, random noise is added, which is the same for every image.

    With ``reuse=True``, ``inverter`` starts at the noisy latent from which the sampler generates the adjusted latent.
    ``inverter`` then does not have to solve the equations of the ``steps`` steps with the least noise, which are the
    most difficult equations. With ``reuse=False``, the inversion starts at the adjusted latent, as in the paper, and
    solves all steps. The network evaluations of the adjustment are counted in the rows of ``Inversion.nfe`` that belong
    to the ``steps`` steps with the least noise, or in row 0 with ``reuse=False``.

    Attributes:
        inverter: inversion method for the adjusted latent. ``nfe_per_step`` does not include the network evaluations of
            the adjustment.
        steps: number of schedule steps, counted from the clean end, for which the adjustment adds and removes noise.
        iterations: number of times that the adjustment adds noise to the latent and removes the noise again.
        noising: how the adjustment adds noise: ``inversion`` computes explicit DDIM inversion steps, ``random`` adds
            random noise.
        reuse: if True, ``inverter`` starts at the noisy latent from which the sampler generates the adjusted latent; if
            False, ``inverter`` starts at the adjusted latent.
        seed: random seed of the noise that ``noising="random"`` adds.
    """

    steps: PositiveInt = 2
    iterations: PositiveInt = 1
    noising: Literal["inversion", "random"] = "inversion"
    reuse: bool = True
    seed: RandomSeed = 0

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if ``inverter`` does not support ``schedule``.

        With ``reuse``, ValueError is also raised if ``inverter`` is not seed-only, if the solver of ``inverter`` needs
        the clean latent, or if the schedule has at most ``steps`` steps.
        """
        if self.reuse:
            check_noisy_start(self.inverter)
        if self.reuse and not self.inverter.seed_only:
            raise ValueError(
                f"{type(self.inverter).__name__} cannot start in the middle of a schedule, as reuse=True requires, "
                "because it stores tensors in addition to the seed; set reuse=False."
            )
        if self.reuse and len(schedule) <= self.steps:
            raise ValueError(
                f"steps: must be less than the number of schedule steps ({len(schedule)}) with reuse=True, got "
                f"{self.steps}; set fewer steps, or reuse=False."
            )
        check_schedule(self.inverter, schedule.head(len(schedule) - self.steps) if self.reuse else schedule)

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Adjust the clean latents ``z0 [B,C,h,w]`` to the prompts, and return the seeds of the adjusted latents.

        Raises:
            ValueError: ``check_schedule`` rejects the schedule.
        """
        self.check_schedule(schedule)
        path = self.adjust(z0, predictor, schedule)
        nfe_per_adjusted_step = self.iterations * (2 if self.noising == "inversion" else 1)
        if not self.reuse:
            inversion = self.inverter.invert(path[0], predictor, schedule, on_step)
            nfe = inversion.nfe.clone()
            nfe[0] += nfe_per_adjusted_step * (len(path) - 1)
            return replace(inversion, nfe=nfe)
        for k, z in enumerate(path[1:]):
            on_step(k, z)
        noisy_steps = schedule.head(len(schedule) - self.steps)
        inversion = self.inverter.invert(path[-1], predictor, noisy_steps, lambda k, z: on_step(k + self.steps, z))
        return replace(
            inversion,
            z0=path[0],
            residuals=_prepend_rows(inversion.residuals, self.steps, 0.0),
            nfe=_prepend_rows(inversion.nfe, self.steps, nfe_per_adjusted_step),
            backward=_prepend_rows(inversion.backward, self.steps, 0),
            solved=_prepend_rows(inversion.solved, self.steps, True),
        )

    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that ``inverter`` reconstructs from ``inversion``."""
        return self.inverter.reconstruct(inversion, predictor, schedule)

    @torch.no_grad()
    def adjust(self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule) -> list[Tensor]:
        """Adjust the clean latents ``z0`` to the prompt; return the latents from which the adjusted latent was sampled.

        The returned list contains float64 latents ``[B,C,h,w]`` from clean to noisy: the first entry is the adjusted
        latent, and the last entry is the noisy latent from which the sampler starts.
        """
        clean_steps = schedule.tail(min(self.steps, len(schedule)))
        path = [to_state_dtype(z0)]
        for k in range(self.iterations):
            noisy = self._add_noise(path[0], predictor, clean_steps, k)
            path = _sampled_path(noisy, predictor, clean_steps)
        return path

    def _add_noise(self, z: Tensor, predictor: NoisePredictor, clean_steps: Schedule, k: int) -> Tensor:
        if self.noising == "inversion":
            return self._invert_explicitly(z, predictor, clean_steps)
        return self._diffuse(z, clean_steps, k)

    @staticmethod
    def _invert_explicitly(z: Tensor, predictor: NoisePredictor, clean_steps: Schedule) -> Tensor:
        for i in reversed(range(len(clean_steps))):
            a, b = clean_steps.coefficients(i)
            z = a * z + b * predictor(z, clean_steps.timestep(i))
        return z

    def _diffuse(self, z: Tensor, clean_steps: Schedule, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + k)
        noise = torch.randn(z.shape[1:], generator=generator, dtype=torch.float64).to(z)
        alpha, sigma, *_ = clean_steps.alpha_sigma(0)
        return alpha * z + sigma * noise


def _sampled_path(noisy: Tensor, predictor: NoisePredictor, schedule: Schedule) -> list[Tensor]:
    """Sample from ``noisy``, and return all latents ``[B,C,h,w]`` from clean to noisy; the last entry is ``noisy``."""
    path = [noisy]
    sample(noisy, predictor, schedule, on_step=lambda _, z: path.insert(0, z))
    return path


def _prepend_rows(table: Tensor, rows: int, value: float) -> Tensor:
    """Return ``table [N,B]`` with additional rows of ``value`` at the start, ``[rows + N,B]``."""
    return torch.cat([table.new_full((rows, table.shape[1]), value), table])
