"""The optimization problem of SeedSelect: how a seed becomes an image, and what the image should resemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

Trajectory = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""``(seeds [b,C,h,w], rows [b]) -> latents``: sample the batch rows ``rows`` and return the last latents, cleanest
last."""


@dataclass(frozen=True)
class Targets:
    """What the image of each sample should resemble.

    Attributes:
        features: mean image feature of the references, ``[B,D]``.
        latent: mean latent of the references, ``[B,C,h,w]``.
        text: features of the prompts in the same space, ``[B,D]``; only needed by rewards that compare with text.
        prompts: B prompts; only needed by rewards with a network of their own.
    """

    features: Tensor
    latent: Tensor
    text: Tensor | None = None
    prompts: Sequence[str] | None = None

    def select(self, rows: Tensor) -> Targets:
        """The targets of the batch rows ``rows``, int64 ``[b]``."""
        return Targets(
            self.features[rows],
            self.latent[rows],
            None if self.text is None else self.text[rows],
            None if self.prompts is None else [self.prompts[row] for row in rows.tolist()],
        )


@dataclass(frozen=True)
class Generation:
    """The result of sampling from B seeds. The images are decoded on first access and cached.

    Attributes:
        seeds: ``[B,C,h,w]``.
        latents: the last latents of the sampling trajectory, each ``[B,C,h,w]``, cleanest last.
        targets: targets of the B samples.
        decode: maps latents to images in [0, 1].
        features: maps images to unit-length features ``[B,D]``.
    """

    seeds: Tensor
    latents: Sequence[Tensor]
    targets: Targets
    decode: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]

    @cached_property
    def images(self) -> Tensor:
        """Decoded images ``[B,3,H,W]`` of the clean latents."""
        return self.decode(self.latents[-1])


@dataclass(frozen=True)
class Problem:
    """Everything that turns seeds into a loss, except the seeds.

    Attributes:
        trajectory: the sampler, see :data:`Trajectory`.
        decode: maps latents ``[b,C,h,w]`` to images ``[b,3,H,W]`` in [0, 1].
        features: maps images to unit-length features ``[b,D]``.
        targets: targets of all B samples.
    """

    trajectory: Trajectory
    decode: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    targets: Targets

    def generate(self, seeds: Tensor, rows: Tensor) -> Generation:
        """Sample from ``seeds [b,C,h,w]``, which belong to the batch rows ``rows``, int64 ``[b]``."""
        rows = rows.to(seeds.device)
        latents = self.trajectory(seeds, rows)
        return Generation(seeds, latents, self.targets.select(rows), self.decode, self.features)
