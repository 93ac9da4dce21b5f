"""Stable Diffusion 3 and 3.5: a flow-matching transformer with classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor

from rnri.models.checks.components import check_embedding_dim, check_latent_channels
from rnri.models.checks.schedulers import check_flow_scheduler
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import TransformerFamily, components, register_family
from rnri.models.predictor import Condition, TransformerDenoiser
from rnri.models.schedule import Schedule

if TYPE_CHECKING:
    from rnri.models.attention.injection import InjectionEditor


@dataclass(frozen=True)
class SD3Denoiser(TransformerDenoiser):
    """``Denoiser`` that returns the velocity (noise minus clean latent) predicted by an ``SD3Transformer2DModel``."""

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        with eval_no_grad(self.transformer):
            output = self.transformer(
                hidden_states=z.to(self.dtype),
                timestep=self.timesteps(z, t),
                encoder_hidden_states=condition.text,
                pooled_projections=condition.added["pooled"],
                return_dict=False,
            )[0]
        return output.to(z.dtype)


@register_family
class SD3Family(TransformerFamily):
    """Model family of ``StableDiffusion3Pipeline``, with or without the third text encoder (T5)."""

    pipelines: ClassVar = (StableDiffusion3Pipeline,)
    supported: ClassVar = "Stable Diffusion 3 and 3.5"

    @property
    def default_guidance(self) -> float:
        return 7.0

    def check(self) -> None:
        check_latent_channels(self.pipeline, self.channels, "take the transformer and the VAE from one checkpoint")
        self._check_text_embeddings()
        check_flow_scheduler(self.pipeline.scheduler)

    def _check_text_embeddings(self) -> None:
        """Raise ValueError unless the text encoders' embeddings have the widths that the transformer expects.

        The hidden states of T5 must be as wide as the transformer's joint attention. The hidden states of CLIP are
        padded to the width of the joint attention. The pooled projections of both CLIP text encoders are concatenated.
        """
        config = self.network.config
        clip_configs = [self.pipeline.text_encoder.config, self.pipeline.text_encoder_2.config]
        t5 = getattr(self.pipeline, "text_encoder_3", None)
        check_embedding_dim(
            "transformer",
            "pooled_projection_dim",
            expected=config.pooled_projection_dim,
            actual=sum(clip.projection_dim for clip in clip_configs),
            source="the sum of the projection sizes",
        )
        joint_dim = config.joint_attention_dim
        check_embedding_dim(
            "transformer",
            "joint_attention_dim",
            expected=joint_dim,
            actual=max(joint_dim, sum(clip.hidden_size for clip in clip_configs)),
            source="the sum of the hidden sizes",
        )
        if t5 is not None:
            check_embedding_dim(
                "transformer",
                "joint_attention_dim",
                expected=joint_dim,
                actual=t5.config.d_model,
                source="d_model (T5)",
            )

    @classmethod
    def required_components(cls, pipeline_class: type[DiffusionPipeline]) -> tuple[str, ...]:
        return (*super().required_components(pipeline_class), "text_encoder_2", "tokenizer_2")

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> SD3Denoiser:
        """Return the denoiser for ``prompts``, with classifier-free guidance if ``guidance`` is above 1."""
        guided = guidance > 1
        with torch.no_grad(), eval_no_grad(*components(self.pipeline).values()):
            text, negative_text, pooled, negative_pooled = self.pipeline.encode_prompt(
                prompt=prompts,
                prompt_2=None,
                prompt_3=None,
                device=torch.device(self.pipeline._execution_device),
                do_classifier_free_guidance=guided,
                negative_prompt=negatives if guided else None,
            )
        return SD3Denoiser(
            transformer=self.network,
            positive=Condition(text, {"pooled": pooled}),
            negative=Condition(negative_text, {"pooled": negative_pooled}) if guided else None,
            guidance=guidance if guided else 1.0,
        )

    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        """Return the scheduler's schedule; with dynamic shifting, the shift depends on the number of image tokens."""
        mu = self.dynamic_shift(latent_size, max_shift=1.16)
        return Schedule.from_scheduler(self.pipeline.scheduler, steps, mu=mu)

    def attention_editor(self) -> InjectionEditor:
        from rnri.models.attention.injection import InjectionEditor, SD3InjectionProcessor  # only edits need it

        return InjectionEditor(SD3InjectionProcessor, self.pixels_per_latent * self.patch)
