"""The families of pipelines that are known here, and which one a pipeline belongs to."""

from __future__ import annotations

from diffusers import AutoencoderTiny, DiffusionPipeline

from rnri.models.family import SUPPORTED, Family
from rnri.models.flux import FluxFamily
from rnri.models.sd3 import SD3Family
from rnri.models.unet import UNetFamily

FAMILIES: tuple[type[Family], ...] = (UNetFamily, SD3Family, FluxFamily)


def family_of(pipeline: DiffusionPipeline) -> Family:
    """The family of a pipeline in memory.

    Raises:
        ValueError: one sentence for a pipeline of no known family, one that is not text to image, or one without a
            VAE.
    """
    name = type(pipeline).__name__
    for family in FAMILIES:
        if isinstance(pipeline, family.pipelines):
            lacking = [
                part for part in family.required_components(type(pipeline)) if getattr(pipeline, part, None) is None
            ]
            if lacking:
                raise ValueError(f"{name} lacks its {' and '.join(lacking)}: load it with all its parts.")
            _check_vae(pipeline)
            return family(pipeline)
    twin = _text_to_image(pipeline)
    remedy = f": make one of its parts, such as {twin}(**pipe.components)" if twin else f"; supported are {SUPPORTED}"
    raise ValueError(f"{name} is no text-to-image pipeline known here{remedy}.")


def _check_vae(pipeline: DiffusionPipeline) -> None:
    """ValueError for an autoencoder without a posterior, whose mean is an image's latent."""
    vae = pipeline.vae
    if isinstance(vae, AutoencoderTiny) or "latent_channels" not in getattr(vae, "config", {}):
        raise ValueError(
            f"the vae is {type(vae).__name__}, which gives no latents with a mean: use the checkpoint's own "
            "AutoencoderKL."
        )


def _text_to_image(pipeline: DiffusionPipeline) -> str | None:
    """The known text-to-image pipeline of the same parts, where there is one."""
    name = type(pipeline).__name__
    if getattr(pipeline, "unet", None) is not None and hasattr(pipeline, "encode_prompt"):
        return UNetFamily.pipelines[1 if hasattr(pipeline, "text_encoder_2") else 0].__name__
    return next(
        (
            family.pipelines[0].__name__
            for family, prefix in ((SD3Family, "StableDiffusion3"), (FluxFamily, "Flux"))
            if name.startswith(prefix) and hasattr(pipeline, "encode_prompt")
        ),
        None,
    )
