"""Chroma: a variant of FLUX's transformer with classifier-free guidance, and T5 with masked padding as text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from diffusers import ChromaPipeline, DiffusionPipeline, ModelMixin
from torch import Tensor, nn

from rnri.models.checks.components import check_embedding_dim, check_latent_channels
from rnri.models.checks.schedulers import check_flow_scheduler
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import Family, components, register_family
from rnri.models.flux import TIMESTEP_SCALE, FluxFamily, pack, unpack
from rnri.models.predictor import Condition, GuidedDenoiser


@dataclass(frozen=True)
class ChromaDenoiser(GuidedDenoiser):
    """``Denoiser`` that returns the velocity ``n - x0`` predicted by a ``ChromaTransformer2DModel``.

    ``Condition.added["mask"]`` (float ``[B,L+hw/4]``) excludes the padding tokens of the text from the attention.

    Attributes:
        transformer: the ``ChromaTransformer2DModel``.
        text_ids: position ids of the text tokens, ``[L,3]``.
        image_ids: position ids of the image tokens, ``[hw/4,3]``.
    """

    transformer: ModelMixin
    text_ids: Tensor  # [L,3]
    image_ids: Tensor  # [hw/4,3]

    @cached_property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.transformer,)

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        # As in the pipeline, the timestep is converted to the network's dtype before the division. In half precision
        # the result depends on this order.
        timestep = torch.full((len(z),), t, dtype=torch.float32, device=z.device).to(self.dtype) / TIMESTEP_SCALE
        with eval_no_grad(self.transformer):
            output = self.transformer(
                hidden_states=pack(z.to(self.dtype)),
                timestep=timestep,
                encoder_hidden_states=condition.text,
                txt_ids=self.text_ids,
                img_ids=self.image_ids,
                attention_mask=condition.added["mask"],
                return_dict=False,
            )[0]
        return unpack(output, (z.shape[-2], z.shape[-1])).to(z.dtype)


@register_family
class ChromaFamily(FluxFamily):
    """Model family of ``ChromaPipeline``, which uses the latents and the schedule of FLUX.1."""

    pipelines: ClassVar = (ChromaPipeline,)
    supported: ClassVar = "Chroma"

    @classmethod
    def required_components(cls, pipeline_class: type[DiffusionPipeline]) -> tuple[str, ...]:
        return (cls.network_name, "vae", "text_encoder", "tokenizer", "scheduler")

    @property
    def default_guidance(self) -> float:
        return 5.0

    def check(self) -> None:
        check_latent_channels(self.pipeline, self.channels, "take the transformer and the VAE from one checkpoint")
        check_embedding_dim(
            "transformer",
            "joint_attention_dim",
            expected=self.network.config.joint_attention_dim,
            actual=self.pipeline.text_encoder.config.d_model,
            source="d_model (T5)",
        )
        check_flow_scheduler(self.pipeline.scheduler)

    def denoiser(  # type: ignore[override]
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> ChromaDenoiser:
        """Return the denoiser, with classifier-free guidance if ``guidance`` is above 1."""
        guided = guidance > 1
        device = torch.device(self.pipeline._execution_device)
        with torch.no_grad(), eval_no_grad(*components(self.pipeline).values()):
            text, text_ids, mask, negative_text, _, negative_mask = self.pipeline.encode_prompt(
                prompt=prompts,
                negative_prompt=negatives if guided else None,
                device=device,
                do_classifier_free_guidance=guided,
            )
        pixels_per_token = 2 * self.pipeline.vae_scale_factor
        height = image_size[0] // pixels_per_token
        width = image_size[1] // pixels_per_token

        def condition(text: Tensor, mask: Tensor) -> Condition:
            full_mask = self.pipeline._prepare_attention_mask(len(text), height * width, text.dtype, mask)
            return Condition(text, {"mask": full_mask})

        return ChromaDenoiser(
            transformer=self.network,
            text_ids=text_ids,
            image_ids=self.pipeline._prepare_latent_image_ids(len(prompts), height, width, device, text.dtype),
            positive=condition(text, mask),
            negative=condition(negative_text, negative_mask) if guided else None,
            guidance=guidance if guided else 1.0,
        )

    attention_editor = Family.attention_editor  # type: ignore[assignment]  # attention injection supports only FLUX.1
