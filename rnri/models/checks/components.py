"""Checks that all components of a loaded pipeline exist and fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusers import AutoencoderTiny, DiffusionPipeline
from torch import nn

UNET_INPUTS = {
    "encoder_hid_dim_type": ((None, "text_proj"), "an image prompt (IP-Adapter)"),
    "addition_embed_type": ((None, "text_time"), "images or hints"),
    "class_embed_type": ((None,), "a class or noise level"),
    "num_class_embeds": ((None,), "a class or noise level"),
}
"""Config fields that define additional inputs of a UNet.

The value for each field is ``(values, requirement)``: a UNet with one of ``values`` needs no input except text, and a
UNet with any other value needs the additional input ``requirement``.
"""


def check_required_components(pipeline: DiffusionPipeline, names: Sequence[str]) -> None:
    """Raise ValueError unless the pipeline has all components in ``names`` and a supported VAE."""
    pipeline_name = type(pipeline).__name__
    missing = [name for name in names if getattr(pipeline, name, None) is None]
    if missing:
        raise ValueError(
            f"{pipeline_name} lacks its {' and '.join(missing)}: load the pipeline with all its components."
        )
    vae = pipeline.vae
    if isinstance(vae, AutoencoderTiny) or vae_channels(vae) is None:
        raise ValueError(
            f"the VAE is {type(vae).__name__}, which has no posterior mean: use the checkpoint's AutoencoderKL."
        )


def vae_channels(vae: nn.Module) -> int | None:
    """Return the number of channels of the latents of ``vae``; None if the config of ``vae`` does not define it."""
    config = getattr(vae, "config", {})
    return config.get("latent_channels", config.get("z_dim"))


def check_latent_channels(pipeline: DiffusionPipeline, channels: int, remedy: str) -> None:
    """Raise ValueError unless the transformer takes as many channels as the VAE's latents have.

    Args:
        channels: number of latent channels that the transformer takes.
        remedy: advice at the end of the error message.
    """
    latent_channels = vae_channels(pipeline.vae)
    if channels != latent_channels:
        raise ValueError(
            f"the transformer of {type(pipeline).__name__} takes {channels} channels, but the VAE's latents have "
            f"{latent_channels} channels: {remedy}."
        )


def check_unet_inputs(unet: Mapping[str, object], vae: Mapping[str, object], supported: str) -> None:
    """Raise ValueError if the config of a UNet requires inputs other than a latent, a timestep and text."""
    channels = unet.get("in_channels")
    latent_channels = vae.get("latent_channels")
    if channels != latent_channels:
        raise ValueError(
            f"in_channels={channels} in the config.json of the unet, but the VAE's latents have {latent_channels} "
            "channels: inpainting, depth, and other image-conditioned checkpoints are not supported; load a supported "
            f"model ({supported})."
        )
    if unet.get("out_channels", latent_channels) != latent_channels:
        raise ValueError(
            f"out_channels={unet['out_channels']} in the config.json of the unet, but the VAE's latents have "
            f"{latent_channels} channels: networks with a learned variance are not supported; load a supported model "
            f"({supported})."
        )
    for field, (values, requirement) in UNET_INPUTS.items():
        if unet.get(field) not in values:
            raise ValueError(
                f"{field}={unet[field]!r} in the config.json of the unet: this UNet needs {requirement} in addition "
                "to text; call pipe.unload_ip_adapter() if an IP-Adapter is loaded, or load a supported model "
                f"({supported})."
            )


def check_no_image_prompt(name: str, network: nn.Module) -> None:
    """Raise ValueError if an IP-Adapter is loaded into ``network``, because the network then needs an image prompt.

    ``name`` is the name of the pipeline component, such as ``transformer``.
    """
    if any("IPAdapter" in type(getattr(module, "processor", None)).__name__ for module in network.modules()):
        raise ValueError(
            f"the pipeline's {name} has an IP-Adapter, whose image prompt would be ignored: call "
            "pipe.unload_ip_adapter()."
        )


def check_size_conditioning(pipeline: DiffusionPipeline, supported: str) -> None:
    """Raise ValueError unless the UNet takes the additional inputs of SDXL's base model.

    The additional inputs are six numbers (height and width of the original size, of the crop offset and of the target
    size) and the pooled text embedding. The UNet of SDXL's refiner takes five numbers instead of six: the original
    size, the crop offset and an aesthetics score.
    """
    config = pipeline.unet.config
    text_encoder = getattr(pipeline, "text_encoder_2", None)
    if config.get("addition_embed_type") is None:
        return
    if text_encoder is None:
        raise ValueError(
            "addition_embed_type='text_time' in the config.json of the unet: this UNet needs inputs that "
            f"{type(pipeline).__name__} does not provide; create a StableDiffusionXLPipeline from the components of "
            "this pipeline."
        )
    expected = config["projection_class_embeddings_input_dim"]
    actual = 6 * config["addition_time_embed_dim"] + text_encoder.config.projection_dim
    if expected != actual:
        raise ValueError(
            f"projection_class_embeddings_input_dim={expected} in the config.json of the unet, but SDXL's size "
            f"embeddings and pooled text embedding together have {actual} elements: SDXL's refiner and other "
            "image-conditioned checkpoints are not supported; load SDXL's base model or another supported model "
            f"({supported})."
        )


def check_embedding_dim(network_name: str, field: str, *, expected: int, actual: int, source: str) -> None:
    """Raise ValueError unless the text embeddings have the width that the network's config expects.

    Args:
        network_name: name of the network's component, for the error message.
        field: name of the field in the network's config that defines the expected width.
        expected: value of the config field ``field``.
        actual: width of the text embeddings.
        source: what ``actual`` is, for the error message, such as "the hidden size (CLIP)".
    """
    if expected != actual:
        raise ValueError(
            f"{field}={expected} in the config.json of the {network_name}, but {source} of the pipeline's text "
            f"encoders is {actual}; take all components from one checkpoint."
        )
