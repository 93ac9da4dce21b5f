"""Inversion of reference images to seeds (initial latents), with a cache on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from experiments.cache.store import SeedStore, content_hash
from experiments.runtime.device import synchronize
from rnri import Inverter, LatentDiffusion, Schedule


@dataclass(frozen=True)
class CachedSeeds:
    """The results of inverting B images.

    The tensors ``z0`` and ``seed`` are on the device of the images; all other tensors are on the CPU.

    Attributes:
        z0: ``float32 [B, C, h, w]``, VAE latents of the images.
        seed: ``[B, C, h, w]``, inverted seeds in float64 (float32 on MPS); the seed of a failed inversion is NaN or
            infinite.
        residual: ``float64 [B]``, largest residual over the inversion steps of each image. An inversion step solves an
            equation ``z = f(z)`` for the latent ``z``, and its residual is the mean of ``|z - f(z)|``.
        nfe: ``int64 [B]``, number of network evaluations of the inversion of each image.
        residual_converged: ``bool [B]``, whether the residual of every inversion step of an image is at most the
            tolerance.
        seconds: ``float64 [B]``, wall time of the inversion of a batch divided by the number of its images. For a
            cached seed, ``seconds`` is the time that was measured when the seed was computed.
    """

    z0: Tensor
    seed: Tensor
    residual: Tensor
    nfe: Tensor
    residual_converged: Tensor
    seconds: Tensor

    def select(self, rows: Tensor) -> CachedSeeds:
        """Return the results of the images whose indices are in ``rows``, a tensor ``int64 [b]``."""
        return CachedSeeds(**{name: value[rows.to(value.device)] for name, value in vars(self).items()})


@dataclass(frozen=True)
class InversionStage:
    """Encodes images with the VAE and inverts the latents, or reads the seeds of the images from a cache on disk.

    Attributes:
        model: the text-to-image model.
        inverter: the inversion method.
        settings: settings of ``inverter`` as plain data (:func:`experiments.cache.key.fingerprint_config`), which are
            part of the cache key.
        schedule: timesteps and coefficients of the sampler.
        guidance: guidance scale of the inversion.
        store: the cache of the inverted seeds.
        numerics: numerical settings (dtype and device, see :func:`experiments.runtime.device.numerics`), which are part
            of the cache key.
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
                f"{type(self.inverter).__name__} cannot reconstruct an image from the seed alone, but NAO and "
                "SeedSelect use only seeds: choose a seed-only method, such as accelerated."
            )

    def __call__(
        self, images: Tensor, prompts: Sequence[str], on_step: Callable[[int], None] = lambda k: None
    ) -> CachedSeeds:
        """Return the inverted seeds of B images.

        Args:
            images: the images, ``[B, 3, H, W]`` in [0, 1].
            prompts: the prompt of each image.
            on_step: callback that is called as ``on_step(k)`` after inversion step ``k``.
        """
        keys = [self._key(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        results = [self.store.get(key) for key in keys]
        missing = [k for k, tensors in enumerate(results) if tensors is None]
        if missing:
            inversions = self._invert(images[missing], [prompts[k] for k in missing], on_step)
            for k, tensors in zip(missing, inversions, strict=True):
                self.store.put(keys[k], tensors)
                results[k] = tensors
        columns = {name: torch.stack([tensors[name] for tensors in results]) for name in results[0]}
        return CachedSeeds(**columns | {name: columns[name].to(images.device) for name in ("z0", "seed")})

    @cached_property
    def _checkpoint(self) -> str:
        return self.model.fingerprint

    def _key(self, image: Tensor, prompt: str) -> dict[str, Any]:
        return {
            "checkpoint": self._checkpoint,
            "numerics": dict(self.numerics),
            "method": self.settings,
            "timesteps": self.schedule.timesteps.tolist(),
            "guidance": self.guidance,
            "prompt": prompt,
            "image": content_hash(image),
        }

    def _invert(self, images: Tensor, prompts: list[str], on_step: Callable[[int], None]) -> list[dict[str, Tensor]]:
        """Invert ``images``; return one dictionary of CPU tensors per image, with the keys of :class:`CachedSeeds`."""
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
                "residual_converged": inversion.residual_converged[k].cpu(),
                "seconds": torch.tensor(seconds, dtype=torch.float64),
            }
            for k in range(len(images))
        ]
