"""Files that visitors download: edited images, and seeds in the format of ``rnri.PipelineInversion.save``.

If an inversion computed the seed, the seed file contains the complete inversion, and ``rnri.load`` can read the file.
If the seed was optimized, the seed file contains only the seed and the arguments of the pipeline call.
"""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

import torch
from PIL import Image

import rnri
from experiments.app.context import AppContext
from experiments.app.edits import Seed
from rnri.seed_file import read_seed_file, write_seed_file

MAX_FILE_AGE_S = 3600
"""Age in seconds at which files in the folder for downloads are deleted.

A download does not need these files, because Gradio serves downloads from its own cache.
"""
DIGEST = re.compile(r"[0-9a-f]{64}")
"""Pattern of the SHA-256 hash of a seed."""


def delete_old_files(folder: Path) -> None:
    """Delete the files in ``folder`` that are older than ``MAX_FILE_AGE_S``."""
    oldest = time.time() - MAX_FILE_AGE_S
    for path in folder.rglob("*.*"):
        if path.is_file() and path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)


def write_image(image: Image.Image, prompt: str, folder: Path) -> Path:
    """Write ``image`` to a PNG file and return the path. The file name consists of the words of ``prompt``."""
    delete_old_files(folder)
    digest = hashlib.sha256(image.tobytes()).hexdigest()[:16]  # images with equal prompts need different folders
    name = "-".join(re.findall(r"[a-z0-9]+", prompt.lower()))[:80].strip("-")
    path = folder / digest / f"{name or 'edit'}.png"
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return path


def write_seed(seed: Seed, folder: str | Path) -> Path:
    """Write ``seed`` to a file in ``folder`` and return the path. The file name contains the digest of the seed."""
    delete_old_files(Path(folder))
    path = _seed_path(seed.digest, Path(folder))
    if seed.inversion is not None:
        return seed.inversion.save(path, checkpoint=seed.fingerprint)
    settings = {
        "prompts": [seed.prompt],
        "negative_prompts": [seed.negative_prompt],
        "num_inference_steps": seed.steps,
        "guidance_scale": seed.guidance,
        "image_size": seed.image_size,
        "scheduler": seed.scheduler,
        "checkpoint": seed.fingerprint,
    }
    return write_seed_file(path, {"latents": seed.latents}, settings)


def read_stored_seed(digest: str, context: AppContext, folder: Path) -> Seed | None:
    """Read the seed with the digest ``digest`` that :func:`write_seed` wrote; return None if the file is deleted."""
    path = _seed_path(digest, folder)
    if not DIGEST.fullmatch(digest) or not path.is_file():
        return None
    seed = read_seed(path, context)
    return seed if seed.digest == digest else None


def _seed_path(digest: str, folder: Path) -> Path:
    return folder / f"seed-{digest[:16]}.safetensors"


def read_seed(path: str | Path, context: AppContext, *, name: str = "") -> Seed:
    """Read a seed from a file that this page or ``rnri.PipelineInversion.save`` wrote.

    If ``name`` is set, error messages contain ``name`` instead of the file name.

    Raises:
        ValueError: the file is not a seed file or contains several seeds, or the seed does not fit the model of the
            page or is not finite.
    """
    path = Path(path)
    name = name or path.name
    if path.stat().st_size > context.limits.max_bytes:
        raise ValueError(
            f"{name} is larger than {context.limits.max_bytes / 1e6:g} MB and not a seed file; choose a file that this "
            "page or PipelineInversion.save wrote."
        )
    try:
        tensors, settings = read_seed_file(path)
        inversion = rnri.load(path) if "z0" in tensors else None
        prompts = settings["prompts"]
        seed = Seed(
            latents=tensors["latents"],
            prompt=prompts[0],
            negative_prompt=settings["negative_prompts"][0],
            steps=int(settings["num_inference_steps"]),
            guidance=float(settings["guidance_scale"]),
            image_size=tuple(settings["image_size"]),
            fingerprint=settings.get("checkpoint"),
            scheduler=settings["scheduler"],
            inversion=inversion,
        )
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(
            f"{name} is not a seed file; choose a file that this page or PipelineInversion.save wrote."
        ) from error
    if len(prompts) != 1:
        raise ValueError(f"{name} contains {len(prompts)} seeds; save one of them with inversion[i].save(path).")
    _check(seed, context, name)
    return seed


def _check(seed: Seed, context: AppContext, name: str) -> None:
    """Raise ValueError if the model of the page cannot generate an image from ``seed``."""
    if seed.fingerprint not in (None, context.fingerprint):
        raise ValueError(
            f"{name} is a seed of another model (fingerprint {seed.fingerprint[:12]}; the model of the page has "
            f"{context.fingerprint[:12]}); start the page with the model of the seed."
        )
    expected = tuple(context.model.family.pack(torch.zeros(1, *context.model.latent_shape)).shape)
    shape = tuple(seed.latents.shape)
    if shape != expected or seed.image_size != context.model.image_size:
        raise ValueError(
            f"{name} has a seed of shape {shape} for images of {seed.image_size} pixels, but the model "
            f"of the page needs a seed of shape {expected} for images of {context.model.image_size} pixels; start the "
            "page with the model of the seed."
        )
    if not seed.latents.is_floating_point() or not seed.latents.isfinite().all():
        raise ValueError(f"{name} has a seed with NaN or infinite values; invert the image again.")
    if seed.inversion is not None:
        try:
            seed.inversion.check_pipeline(context.model.pipeline)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if not 1 <= seed.guidance < float("inf"):
        raise ValueError(f"{name} has the guidance scale {seed.guidance:g}; invert the image again with a scale >= 1.")
