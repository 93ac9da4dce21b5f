"""FLUX.1, dev and schnell: a flow-matching transformer over packed latents, guidance an input of the network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import Family, check_embedding_dim, check_no_negatives, components
from rnri.models.flow import check_flow_scheduler, check_steps
from rnri.models.predictor import Condition, GuidedDenoiser
from rnri.models.schedule import Schedule

TIMESTEPS = 1_000  # the pipeline divides its timesteps by it, whatever the scheduler's number


@dataclass(frozen=True)
class FluxDenoiser(GuidedDenoiser):
    """A ``FluxTransformer2DModel`` as a ``Denoiser`` that returns the velocity ``n - x0``.

    Attributes:
        text_ids: ``[L,3]``, image_ids: ``[hw/4,3]``: the places of tokens.
        embedded_guidance: an input of the network; None for one distilled without (schnell).
    """

    transformer: nn.Module
    text_ids: Tensor  # [L,3]
    image_ids: Tensor  # [hw/4,3]
    embedded_guidance: float | None = None

    @cached_property
    def dtype(self) -> torch.dtype:
        """The network's own; kept, as diffusers walks all its weights to tell it, which takes a millisecond."""
        return self.transformer.dtype

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        dtype, guidance = self.dtype, None
        # Single precision halves of a step apart: the pipeline casts its timesteps to the network's dtype first.
        timestep = torch.full((len(z),), t, dtype=torch.float32, device=z.device).to(dtype) / TIMESTEPS
        if self.embedded_guidance is not None:
            guidance = torch.full((len(z),), self.embedded_guidance, dtype=torch.float32, device=z.device)
        with eval_no_grad(self.transformer):
            output = self.transformer(
                hidden_states=pack(z.to(dtype)),
                timestep=timestep,
                guidance=guidance,
                pooled_projections=condition.added["pooled"],
                encoder_hidden_states=condition.text,
                txt_ids=self.text_ids,
                img_ids=self.image_ids,
                return_dict=False,
            )[0]
        return unpack(output, z.shape[-2:]).to(z.dtype)


def pack(latents: Tensor) -> Tensor:
    """Tokens ``[B,hw/4,4C]`` of 2 x 2 patches of ``latents [B,C,h,w]``."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, (height // 2) * (width // 2), 4 * channels)


def unpack(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """``[B,C,h,w]`` of ``tokens [B,hw/4,4C]``; ``size`` is ``(h, w)``."""
    (height, width), (batch, _, channels) = size, tokens.shape
    patches = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, channels // 4, height, width)


class FluxFamily(Family):
    """``FluxPipeline``."""

    pipelines: ClassVar = (FluxPipeline,)
    network_name: ClassVar = "transformer"
    patch: ClassVar = 2

    @property
    def channels(self) -> int:
        return self.network.config.in_channels // 4

    @property
    def latent_size(self) -> tuple[int, int]:
        size = self.pipeline.default_sample_size  # the transformer does not say
        return size, size

    def check(self) -> None:
        latent = self.pipeline.vae.config.latent_channels
        if self.channels != latent:
            raise ValueError(
                f"the transformer of {type(self.pipeline).__name__} takes {self.channels} channels but the VAE's "
                f"latents have {latent}: Fill, Canny, Depth and other image-conditioned checkpoints cannot be inverted."
            )
        config, clip, t5 = self.network.config, self.pipeline.text_encoder, self.pipeline.text_encoder_2
        pooled, joint = config.pooled_projection_dim, config.joint_attention_dim
        check_embedding_dim(
            "transformer", "pooled_projection_dim", pooled, clip.config.hidden_size, "the hidden size (CLIP)"
        )
        check_embedding_dim("transformer", "joint_attention_dim", joint, t5.config.d_model, "d_model (T5)")
        check_flow_scheduler(self.pipeline.scheduler)

    @classmethod
    def required_components(cls, pipeline: type[DiffusionPipeline]) -> tuple[str, ...]:
        return (*super().required_components(pipeline), "text_encoder_2", "tokenizer_2")

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> FluxDenoiser:
        """``guidance`` is the network's input (dev); schnell has none and takes 1 alone."""
        embedded = bool(self.network.config.guidance_embeds)
        check_no_negatives(negatives, "FLUX")
        if guidance != 1 and not embedded:
            raise ValueError(
                f"guidance={guidance:g} has no effect on a transformer distilled without it (FLUX.1 schnell): set it "
                "to 1."
            )
        device = torch.device(self.pipeline._execution_device)
        with torch.no_grad(), eval_no_grad(*components(self.pipeline).values()):
            text, pooled, text_ids = self.pipeline.encode_prompt(prompt=prompts, prompt_2=None, device=device)
        factor = 2 * self.pipeline.vae_scale_factor
        height, width = image_size[0] // factor, image_size[1] // factor
        ids = self.pipeline._prepare_latent_image_ids(len(prompts), height, width, device, text.dtype)
        return FluxDenoiser(
            transformer=self.network,
            text_ids=text_ids,
            image_ids=ids,
            embedded_guidance=guidance if embedded else None,
            positive=Condition(text, {"pooled": pooled}),
        )

    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        """Sigmas from 1 to ``1 / steps``, as the pipeline passes them, and its shift by the number of image tokens."""
        check_steps(self.pipeline.scheduler, steps)
        config, height, width = self.pipeline.scheduler.config, *latent_size
        mu = calculate_shift(
            (height // 2) * (width // 2),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        sigmas = None if config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
        mu = mu if config.get("use_dynamic_shifting") else None
        return Schedule.from_scheduler(self.pipeline.scheduler, steps, sigmas=sigmas, mu=mu)

    def pack(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def unpack(self, latents: Tensor, latent_size: tuple[int, int]) -> Tensor:
        return unpack(latents, latent_size)
