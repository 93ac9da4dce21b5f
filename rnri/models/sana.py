"""SANA: a flow-matching transformer on the latents of a deep-compression autoencoder, with Gemma as text encoder."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin, SanaPipeline
from torch import Tensor

from rnri.models.checks.components import check_embedding_dim, check_latent_channels
from rnri.models.checks.schedulers import check_flow_scheduler
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import TransformerFamily, components, register_family
from rnri.models.predictor import Condition, TransformerDenoiser
from rnri.models.schedule import Schedule

MULTIPLE = 32
"""The pipeline accepts images whose height and width are multiples of this number of pixels."""


@dataclass(frozen=True)
class SanaDenoiser(TransformerDenoiser):
    """``Denoiser`` that returns the velocity (noise minus clean latent) predicted by a ``SanaTransformer2DModel``.

    ``Condition.added["mask"]`` (int64 ``[B,L]``) excludes the padding tokens of the text from the attention.
    """

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        with eval_no_grad(self.transformer):
            output = self.transformer(
                z.to(self.dtype),
                encoder_hidden_states=condition.text.to(self.dtype),
                encoder_attention_mask=condition.added["mask"],
                timestep=self.timesteps(z, t) * self.transformer.config.timestep_scale,
                return_dict=False,
            )[0]
        return output[:, : z.shape[1]].to(z.dtype)


@register_family
class SanaFamily(TransformerFamily):
    """Model family of ``SanaPipeline`` with a flow-matching Euler scheduler."""

    pipelines: ClassVar = (SanaPipeline,)
    supported: ClassVar = "SANA"

    @property
    def patch(self) -> int:
        """Height and width of the latents must be multiples of ``patch``; the pipeline needs multiples of 32 pixels."""
        return max(super().patch, MULTIPLE // self.pixels_per_latent)

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.pipeline.vae.config.encoder_block_out_channels) - 1)

    @property
    def default_guidance(self) -> float:
        return 4.5

    @property
    def latents_dtype(self) -> torch.dtype:
        """The pipeline keeps the latents in float32, independent of the dtype of the network."""
        return torch.float32

    def vae_mean(self, vae: ModelMixin, pixels: Tensor) -> Tensor:
        """Return the latents of SANA's autoencoder, which has no posterior distribution because it is deterministic."""
        return vae.encode(pixels).latent

    def pipeline_kwargs(self, guidance: float) -> dict[str, Any]:
        """Return arguments that set the guidance scale and disable resolution binning, which changes the image size."""
        return super().pipeline_kwargs(guidance) | {"use_resolution_binning": False}

    def check(self) -> None:
        check_latent_channels(self.pipeline, self.channels, "take the transformer and the VAE from one checkpoint")
        check_embedding_dim(
            "transformer",
            "caption_channels",
            expected=self.network.config.caption_channels,
            actual=self.pipeline.text_encoder.config.hidden_size,
            source="the hidden size (Gemma)",
        )
        if self.network.config.get("guidance_embeds"):
            raise ValueError(
                "guidance_embeds is on in the config.json of the transformer (SANA-Sprint): the sampler of SANA-Sprint "
                "adds noise between steps, which cannot be inverted; use a SANA checkpoint."
            )
        check_flow_scheduler(self.pipeline.scheduler)

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> SanaDenoiser:
        """Return the denoiser for ``prompts``, with classifier-free guidance if ``guidance`` is above 1.

        Each prompt begins with the pipeline's default instruction for the text encoder (``complex_human_instruction``).
        """
        guided = guidance > 1
        instruction = inspect.signature(type(self.pipeline).__call__).parameters["complex_human_instruction"].default
        with torch.no_grad(), eval_no_grad(*components(self.pipeline).values()), self._same_padding_side():
            text, mask, negative_text, negative_mask = self.pipeline.encode_prompt(
                prompts,
                do_classifier_free_guidance=guided,
                negative_prompt=negatives if guided else "",
                device=torch.device(self.pipeline._execution_device),
                complex_human_instruction=instruction,
            )
        return SanaDenoiser(
            transformer=self.network,
            positive=Condition(text, {"mask": mask}),
            negative=Condition(negative_text, {"mask": negative_mask}) if guided else None,
            guidance=guidance,
        )

    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        return Schedule.from_scheduler(self.pipeline.scheduler, steps)

    @contextmanager
    def _same_padding_side(self) -> Iterator[None]:
        """Restore the tokenizer's ``padding_side`` at the end of the ``with`` block.

        The pipeline changes ``padding_side`` when it encodes prompts.
        """
        tokenizer = self.pipeline.tokenizer
        side = tokenizer.padding_side
        try:
            yield
        finally:
            tokenizer.padding_side = side
