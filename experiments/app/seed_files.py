"""Seed files: safetensors files with a seed and the metadata that is needed to generate its image."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from experiments.app.context import AppContext
from experiments.app.edits import Seed

FORMAT = "seed-exploration 1"


def write_seed(seed: Seed, folder: str | Path) -> Path:
    """Write ``seed`` to a file in ``folder`` and return the path. The file name contains the digest of the seed."""
    path = Path(folder) / f"seed-{seed.digest[:16]}.safetensors"
    metadata = {
        "format": FORMAT,
        "model": seed.fingerprint,
        "prompt": seed.prompt,
        "steps": str(seed.steps),
        "guidance": repr(seed.guidance),
        "scheduler": seed.scheduler,
        "image_size": json.dumps(seed.image_size),
    }
    safetensors.torch.save_file({"latents": seed.latents.contiguous()}, path, metadata)
    return path


def read_seed(path: str | Path, context: AppContext, *, name: str = "") -> Seed:
    """Read a seed from a file that :func:`write_seed` wrote. Error messages show ``name`` instead of the file name.

    Raises:
        ValueError: the file is not a seed file, the seed is from another checkpoint or has another shape than the seeds
            of the page's model, or a value is not finite.
    """
    path = Path(path)
    name = name or path.name
    if path.stat().st_size > context.limits.max_bytes:
        raise ValueError(f"{name} is larger than {context.limits.max_bytes / 1e6:g} MB and not a seed file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            latents = file.get_tensor("latents")
        seed = Seed(
            latents=latents,
            prompt=metadata["prompt"],
            steps=int(metadata["steps"]),
            guidance=float(metadata["guidance"]),
            image_size=tuple(map(int, json.loads(metadata["image_size"]))),
            fingerprint=metadata["model"],
            scheduler=metadata["scheduler"],
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{name} is not a seed file of this page; choose a file downloaded from it.") from error
    _check(seed, context, name)
    return seed


def _check(seed: Seed, context: AppContext, name: str) -> None:
    """Raise ValueError if the model of the page cannot generate an image from ``seed``."""
    if seed.fingerprint != context.fingerprint:
        raise ValueError(
            f"{name} is a seed of another model ({seed.fingerprint[:12]}, not {context.fingerprint[:12]}); "
            "start the page with that model."
        )
    expected = tuple(context.model.family.pack(torch.zeros(1, *context.model.latent_shape)).shape)
    shape = tuple(seed.latents.shape)
    if shape != expected or seed.image_size != context.model.image_size:
        raise ValueError(f"{name} has a seed of shape {shape}, but the model needs {expected}.")
    if not seed.latents.is_floating_point() or not seed.latents.isfinite().all():
        raise ValueError(f"{name} has a seed that is not finite; invert its image again.")
    context.model.schedule(seed.steps)
    if not 1 <= seed.guidance < float("inf"):
        raise ValueError(f"{name} has guidance {seed.guidance:g}; must be >= 1.")
