"""Chroma: a variant of FLUX's transformer with classifier-free guidance, and T5 with masked padding as text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import ChromaPipeline, DiffusionPipeline
from torch import Tensor

from rnri.models.checks.components import check_embedding_dim, check_latent_channels
from rnri.models.checks.schedulers import check_flow_scheduler
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import Family, components, register_family
from rnri.models.flux import FluxDenoiser, FluxFamily
from rnri.models.predictor import Condition


@dataclass(frozen=True)
class ChromaDenoiser(FluxDenoiser):
    """``Denoiser`` that returns the velocity (noise minus clean latent) predicted by a ``ChromaTransformer2DModel``.

    ``Condition.added["mask"]`` (float ``[B,L+hw/4]``, for L text tokens and hw/4 image tokens) excludes the padding
    tokens of the text from the attention.
    """

    def condition_inputs(self, condition: Condition) -> dict[str, Tensor | None]:
        return {"attention_mask": condition.added["mask"]}


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

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> ChromaDenoiser:
        """Return the denoiser for ``prompts``, with classifier-free guidance if ``guidance`` is above 1.

        ``negatives`` are the negative prompts of classifier-free guidance.
        """
        guided = guidance > 1
        device = torch.device(self.pipeline._execution_device)
        with torch.no_grad(), eval_no_grad(*components(self.pipeline).values()):
            text, text_ids, mask, negative_text, _, negative_mask = self.pipeline.encode_prompt(
                prompt=prompts,
                negative_prompt=negatives if guided else None,
                device=device,
                do_classifier_free_guidance=guided,
            )
        image_ids = self.image_ids(len(prompts), image_size, text.dtype)

        def condition(text: Tensor, mask: Tensor) -> Condition:
            full_mask = self.pipeline._prepare_attention_mask(len(text), len(image_ids), text.dtype, mask)
            return Condition(text, {"mask": full_mask})

        return ChromaDenoiser(
            transformer=self.network,
            text_ids=text_ids,
            image_ids=image_ids,
            positive=condition(text, mask),
            negative=condition(negative_text, negative_mask) if guided else None,
            guidance=guidance,
        )

    attention_editor = Family.attention_editor  # type: ignore[assignment]  # attention injection supports only FLUX.1
