"""UNets: Stable Diffusion 1.x, 2.x and XL, turbo and LCM checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from diffusers import (
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from rnri.models.diffusers_schedulers import alpha_bar_table, check_scheduler
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import SUPPORTED, Family, as_pair, check_embedding_dim, check_no_negatives, components
from rnri.models.predictor import Condition, GuidedDenoiser
from rnri.models.schedule import Schedule

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

INPUTS = {
    "encoder_hid_dim_type": (None, "text_proj"),
    "addition_embed_type": (None, "text_time"),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
}
"""The settings of a UNet's further inputs, and those values that text alone can serve."""
INPUTS_OTHER = {"encoder_hid_dim_type": "an image as prompt (IP-Adapter)", "addition_embed_type": "images or hints"} | {
    field: "a class or noise level" for field in ("class_embed_type", "num_class_embeds")
}


@dataclass(frozen=True)
class UNetDenoiser(GuidedDenoiser):
    """A diffusers UNet as a ``Denoiser`` that returns noise.

    Attributes:
        unet: a ``UNet2DConditionModel``.
        prediction_type: what it predicts: ``epsilon``, ``v_prediction`` (Salimans & Ho 2022) or ``sample``.
        alpha_bar: float64 ``[num_train_timesteps]``.
        guidance_embedding: ``[1,D]``, for networks distilled with their guidance as an input (LCM), else None.
    """

    unet: nn.Module
    prediction_type: str
    alpha_bar: Tensor  # [num_train_timesteps]
    guidance_embedding: Tensor | None = None  # [1,D]

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type={self.prediction_type!r} in the scheduler's config; "
                f"known are {', '.join(PREDICTION_TYPES)}."
            )
        super().__post_init__()

    @cached_property
    def dtype(self) -> torch.dtype:
        """The network's own; kept, as diffusers walks all its weights to tell it, which takes a millisecond."""
        return self.unet.dtype

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        embedding = self.guidance_embedding
        with eval_no_grad(self.unet):
            output = self.unet(
                z.to(self.dtype),
                # made there: diffusers would carry a number to the device, and wait
                torch.full((1,), t, dtype=torch.int64 if isinstance(t, int) else z.dtype, device=z.device),
                encoder_hidden_states=condition.text,
                timestep_cond=None if embedding is None else embedding.expand(len(z), -1),
                added_cond_kwargs=dict(condition.added) or None,
                return_dict=False,
            )[0]
        return output.to(z.dtype)

    def to_prediction(self, output: Tensor, z: Tensor, t: float) -> Tensor:
        return to_noise(output, z, float(self.alpha_bar[t]), self.prediction_type)


def to_noise(output: Tensor, z: Tensor, alpha_bar: float, prediction_type: str) -> Tensor:
    """The noise that a network's ``output`` means at ``z``; ``alpha_bar`` in (0, 1)."""
    a, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return a * output + sigma * z
    return (z - a * output) / sigma


def check_inputs(unet: Mapping[str, object], vae: Mapping[str, object]) -> None:
    """ValueError for the config of a UNet that takes more than a latent, a timestep and text."""
    channels, latent = unet.get("in_channels"), vae.get("latent_channels")
    if channels != latent:
        raise ValueError(
            f"in_channels={channels} in the config.json of the unet, but the VAE's latents have {latent} channels: "
            f"inpainting, depth, and other image-conditioned checkpoints cannot be inverted; supported are {SUPPORTED}."
        )
    if unet.get("out_channels", latent) != latent:
        raise ValueError(
            f"out_channels={unet['out_channels']} in the config.json of the unet, but the VAE's latents have {latent} "
            f"channels: a network that learns its variance is not supported; supported are {SUPPORTED}."
        )
    for field, known in INPUTS.items():
        if unet.get(field) not in known:
            raise ValueError(
                f"{field}={unet[field]!r} in the config.json of the unet: it takes {INPUTS_OTHER.get(field, 'more')}, "
                f"which is not given here; supported are {SUPPORTED}, without IP-Adapter (pipe.unload_ip_adapter())."
            )


class UNetFamily(Family):
    """Pipelines around a ``UNet2DConditionModel``; their schedules are deterministic DDIM's."""

    pipelines: ClassVar = (StableDiffusionPipeline, StableDiffusionXLPipeline, LatentConsistencyModelPipeline)
    network_name: ClassVar = "unet"

    @property
    def channels(self) -> int:
        return self.network.config.in_channels

    @property
    def latent_size(self) -> tuple[int, int]:
        """The UNet's; of one without a ``sample_size``, that of the VAE's images."""
        vae, factor = self.pipeline.vae.config, 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)
        if self.network.config.sample_size is None and vae.sample_size is not None:
            height, width = as_pair(vae.sample_size)
            return height // factor, width // factor
        return super().latent_size

    @classmethod
    def required_components(cls, pipeline: type[DiffusionPipeline]) -> tuple[str, ...]:
        second = ("text_encoder_2", "tokenizer_2") if issubclass(pipeline, StableDiffusionXLPipeline) else ()
        return (*super().required_components(pipeline), *second)

    def check(self) -> None:
        check_inputs(self.network.config, self.pipeline.vae.config)
        self._check_sizes()
        self._check_text_width()
        check_scheduler(self.pipeline.scheduler)

    def _check_text_width(self) -> None:
        """The text encoders' states, one beside the other, are what the UNet attends to."""
        config, names = self.network.config, ("text_encoder", "text_encoder_2")
        encoders = [getattr(self.pipeline, name, None) for name in names]
        width = sum(encoder.config.hidden_size for encoder in encoders if encoder is not None)
        field = "cross_attention_dim" if config.get("encoder_hid_dim") is None else "encoder_hid_dim"
        given = config[field]
        for expected in [given] if isinstance(given, int) else given:
            if not isinstance(expected, int):  # one of several levels, each with its layers' widths
                continue
            check_embedding_dim("unet", field, expected, width, "the hidden size (of two, the sum)")

    def _check_sizes(self) -> None:
        """SDXL's micro-conditioning: six sizes and the pooled text; the refiner's has five and a score."""
        config, second = self.network.config, getattr(self.pipeline, "text_encoder_2", None)
        if config.get("addition_embed_type") is None:
            return
        if second is None:
            raise ValueError(
                "addition_embed_type='text_time' in the config.json of the unet, which StableDiffusionXLPipeline "
                f"feeds and {type(self.pipeline).__name__} does not: make that pipeline of its parts."
            )
        pooled = second.config.projection_dim
        expected, found = (
            config["projection_class_embeddings_input_dim"],
            6 * config["addition_time_embed_dim"] + pooled,
        )
        if expected != found:
            raise ValueError(
                f"projection_class_embeddings_input_dim={expected} in the config.json of the unet, but SDXL's six "
                f"sizes and pooled text make {found}: SDXL's refiner and other image-conditioned checkpoints are not "
                f"supported, but the base is; supported are {SUPPORTED}."
            )

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> UNetDenoiser:
        """As the pipeline's own; networks distilled with guidance as an input (LCM) get it as that input."""
        width = self.network.config.get("time_cond_proj_dim")
        if width is not None:
            check_no_negatives(negatives, "LCM")
        guided = guidance > 1 and width is None
        positive, negative = self._conditions(prompts, guided, negatives, image_size)
        return UNetDenoiser(
            unet=self.network,
            prediction_type=self.pipeline.scheduler.config.get("prediction_type", "epsilon"),
            alpha_bar=alpha_bar_table(self.pipeline.scheduler),
            positive=positive,
            negative=negative,
            guidance=guidance if guided else 1.0,
            guidance_embedding=None if width is None else self._guidance_embedding(guidance, width),
        )

    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        return Schedule.from_scheduler(self.pipeline.scheduler, steps)

    @torch.no_grad()
    def _conditions(
        self, prompts: list[str], guided: bool, negatives: list[str], image_size: tuple[int, int]
    ) -> tuple[Condition, Condition | None]:
        """The prompts' condition and, if ``guided``, the negative one, as the pipeline itself makes them."""
        # SDXL's own empty prompt is zeros rather than the encoding of "", which only None asks for.
        given = negatives if guided and any(negatives) else None
        with eval_no_grad(*components(self.pipeline).values()):
            encoded = self.pipeline.encode_prompt(
                prompt=prompts,
                device=torch.device(self.pipeline._execution_device),
                num_images_per_prompt=1,
                do_classifier_free_guidance=guided,
                negative_prompt=given,
            )
        added, negative_added = {}, {}
        if len(encoded) > 2:
            added, negative_added = self._added_conditions(encoded[2:], len(prompts), image_size)
        negative = Condition(encoded[1], negative_added) if guided else None
        if given and not all(given):
            named = torch.tensor([bool(text) for text in given])
            negative = negative.where(named, self._conditions(prompts, guided, [""] * len(prompts), image_size)[1])
        return Condition(encoded[0], added), negative

    def _added_conditions(
        self, pooled: tuple[Tensor, Tensor | None], batch: int, image_size: tuple[int, int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        """SDXL's pooled text and sizes: original and target size are the image's own, without a crop."""
        sizes = self.pipeline._get_add_time_ids(
            image_size, (0, 0), image_size, dtype=pooled[0].dtype,
            text_encoder_projection_dim=self.pipeline.text_encoder_2.config.projection_dim,
        )  # fmt: skip
        sizes = sizes.to(pooled[0].device).repeat(batch, 1)  # [B,6]
        return {"text_embeds": pooled[0], "time_ids": sizes}, {"text_embeds": pooled[1], "time_ids": sizes}

    def _guidance_embedding(self, guidance: float, width: int) -> Tensor:
        embedding = self.pipeline.get_guidance_scale_embedding(torch.tensor([guidance - 1]), embedding_dim=width)
        return embedding.to(self.pipeline._execution_device, self.network.dtype)
