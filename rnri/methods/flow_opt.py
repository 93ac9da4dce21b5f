"""FlowOpt: inversion that repeatedly subtracts a multiple of the reconstruction error from the seed.

The reconstruction error is the difference between the clean latent that the whole sampler generates from the seed and
the clean latent that is inverted. No derivatives are computed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.registry import register_method
from rnri.methods.uni_inv import UniInv
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@register_method(
    "flow_opt",
    paper="FlowOpt, Ronai et al. 2025, arXiv 2510.22010, Eq. 3 and 6",
    source="orronai/FlowOpt@ee3577b utils/flux.py:353-371",
)
@dataclass(frozen=True)
class FlowOpt(Inverter):
    """FlowOpt (Ronai, Kulikov & Michaeli 2025, arXiv 2510.22010): ``z <- z - eta (F(z) - z_0)``.

    ``z`` is the seed, ``z_0`` is the clean latent that is inverted, and ``F(z)`` is the clean latent that the whole
    sampler generates from ``z`` (Eq. 3). The update (Eq. 6) is repeated ``iterations`` times. As in the authors' code,
    Uni-Inv computes the first seed, and the result is the seed after the last update. With N steps, the inversion uses
    ``N + 1 + iterations * N`` network evaluations. After the last update, ``on_step`` is called with the latents of the
    last sampling from clean to noisy, and then with the last seed.

    The authors invert with 10 steps, 30 iterations and ``eta`` 0.01 (Stable Diffusion 3) or 0.0025 (FLUX) for images of
    1024 x 1024 pixels. The largest ``eta`` with which the iteration converges depends on the model and on the image
    size; the paper estimates this bound for each model.

    Attributes:
        iterations: number of updates.
        eta: step size of the updates.
    """

    iterations: PositiveInt = 30
    eta: PositiveFloat = 0.01

    seed_only: ClassVar[bool] = True

    @property
    def nfe_per_step(self) -> float:
        """Number of network evaluations per step, not counting the evaluation before the first step of Uni-Inv."""
        return 1.0 + self.iterations

    def with_nfe(self, nfe: int) -> FlowOpt:
        """Return a copy with ``nfe - 1`` updates of the seed.

        The inversion of an image then uses ``nfe`` network evaluations per step, and one more evaluation at its start.

        Raises:
            ValueError: ``nfe`` is below 2; with one evaluation per step, FlowOpt would equal Uni-Inv.
        """
        if nfe < 2:
            raise ValueError(
                f"FlowOpt needs at least 2 network evaluations per step, got {nfe}; with one evaluation per step, "
                "FlowOpt equals Uni-Inv: choose method uni_inv."
            )
        return replace(self, iterations=nfe - 1)

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if Uni-Inv does not support ``schedule``."""
        UniInv().check_schedule(schedule)

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds (noise latents) of the clean latents ``z0 [B,C,h,w]``.

        Raises:
            ValueError: ``check_schedule`` rejects the schedule.
        """
        z0 = to_state_dtype(z0)
        start = UniInv().invert(z0, predictor, schedule)
        seed = start.seed
        path = [seed] * len(schedule)  # the latents after each step of the last sampling; path[-1] is the clean latent
        for _ in range(self.iterations):
            seed = seed - self.eta * (sample(seed, predictor, schedule, on_step=path.__setitem__) - z0)
        for k, z in enumerate([*path[-2::-1], seed]):
            on_step(k, z)
        return replace(start, seed=seed, nfe=start.nfe + self.iterations)

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that the schedule's own sampler generates."""
        return sample(inversion.seed, predictor, schedule)
