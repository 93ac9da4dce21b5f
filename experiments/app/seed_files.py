"""Seeds as files that people keep: safetensors with all that makes the image again in the header."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from experiments.app.context import Studio
from experiments.app.edits import Seed

FORMAT = "seed-exploration 1"


def write_seed(seed: Seed, folder: str | Path) -> Path:
    """A file in ``folder``, named by the seed's hash."""
    path = Path(folder) / f"seed-{seed.digest[:16]}.safetensors"
    metadata = {
        "format": FORMAT, "model": seed.fingerprint, "prompt": seed.prompt, "steps": str(seed.steps),
        "guidance": repr(seed.guidance), "scheduler": seed.scheduler, "image_size": json.dumps(seed.image_size),
    }  # fmt: skip
    safetensors.torch.save_file({"latents": seed.latents.contiguous()}, path, metadata)
    return path


def read_seed(path: str | Path, studio: Studio, *, name: str = "") -> Seed:
    """The seed of a file that ``write_seed`` made for the same checkpoint.

    Raises:
        ValueError: one sentence for another file, another checkpoint or shape, or values that are not finite.
    """
    path = Path(path)
    name = name or path.name
    if path.stat().st_size > studio.bounds.bytes:
        raise ValueError(f"{name} is longer than {studio.bounds.bytes / 1e6:g} MB, which no seed is: choose another.")
    try:
        with safe_open(path, framework="pt") as file:
            said, latents = file.metadata() or {}, file.get_tensor("latents")
        seed = Seed(
            latents, said["prompt"], int(said["steps"]), float(said["guidance"]),
            tuple(map(int, json.loads(said["image_size"]))), said["model"], said["scheduler"],
        )  # fmt: skip
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{name} is no seed that this page wrote: choose a file that it let you download.") from error
    _check(seed, studio, name)
    return seed


def _check(seed: Seed, studio: Studio, name: str) -> None:
    if seed.fingerprint != studio.fingerprint:
        raise ValueError(
            f"{name} is a seed of another model ({seed.fingerprint[:12]}, this is {studio.fingerprint[:12]}): start "
            "the page with that one."
        )
    expected = tuple(studio.model.family.pack(torch.zeros(1, *studio.model.latent_shape)).shape)
    if tuple(seed.latents.shape) != expected or seed.image_size != studio.model.image_size:
        raise ValueError(f"{name} has a seed of shape {tuple(seed.latents.shape)}, this model takes {expected}.")
    if not seed.latents.is_floating_point() or not seed.latents.isfinite().all():
        raise ValueError(f"{name} has a seed that is not finite: invert its image again.")
    studio.model.schedule(seed.steps)
    if not 1 <= seed.guidance < float("inf"):
        raise ValueError(f"{name} has guidance {seed.guidance:g}, which must be at least 1.")
