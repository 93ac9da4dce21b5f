"""Z-Image: a flow-matching transformer that takes a list of images and a list of texts of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import ZImagePipeline
from torch import Tensor
from torch.nn.functional import pad

from rnri.models.checks.components import check_embedding_dim, check_latent_channels
from rnri.models.checks.schedulers import check_flow_scheduler
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import TransformerFamily, components, register_family
from rnri.models.predictor import Condition, TransformerDenoiser
from rnri.models.schedule import Schedule

MAX_TOKENS = 512
"""Maximum number of text embeddings of a prompt, the default of the pipeline's ``max_sequence_length``."""

DEFAULT_SIDE = 1024
"""Default height and width of the pipeline's images in pixels."""


@dataclass(frozen=True)
class ZImageDenoiser(TransformerDenoiser):
    """``Denoiser`` that returns the velocity (noise minus clean latent) predicted by a ``ZImageTransformer2DModel``.

    The network returns the negative velocity, and its time input runs from 0 (noise) to 1 (clean). The text embeddings
    are padded to ``MAX_TOKENS``; ``Condition.added["mask"]`` (bool ``[B,L]``) is True for embeddings of the prompt and
    False for padding.
    """

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        texts = [text[:length] for text, length in zip(condition.text, condition.lengths, strict=True)]
        with eval_no_grad(self.transformer):
            output = self.transformer(
                list(z.to(self.dtype).unsqueeze(2)), (1000 - self.timesteps(z, t)) / 1000, texts, return_dict=False
            )[0]
        return -torch.stack(list(output)).squeeze(2).to(z.dtype)


@register_family
class ZImageFamily(TransformerFamily):
    """Model family of ``ZImagePipeline``, for Z-Image and Z-Image-Turbo.

    As in all other families, the guidance scale is the scale of classifier-free guidance, and 1 disables guidance. The
    pipeline's argument ``guidance_scale`` is the scale of classifier-free guidance minus 1.
    """

    pipelines: ClassVar = (ZImagePipeline,)
    supported: ClassVar = "Z-Image"

    @property
    def patch(self) -> int:
        return max(self.network.config.all_patch_size)

    @property
    def latent_size(self) -> tuple[int, int]:
        side = DEFAULT_SIDE // self.pixels_per_latent
        return side, side

    @property
    def latents_dtype(self) -> torch.dtype:
        """The pipeline keeps the latents in float32, independent of the dtype of the network."""
        return torch.float32

    def pipeline_kwargs(self, guidance: float) -> dict[str, Any]:
        return {"guidance_scale": guidance - 1}

    def check(self) -> None:
        check_latent_channels(self.pipeline, self.channels, "take the transformer and the VAE from one checkpoint")
        check_embedding_dim(
            "transformer",
            "cap_feat_dim",
            expected=self.network.config.cap_feat_dim,
            actual=self.pipeline.text_encoder.config.hidden_size,
            source="the hidden size",
        )
        check_flow_scheduler(self.pipeline.scheduler)

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> ZImageDenoiser:
        """Return the denoiser for ``prompts``, with classifier-free guidance if ``guidance`` is above 1.

        ``negatives`` are the negative prompts of classifier-free guidance.
        """
        guided = guidance > 1
        with torch.no_grad(), eval_no_grad(*components(self.pipeline).values()):
            positive, negative = self.pipeline.encode_prompt(
                list(prompts),
                device=torch.device(self.pipeline._execution_device),
                do_classifier_free_guidance=guided,
                negative_prompt=list(negatives) if guided else None,
            )
        return ZImageDenoiser(
            transformer=self.network,
            positive=_condition(positive),
            negative=_condition(negative) if guided else None,
            guidance=guidance,
        )

    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        """Return the pipeline's schedule; with dynamic shifting, the shift depends on the number of image tokens."""
        sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
        return Schedule.from_scheduler(
            self.pipeline.scheduler, steps, sigmas=sigmas, mu=self.dynamic_shift(latent_size)
        )


def _condition(embeddings: Sequence[Tensor]) -> Condition:
    """Return the condition of B prompts, whose text embeddings ``[L_i,D]`` are padded to ``[MAX_TOKENS,D]``."""
    text = torch.stack([pad(each, (0, 0, 0, MAX_TOKENS - len(each))) for each in embeddings])
    lengths = torch.tensor([len(each) for each in embeddings], device=text.device)
    return Condition(text, {"mask": torch.arange(MAX_TOKENS, device=text.device) < lengths[:, None]})
