"""The data stage that turns images and prompts into seeds, with a cache on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from experiments.cache.store import SeedStore, content_hash, synchronize
from rnri import Inverter, LatentDiffusion, Schedule


@dataclass(frozen=True)
class CachedSeeds:
    """Inverted images. ``seconds`` is the time of the inversion that found each seed, also if it came from the cache.

    Latents and seeds lie on the images' device, the rest on the CPU, where float64 is.

    Attributes:
        z0: ``float32 [B, C, h, w]``, the VAE latents of the images.
        seed: ``[B, C, h, w]``, float64 (float32 on MPS); not finite where the inversion was lost.
        residual: ``float64 [B]``, the largest over the steps of mean ``|z - f(z)|`` an element.
        evaluations: ``int64 [B]``, network evaluations.
        converged: ``bool [B]``.
        seconds: ``float64 [B]``, wall time of the batch divided by its images.
    """

    z0: Tensor
    seed: Tensor
    residual: Tensor
    nfe: Tensor
    converged: Tensor
    seconds: Tensor

    def select(self, rows: Tensor) -> CachedSeeds:
        """Those of the images ``rows`` (int64 ``[b]``)."""
        return CachedSeeds(**{name: value[rows.to(value.device)] for name, value in vars(self).items()})


@dataclass(frozen=True)
class InversionStage:
    """Encodes and inverts images; each image's seed is looked up in ``store`` first.

    ``settings`` names everything about ``inverter`` that changes its result, ``numerics`` (see
    :func:`experiments.cache.store.numerics`) about the machine: both are part of the cache's key.
    """

    model: LatentDiffusion
    inverter: Inverter
    settings: dict
    schedule: Schedule
    guidance: float
    store: SeedStore
    numerics: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.inverter.seed_only:
            raise ValueError(
                f"{type(self.inverter).__name__} needs more than the seed to reconstruct an image: "
                "NAO and SeedSelect work on single-latent inversions."
            )

    def __call__(
        self, images: Tensor, prompts: Sequence[str], on_step: Callable[[int], None] = lambda k: None
    ) -> CachedSeeds:
        """Seeds of ``images [B, 3, H, W]`` in [0, 1] under one prompt each; ``on_step(k)`` follows the walk."""
        keys = [self._key(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        found = [self.store.get(key) for key in keys]
        missing = [k for k, tensors in enumerate(found) if tensors is None]
        if missing:
            for k, tensors in zip(missing, self._invert(images[missing], [prompts[k] for k in missing], on_step),
                                  strict=True):  # fmt: skip
                self.store.put(keys[k], tensors)
                found[k] = tensors
        columns = {name: torch.stack([tensors[name] for tensors in found]) for name in found[0]}
        return CachedSeeds(**columns | {name: columns[name].to(images.device) for name in ("z0", "seed")})

    @cached_property
    def _checkpoint(self) -> str:
        return self.model.fingerprint

    def _key(self, image: Tensor, prompt: str) -> str:
        return self.store.key(
            checkpoint=self._checkpoint,
            numerics=dict(self.numerics),
            method=self.settings,
            timesteps=self.schedule.timesteps.tolist(),
            guidance=self.guidance,
            prompt=prompt,
            image=content_hash(image),
        )

    def _invert(self, images: Tensor, prompts: list[str], on_step: Callable[[int], None]) -> list[dict[str, Tensor]]:
        start = time.perf_counter()
        with torch.no_grad():
            z0 = self.model.encode(images)
        predictor = self.model.predictor(prompts, self.guidance)
        inversion = self.inverter.invert(z0, predictor, self.schedule, lambda k, _: on_step(k))
        synchronize(images.device)
        seconds = (time.perf_counter() - start) / len(images)
        return [
            {
                "z0": z0[k].cpu(),
                "seed": inversion.seed[k].cpu(),
                "residual": inversion.residual[k].double().cpu(),
                "nfe": inversion.nfe[:, k].sum().cpu(),
                "converged": inversion.converged[k].cpu(),
                "seconds": torch.tensor(seconds, dtype=torch.float64),
            }
            for k in range(len(images))
        ]
