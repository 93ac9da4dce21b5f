"""FLUX.1 dev and schnell: a flow-matching transformer on packed latents; dev takes the guidance scale as an input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from torch import Tensor

from rnri.models.checks.components import check_embedding_dim, check_latent_channels
from rnri.models.checks.inputs import check_no_negative_prompts
from rnri.models.checks.schedulers import check_flow_scheduler, check_steps
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import PackedTransformerFamily, components, register_family
from rnri.models.predictor import Condition, TransformerDenoiser
from rnri.models.schedule import Schedule

if TYPE_CHECKING:
    from rnri.models.attention.injection import InjectionEditor

TIMESTEP_SCALE = 1_000
"""Constant by which FLUX's pipeline divides timesteps, independent of the scheduler's config."""


@dataclass(frozen=True)
class FluxDenoiser(TransformerDenoiser):
    """``Denoiser`` that returns the velocity (noise minus clean latent) predicted by a ``FluxTransformer2DModel``.

    The guidance scale, which the network of FLUX.1 dev takes as an input, is part of the condition.

    Attributes:
        text_ids: position ids of the L text tokens, ``[L,3]``.
        image_ids: position ids of the image tokens of latents of size ``(h, w)``, ``[hw/4,3]``.
    """

    text_ids: Tensor  # [L,3]
    image_ids: Tensor  # [hw/4,3]

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        # As in the pipeline, the timestep is converted to the network's dtype before the division; in half precision,
        # converting it after the division would give a different result.
        timestep = self.timesteps(z, t).to(self.dtype) / TIMESTEP_SCALE
        with eval_no_grad(self.transformer):
            output = self.transformer(
                hidden_states=self.to_tokens(z.to(self.dtype)),
                timestep=timestep,
                encoder_hidden_states=condition.text,
                txt_ids=self.text_ids,
                img_ids=self.image_ids,
                **self.condition_inputs(condition),
                return_dict=False,
            )[0]
        return self.from_tokens(output, (z.shape[-2], z.shape[-1])).to(z.dtype)

    def to_tokens(self, z: Tensor) -> Tensor:
        """Convert latents ``z [B,C,h,w]`` to the image tokens of the transformer."""
        return pack(z)

    def from_tokens(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Convert image tokens of the transformer to latents ``[B,C,h,w]``; ``size`` is ``(h, w)``."""
        return unpack(tokens, size)

    def condition_inputs(self, condition: Condition) -> dict[str, Tensor | None]:
        """Return the inputs of the transformer that ``condition`` contains in addition to the text embeddings."""
        return {"guidance": condition.added.get("guidance"), "pooled_projections": condition.added["pooled"]}


def pack(latents: Tensor) -> Tensor:
    """Convert ``latents [B,C,h,w]`` to tokens ``[B,hw/4,4C]``; each token is a patch of 2 x 2 latent elements."""
    batch_size, channels, height, width = latents.shape
    patches = latents.reshape(batch_size, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch_size, (height // 2) * (width // 2), 4 * channels)


def unpack(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert ``tokens [B,hw/4,4C]`` to latents ``[B,C,h,w]``; ``size`` is ``(h, w)`` of the latents."""
    height, width = size
    batch_size, _, channels = tokens.shape
    patches = tokens.reshape(batch_size, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch_size, channels // 4, height, width)


@register_family
class FluxFamily(PackedTransformerFamily):
    """Model family of ``FluxPipeline`` (FLUX.1 dev and schnell)."""

    pipelines: ClassVar = (FluxPipeline,)
    supported: ClassVar = "FLUX.1"

    @property
    def default_guidance(self) -> float:
        return 3.5 if self._embeds_guidance else 1.0

    @property
    def _embeds_guidance(self) -> bool:
        return bool(self.network.config.guidance_embeds)

    def check(self) -> None:
        check_latent_channels(
            self.pipeline,
            self.channels,
            "Fill, Canny, Depth and other image-conditioned checkpoints cannot be inverted",
        )
        config = self.network.config
        check_embedding_dim(
            "transformer",
            "pooled_projection_dim",
            expected=config.pooled_projection_dim,
            actual=self.pipeline.text_encoder.config.hidden_size,
            source="the hidden size (CLIP)",
        )
        check_embedding_dim(
            "transformer",
            "joint_attention_dim",
            expected=config.joint_attention_dim,
            actual=self.pipeline.text_encoder_2.config.d_model,
            source="d_model (T5)",
        )
        check_flow_scheduler(self.pipeline.scheduler)

    @classmethod
    def required_components(cls, pipeline_class: type[DiffusionPipeline]) -> tuple[str, ...]:
        return (*super().required_components(pipeline_class), "text_encoder_2", "tokenizer_2")

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> FluxDenoiser:
        """Return the denoiser for ``prompts``.

        The network of FLUX.1 dev takes ``guidance`` as an input. ``guidance`` must be 1 for FLUX.1 schnell.
        """
        check_no_negative_prompts(negatives, "FLUX")
        if guidance != 1 and not self._embeds_guidance:
            raise ValueError(
                f"guidance={guidance:g} has no effect on a transformer without a guidance input (FLUX.1 schnell): "
                "set guidance to 1."
            )
        device = torch.device(self.pipeline._execution_device)
        with torch.no_grad(), eval_no_grad(*components(self.pipeline).values()):
            text, pooled, text_ids = self.pipeline.encode_prompt(prompt=prompts, prompt_2=None, device=device)
        image_ids = self.image_ids(len(prompts), image_size, text.dtype)
        added = {"pooled": pooled}
        if self._embeds_guidance:
            added["guidance"] = torch.full((len(prompts),), guidance, dtype=torch.float32, device=device)
        return FluxDenoiser(
            transformer=self.network,
            text_ids=text_ids,
            image_ids=image_ids,
            positive=Condition(text, added),
        )

    def image_ids(self, batch_size: int, image_size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return the position ids ``[hw/4,3]`` of the image tokens of images of ``image_size`` ``(H, W)`` in pixels."""
        height, width = (side // (2 * self.pipeline.vae_scale_factor) for side in image_size)
        device = torch.device(self.pipeline._execution_device)
        return self.pipeline._prepare_latent_image_ids(batch_size, height, width, device, dtype)

    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        """Return the pipeline's schedule; before the scheduler's shift, the sigmas descend from 1 to ``1 / steps``.

        With dynamic shifting, the shift of the sigmas depends on the number of image tokens.
        """
        config = self.pipeline.scheduler.config
        check_steps(steps, config.num_train_timesteps)
        mu = self.dynamic_shift(latent_size)
        sigmas = None if config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps).tolist()
        return Schedule.from_scheduler(self.pipeline.scheduler, steps, sigmas=sigmas, mu=mu)

    def pack(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def unpack(self, latents: Tensor, latent_size: tuple[int, int]) -> Tensor:
        return unpack(latents, latent_size)

    def attention_editor(self) -> InjectionEditor:
        from rnri.models.attention.injection import FluxInjectionProcessor, InjectionEditor  # only edits need it

        return InjectionEditor(FluxInjectionProcessor, self.pixels_per_latent * self.patch)
