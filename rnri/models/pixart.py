"""PixArt-Sigma: a transformer that predicts noise, with classifier-free guidance and T5 as its text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import PixArtSigmaPipeline
from torch import Tensor

from rnri.models.checks.components import check_embedding_dim, check_latent_channels
from rnri.models.diffusers_schedulers import check_scheduler
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import TransformerFamily, components, register_family
from rnri.models.predictor import Condition, TransformerDenoiser
from rnri.models.schedule import Schedule


@dataclass(frozen=True)
class PixArtDenoiser(TransformerDenoiser):
    """``Denoiser`` that returns the noise predicted by a ``PixArtTransformer2DModel``.

    The transformer also predicts the variance, which deterministic sampling does not use. ``Condition.added["mask"]``
    (int64 ``[B,L]``) excludes the padding tokens of the text from the attention.
    """

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        with eval_no_grad(self.transformer):
            output = self.transformer(
                z.to(self.dtype),
                encoder_hidden_states=condition.text,
                encoder_attention_mask=condition.added["mask"],
                timestep=torch.full((len(z),), t, device=z.device),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                return_dict=False,
            )[0]
        return output[:, : z.shape[1]].to(z.dtype)


@register_family
class PixArtFamily(TransformerFamily):
    """Model family of ``PixArtSigmaPipeline``."""

    pipelines: ClassVar = (PixArtSigmaPipeline,)
    supported: ClassVar = "PixArt-Sigma"

    @property
    def default_guidance(self) -> float:
        return 4.5

    def pipeline_kwargs(self, guidance: float) -> dict[str, Any]:
        """Return arguments that set the guidance scale and disable resolution binning, which changes the image size."""
        return super().pipeline_kwargs(guidance) | {"use_resolution_binning": False}

    def check(self) -> None:
        check_latent_channels(self.pipeline, self.channels, "take the transformer and the VAE from one checkpoint")
        check_embedding_dim(
            "transformer",
            "caption_channels",
            expected=self.network.config.caption_channels,
            actual=self.pipeline.text_encoder.config.d_model,
            source="d_model (T5)",
        )
        check_scheduler(self.pipeline.scheduler)

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> PixArtDenoiser:
        """Return the denoiser for ``prompts``, with classifier-free guidance if ``guidance`` is above 1.

        ``negatives`` are the negative prompts of classifier-free guidance.
        """
        guided = guidance > 1
        with torch.no_grad(), eval_no_grad(*components(self.pipeline).values()):
            text, mask, negative_text, negative_mask = self.pipeline.encode_prompt(
                prompts,
                do_classifier_free_guidance=guided,
                negative_prompt=negatives if guided else "",
                device=torch.device(self.pipeline._execution_device),
            )
        return PixArtDenoiser(
            transformer=self.network,
            positive=Condition(text, {"mask": mask}),
            negative=Condition(negative_text, {"mask": negative_mask}) if guided else None,
            guidance=guidance,
        )

    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        return Schedule.from_scheduler(self.pipeline.scheduler, steps)
