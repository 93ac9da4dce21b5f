"""The optimization problem of SeedSelect: functions that generate an image from a seed, and targets for the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

Trajectory = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Function ``(seeds [b,C,h,w], rows [b]) -> latents`` that samples from ``seeds``.

``rows`` are the batch indices of the seeds. ``latents`` are the latents after the last sampling steps; the last entry
of ``latents`` is the clean latent."""


@dataclass(frozen=True)
class Preview:
    """Functions that divide the sampling into two parts, with a preview of the clean latents after the first part.

    Attributes:
        steps: number of steps of the sampler.
        start: function ``(seeds [b,C,h,w], rows [b], k) -> (latents, clean)`` that samples the first ``k`` steps from
            ``seeds``, whose batch indices are ``rows``. The function returns the latents after step ``k``,
            ``[b,C,h,w]``, and the preview: the clean latents that the network predicts in step ``k``, ``[b,C,h,w]``.
        finish: function ``(latents [b,C,h,w], rows [b], k) -> latents`` that samples the remaining steps, starting at
            the latents after step ``k``. The function returns the latents after the last sampling steps; the last entry
            is the clean latent.
    """

    steps: int
    start: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
    finish: Callable[[Tensor, Tensor, int], Sequence[Tensor]]


@dataclass(frozen=True)
class Targets:
    """The targets that the generated image of each sample should resemble.

    Attributes:
        features: mean feature of each sample's reference images, ``[B,D]``; used only by the semantic loss.
        latent: mean latent of each sample's reference images, ``[B,C,h,w]``; used only by the appearance loss.
        text: text features of the prompts, ``[B,D]``, in the same feature space as the image features; used only by
            rewards that compare the image with the prompt.
        prompts: B prompts; used only by rewards that compute text features with a separate model.
        references: latents of the R reference images of each sample, ``[B,R,C,h,w]``; used only by rewards that compare
            the image with each reference.
    """

    features: Tensor | None = None
    latent: Tensor | None = None
    text: Tensor | None = None
    prompts: Sequence[str] | None = None
    references: Tensor | None = None

    def select(self, rows: Tensor) -> Targets:
        """Return the targets of the samples with the batch indices ``rows``, int64 ``[b]``."""
        return Targets(
            None if self.features is None else self.features[rows],
            None if self.latent is None else self.latent[rows],
            None if self.text is None else self.text[rows],
            None if self.prompts is None else [self.prompts[row] for row in rows.tolist()],
            None if self.references is None else self.references[rows],
        )


@dataclass(frozen=True)
class Generation:
    """The result of sampling from B seeds. The images are decoded on first access and cached.

    Attributes:
        seeds: the seeds ``[B,C,h,w]`` from which the latents were sampled.
        latents: latents after the last sampling steps, each ``[B,C,h,w]``; the last entry is the clean latent.
        targets: targets of the B samples.
        decode: function that maps latents to images with values in [0, 1].
        features: function that maps images to unit-length features ``[B,D]``.
        group_size: number of consecutive samples that form a group (:mod:`seedselect.groups`); 1 if samples are not
            grouped.
        initial_latent: clean latents of the initial seeds of an optimization, ``[B,C,h,w]``; None if no optimization is
            running.
    """

    seeds: Tensor
    latents: Sequence[Tensor]
    targets: Targets
    decode: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    group_size: int = 1
    initial_latent: Tensor | None = None

    @cached_property
    def images(self) -> Tensor:
        """The images ``[B,3,H,W]`` decoded from the clean latents."""
        return self.decode(self.latents[-1])


@dataclass(frozen=True)
class Problem:
    """The functions and targets that are needed to compute the loss of seeds.

    Attributes:
        trajectory: function that samples from seeds, see :data:`Trajectory`.
        decode: function that maps latents ``[b,C,h,w]`` to images ``[b,3,H,W]`` with values in [0, 1].
        features: function that maps images to unit-length features ``[b,D]``.
        targets: targets of all B samples.
        preview: the sampler of ``trajectory``, divided into two parts; needed only by
            :class:`~seedselect.search.BestOf` with a preview.
    """

    trajectory: Trajectory
    decode: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    targets: Targets
    preview: Preview | None = None

    def check(self, seeds: Tensor, samples: int) -> None:
        """Check that ``seeds`` are seeds, and that ``targets`` has one entry per sample.

        Args:
            seeds: the seeds from which an optimization or a search starts.
            samples: number of samples B.

        Raises:
            ValueError: ``seeds`` is not a floating-point tensor ``[B,C,h,w]``, or a target has no entry or several
                entries for a sample.
        """
        if not seeds.is_floating_point() or seeds.ndim != 4:
            raise ValueError(
                f"seeds: must be a floating-point tensor [B,C,h,w], got {seeds.dtype} {list(seeds.shape)}; convert the "
                "dtype, or add the batch dimension with seeds[None]."
            )
        for name, target in vars(self.targets).items():
            if target is not None and len(target) != samples:
                raise ValueError(
                    f"targets.{name}: must have one entry for each of the {samples} samples, got {len(target)}; select "
                    "the targets of the samples with targets.select(rows)."
                )

    def generate(self, seeds: Tensor, rows: Tensor) -> Generation:
        """Generate images from ``seeds [b,C,h,w]``; the batch indices of the seeds are ``rows``, int64 ``[b]``."""
        rows = rows.to(seeds.device)
        return self.generation(seeds, self.trajectory(seeds, rows), rows)

    def generation(self, seeds: Tensor, latents: Sequence[Tensor], rows: Tensor) -> Generation:
        """Return the :class:`Generation` for ``latents`` that were sampled from ``seeds [b,C,h,w]``.

        ``rows [b]`` are the batch indices of the seeds.
        """
        return Generation(seeds, latents, self.targets.select(rows), self.decode, self.features)
