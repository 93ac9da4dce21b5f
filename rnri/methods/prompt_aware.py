"""Prompt-aware adjustment of a latent before it is inverted (RNRI, arXiv 2312.12540, section 4.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from rnri.inversion import Inversion, Inverter, check_schedule
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import RandomSeed, dataclass


@dataclass(frozen=True)
class PromptAware(Inverter):
    """Adjusts the latent to the prompt, and inverts what comes of it with ``inverter``.

    The VAE's encoder knows no prompt, so its latent need not lie where the sampler ends under that prompt, and
    at large guidance solvers then often stall (which does not show that there is no seed). The adjustment is
    ``z0 <- h(z0)``, ``iterations`` times, where ``h`` adds noise for the ``steps`` cleanest steps of the schedule
    and removes it with the sampler under the prompt. The adjusted latent is the reconstruction's target
    (``Inversion.z0``); how far it lies from the given one is the method's price: with more ``steps`` more images
    converge, to a latent farther away.

    The paper does not say how noise is added. ``inversion`` takes explicit DDIM inversion steps, so that ``h``
    changes little that the sampler can already reach; ``random`` draws ``q(z_t | z_0)``, with the same noise
    for every image.

    The adjusted latent is, by construction, what the sampler makes of a noisier one that is already known: its
    first ``steps`` inversion steps are solved, exactly, and ``inverter`` goes on from there. These are the steps where
    the implicit equation is hardest. With ``reuse=False`` it starts at the adjusted latent, as the paper tells it, and
    solves them again. The evaluations of the adjustment are counted at the steps that it solves (without reuse, at
    the first).
    """

    inverter: Inverter
    steps: PositiveInt = 2
    iterations: PositiveInt = 1
    noising: Literal["inversion", "random"] = "inversion"
    reuse: bool = True
    seed: RandomSeed = 0

    @property
    def seed_only(self) -> bool:
        return self.inverter.seed_only

    @property
    def initial_guess(self) -> str | None:
        """The initial guess of ``inverter``."""
        return self.inverter.initial_guess

    @property
    def nfe_per_step(self) -> float:
        """That of ``inverter``; the adjustment is not included."""
        return self.inverter.nfe_per_step

    def with_nfe(self, nfe: int) -> PromptAware:
        """Return a copy whose ``inverter`` uses at most ``nfe`` network evaluations per step."""
        return replace(self, inverter=self.inverter.with_nfe(nfe))

    def check_schedule(self, schedule: Schedule) -> None:
        """ValueError where ``invert`` would raise it for a schedule."""
        if self.reuse and not self.inverter.seed_only:
            raise ValueError(f"{type(self.inverter).__name__} cannot start in mid-schedule; set reuse=False.")
        if self.reuse and len(schedule) <= self.steps:
            raise ValueError(f"steps={self.steps} must be fewer than the schedule's {len(schedule)}; or reuse=False.")
        check_schedule(self.inverter, schedule.head(len(schedule) - self.steps) if self.reuse else schedule)

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of the adjusted latents of ``z0 [B,C,h,w]``.

        Raises:
            ValueError: with ``reuse``, for an inverter that needs more than the seed, or a schedule of no more than
                ``steps`` steps.
        """
        self.check_schedule(schedule)
        path = self.adjust(z0, predictor, schedule)
        each = self.iterations * (2 if self.noising == "inversion" else 1)
        if not self.reuse:
            inversion = self.inverter.invert(path[0], predictor, schedule, on_step)
            nfe = inversion.nfe.clone()
            nfe[0] += each * (len(path) - 1)
            return replace(inversion, nfe=nfe)
        for k, z in enumerate(path[1:]):
            on_step(k, z)
        rest = schedule.head(len(schedule) - self.steps)
        inversion = self.inverter.invert(path[-1], predictor, rest, lambda k, z: on_step(k + self.steps, z))
        return replace(
            inversion,
            z0=path[0],
            residuals=_above(inversion.residuals, self.steps, 0.0),
            nfe=_above(inversion.nfe, self.steps, each),
            backward=_above(inversion.backward, self.steps, 0),
            solved=_above(inversion.solved, self.steps, True),
        )

    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        return self.inverter.reconstruct(inversion, predictor, schedule)

    @torch.no_grad()
    def adjust(self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule) -> list[Tensor]:
        """``h`` applied ``iterations`` times to ``z0 [B,C,h,w]``: the adjusted latent and those before it, float64.

        The noisiest is last; the sampler takes each to the one before.
        """
        end = schedule.tail(min(self.steps, len(schedule)))
        path = [to_state_dtype(z0)]
        for k in range(self.iterations):
            found = [self._noisy(path[0], predictor, end, k)]
            sample(found[0], predictor, end, on_step=lambda _, z, found=found: found.insert(0, z))
            path = found
        return path

    def _noisy(self, z: Tensor, predictor: NoisePredictor, end: Schedule, k: int) -> Tensor:
        return self._invert(z, predictor, end) if self.noising == "inversion" else self._diffuse(z, end, k)

    @staticmethod
    def _invert(z: Tensor, predictor: NoisePredictor, end: Schedule) -> Tensor:
        for i in reversed(range(len(end))):
            a, b = end.coefficients(i)
            z = a * z + b * predictor(z, end.timestep(i))
        return z

    def _diffuse(self, z: Tensor, end: Schedule, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + k)
        noise = torch.randn(z.shape[1:], generator=generator, dtype=torch.float64).to(z)
        alpha, sigma, *_ = end.alpha_sigma(0)
        return alpha * z + sigma * noise


def _above(table: Tensor, rows: int, value: float) -> Tensor:
    """``table [N,B]`` under ``rows`` more of ``value``."""
    return torch.cat([table.new_full((rows, table.shape[1]), value), table])
