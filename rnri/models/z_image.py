"""Z-Image: a flow-matching transformer that takes a list of images and a list of texts of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin, ZImagePipeline
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rnri.models.checks.components import check_embedding_dim, check_latent_channels
from rnri.models.checks.schedulers import check_flow_scheduler
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import Family, components, register_family
from rnri.models.predictor import Condition, GuidedDenoiser
from rnri.models.schedule import Schedule

DEFAULT_SIDE = 1024
"""Default height and width of the pipeline's images in pixels."""


@dataclass(frozen=True)
class ZImageDenoiser(GuidedDenoiser):
    """``Denoiser`` that returns the velocity ``n - x0`` predicted by a ``ZImageTransformer2DModel``.

    The network returns the negative velocity, and its time runs from 0 (noise) to 1 (clean). The text embeddings of a
    batch are padded to one length; ``Condition.added["mask"]`` (bool ``[B,L]``) marks the embeddings of the prompt.
    """

    transformer: ModelMixin

    @cached_property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.transformer,)

    @cached_property
    def lengths(self) -> list[int]:
        """Number of text embeddings of each row of ``network_condition``."""
        return self.network_condition.added["mask"].sum(1).tolist()

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        timestep = torch.full((len(z),), t, dtype=torch.float32, device=z.device)
        texts = [text[:length] for text, length in zip(condition.text, self.lengths, strict=True)]
        with eval_no_grad(self.transformer):
            output = self.transformer(
                list(z.to(self.dtype).unsqueeze(2)), (1000 - timestep) / 1000, texts, return_dict=False
            )[0]
        return -torch.stack(list(output)).squeeze(2).to(z.dtype)


@register_family
class ZImageFamily(Family):
    """Model family of ``ZImagePipeline``, for Z-Image and Z-Image-Turbo.

    As in all other families, the guidance scale of this family is the scale of classifier-free guidance; 1 disables
    guidance. The pipeline's argument ``guidance_scale`` is this scale minus 1.
    """

    pipelines: ClassVar = (ZImagePipeline,)
    network_name: ClassVar = "transformer"
    supported: ClassVar = "Z-Image"

    @property
    def patch(self) -> int:
        return max(self.network.config.all_patch_size)

    @property
    def channels(self) -> int:
        return self.network.config.in_channels

    @property
    def latent_size(self) -> tuple[int, int]:
        side = DEFAULT_SIDE // self.pixels_per_latent
        return side, side

    @property
    def latents_dtype(self) -> torch.dtype:
        """The pipeline keeps its latents in float32 for every dtype of the network."""
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
        """Return the denoiser, with classifier-free guidance if ``guidance`` is above 1."""
        guided = guidance > 1
        with torch.no_grad(), eval_no_grad(*components(self.pipeline).values()):
            positive, negative = self.pipeline.encode_prompt(
                list(prompts),
                device=torch.device(self.pipeline._execution_device),
                do_classifier_free_guidance=guided,
                negative_prompt=list(negatives) if guided else None,
            )
        conditions = _conditions(positive, negative)
        return ZImageDenoiser(
            transformer=self.network,
            positive=conditions[0],
            negative=conditions[1] if guided else None,
            guidance=guidance if guided else 1.0,
        )

    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        """Return the schedule of the pipeline's sigmas; a dynamic shift depends on the number of image tokens."""
        scheduler = self.pipeline.scheduler
        config = scheduler.config
        mu = None
        if config.get("use_dynamic_shifting"):
            height, width = latent_size
            mu = calculate_shift(
                (height // self.patch) * (width // self.patch),
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.15),
            )
        sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
        return Schedule.from_scheduler(scheduler, steps, sigmas=sigmas, mu=mu)


def _conditions(positive: Sequence[Tensor], negative: Sequence[Tensor]) -> list[Condition]:
    """Return the positive and the negative condition of text embeddings ``[L_i,D]``, padded to one common length.

    The first condition belongs to ``positive``, the second condition belongs to ``negative`` and may be empty.
    """
    texts = [*positive, *negative]
    text = pad_sequence(texts, batch_first=True)
    mask = pad_sequence(
        [torch.ones(len(each), dtype=torch.bool, device=each.device) for each in texts], batch_first=True
    )
    count = len(positive)
    return [Condition(text[rows], {"mask": mask[rows]}) for rows in (slice(0, count), slice(count, None))]
