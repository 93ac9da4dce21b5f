"""FLUX.2 dev and klein: a flow-matching transformer on patches of latents, which are normalized by a batch norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline, ModelMixin
from torch import Tensor

from rnri.models.checks.components import check_embedding_dim, check_latent_channels
from rnri.models.checks.schedulers import check_flow_scheduler, check_steps
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import TransformerFamily, components, register_family
from rnri.models.flux import FluxDenoiser
from rnri.models.predictor import Condition
from rnri.models.schedule import Schedule

PATCH = 2
"""Side of the square patches of VAE latents that become the channels of one element of the pipeline's latents."""

TEXT_LAYERS = 3
"""Number of text encoder layers; the hidden states of these layers are concatenated to form the text embeddings."""


@dataclass(frozen=True)
class Flux2Denoiser(FluxDenoiser):
    """``Denoiser`` that returns the velocity (noise minus clean latent) predicted by a ``Flux2Transformer2DModel``.

    Each spatial element of the latents is one image token. The position ids of L text tokens have the shape ``[L,4]``,
    and the position ids of the image tokens of latents of size ``(h, w)`` have the shape ``[hw,4]``.
    """

    def to_tokens(self, z: Tensor) -> Tensor:
        return z.flatten(2).transpose(1, 2)

    def from_tokens(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, size)

    def condition_inputs(self, condition: Condition) -> dict[str, Tensor | None]:
        return {"guidance": condition.added.get("guidance")}


@register_family
class Flux2Family(TransformerFamily):
    """Model family of ``Flux2Pipeline`` (FLUX.2 dev), which takes the guidance scale as an input of the network.

    The latents ``[B,4C,h,w]`` are 2 x 2 patches of the VAE's latents ``[B,C,2h,2w]``, normalized by the running mean
    and variance of the VAE's batch norm. The pipeline's argument ``latents=`` takes the same latents.
    """

    pipelines: ClassVar = (Flux2Pipeline,)
    supported: ClassVar = "FLUX.2 dev"

    @property
    def latent_size(self) -> tuple[int, int]:
        size = self.pipeline.default_sample_size // PATCH  # the transformer's config has no size
        return size, size

    @property
    def pixels_per_latent(self) -> int:
        return PATCH * super().pixels_per_latent

    @property
    def default_guidance(self) -> float:
        return 4.0 if self.network.config.guidance_embeds else 1.0

    def latent_statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the running mean and standard deviation of the VAE's batch norm, each ``[1,4C,1,1]``."""
        vae = self.pipeline.vae
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        std = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
        return mean.to(latents), std.to(latents)

    def vae_mean(self, vae: ModelMixin, pixels: Tensor) -> Tensor:
        return self.pipeline._patchify_latents(super().vae_mean(vae, pixels))

    def vae_decode(self, vae: ModelMixin, latents: Tensor) -> Tensor:
        return super().vae_decode(vae, self.pipeline._unpatchify_latents(latents))

    def check(self) -> None:
        check_latent_channels(
            self.pipeline, self.channels // PATCH**2, "take the transformer and the VAE from one checkpoint"
        )
        check_embedding_dim(
            "transformer",
            "joint_attention_dim",
            expected=self.network.config.joint_attention_dim,
            actual=TEXT_LAYERS * self.pipeline.text_encoder.config.get_text_config().hidden_size,
            source=f"{TEXT_LAYERS} times the hidden size",
        )
        check_flow_scheduler(self.pipeline.scheduler)

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> Flux2Denoiser:
        """Return the denoiser for ``prompts``; the network of FLUX.2 dev takes the guidance scale as an input.

        Raises:
            ValueError: a negative prompt is not empty, or ``guidance`` is not 1 and the network takes no guidance
            scale.
        """
        self._check_negatives(negatives)
        embeds_guidance = bool(self.network.config.guidance_embeds)
        if guidance != 1 and not embeds_guidance:
            raise ValueError(
                f"guidance={guidance:g} has no effect on a transformer without a guidance input "
                f"({type(self.pipeline).__name__}): set guidance to 1."
            )
        condition, text_ids = self._encode_prompts(prompts)
        if embeds_guidance:
            scales = torch.full((len(prompts),), guidance, dtype=torch.float32, device=condition.text.device)
            condition = Condition(condition.text, {"guidance": scales})
        return Flux2Denoiser(
            transformer=self.network,
            text_ids=text_ids,
            image_ids=self._image_ids(image_size),
            positive=condition,
        )

    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        """Return the pipeline's schedule: sigmas from 1 to ``1 / steps``.

        With dynamic shifting, the shift of the sigmas depends on the number of image tokens and on ``steps``.
        """
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        scheduler = self.pipeline.scheduler
        check_steps(steps, scheduler.config.num_train_timesteps)
        mu = None
        if scheduler.config.use_dynamic_shifting:
            mu = compute_empirical_mu(self.image_tokens(latent_size), steps)
        return Schedule.from_scheduler(scheduler, steps, sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)

    def _check_negatives(self, negatives: list[str]) -> None:
        """Raise ValueError if a negative prompt is not empty; the pipelines of FLUX.2 take no negative prompt."""
        if any(negatives):
            raise ValueError(
                f"negative_prompt={negatives!r} has no effect on {type(self.pipeline).__name__}, which takes no "
                "negative prompt: leave negative_prompt empty."
            )

    def _encode_prompts(self, prompts: list[str]) -> tuple[Condition, Tensor]:
        """Return the text embeddings and the position ids ``[L,4]`` of their tokens."""
        device = torch.device(self.pipeline._execution_device)
        with torch.no_grad(), eval_no_grad(*components(self.pipeline).values()):
            text, text_ids = self.pipeline.encode_prompt(prompt=prompts, device=device)
        return Condition(text), text_ids[0]

    def _image_ids(self, image_size: tuple[int, int]) -> Tensor:
        """Return the position ids ``[hw,4]`` of the image tokens of images of ``image_size`` ``(H, W)`` in pixels."""
        height, width = (side // self.pixels_per_latent for side in image_size)
        ids = self.pipeline._prepare_latent_ids(torch.empty(1, 1, height, width))[0]
        return ids.to(torch.device(self.pipeline._execution_device))


@register_family
class Flux2KleinFamily(Flux2Family):
    """Model family of ``Flux2KleinPipeline``: the base and the distilled checkpoints of FLUX.2 klein.

    Base checkpoints use classifier-free guidance, whose negative prompt is always empty, as in the pipeline. Distilled
    checkpoints (``is_distilled`` in model_index.json) have no guidance.
    """

    pipelines: ClassVar = (Flux2KleinPipeline,)
    supported: ClassVar = "FLUX.2 klein"

    @property
    def default_guidance(self) -> float:
        return 1.0 if self.pipeline.config.is_distilled else 4.0

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> Flux2Denoiser:
        """Return the denoiser for ``prompts``, with classifier-free guidance if ``guidance`` is above 1.

        Raises:
            ValueError: a negative prompt is not empty, or ``guidance`` is not 1 and the checkpoint is distilled.
        """
        self._check_negatives(negatives)
        if guidance != 1 and self.pipeline.config.is_distilled:
            raise ValueError(
                f"guidance={guidance:g} has no effect on a distilled FLUX.2 klein (is_distilled in model_index.json): "
                "set guidance to 1."
            )
        positive, text_ids = self._encode_prompts(prompts)
        negative = self._encode_prompts(negatives)[0] if guidance > 1 else None
        return Flux2Denoiser(
            transformer=self.network,
            text_ids=text_ids,
            image_ids=self._image_ids(image_size),
            positive=positive,
            negative=negative,
            guidance=guidance,
        )
