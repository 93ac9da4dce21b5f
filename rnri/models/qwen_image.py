"""Qwen-Image and Qwen-Image 2.1: flow-matching transformers with Qwen's vision-language models as text encoders."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, QwenImage21Pipeline, QwenImagePipeline
from torch import Tensor

from rnri.models.checks.components import check_embedding_dim, check_latent_channels
from rnri.models.checks.schedulers import check_flow_scheduler, check_steps
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import PackedTransformerFamily, components, register_family
from rnri.models.flux import TIMESTEP_SCALE, pack, unpack
from rnri.models.predictor import Condition, TransformerDenoiser, to_device
from rnri.models.schedule import Schedule

UNSUPPORTED_INPUTS = {
    "guidance_embeds": "a guidance scale",
    "use_additional_t_cond": "the kind of each image",
    "use_layer3d_rope": "layers of an image",
}
"""Maps config fields of a ``QwenImageTransformer2DModel`` to the input that the model needs if the field is on."""


@dataclass(frozen=True)
class QwenImageDenoiser(TransformerDenoiser):
    """``Denoiser`` that returns the velocity (noise minus clean latent) predicted by a ``QwenImageTransformer2DModel``.

    ``Condition.added["mask"]`` (bool ``[B,L]``) is True for text embeddings of the prompt and False for padding.
    """

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        size = (z.shape[-2], z.shape[-1])
        length = max(condition.lengths)
        is_padded = min(condition.lengths) < length
        with eval_no_grad(self.transformer):
            output = self.transformer(
                hidden_states=pack(z.to(self.dtype)),
                timestep=self.timesteps(z, t).to(self.dtype) / TIMESTEP_SCALE,
                encoder_hidden_states=condition.text[:, :length],
                encoder_hidden_states_mask=condition.added["mask"][:, :length] if is_padded else None,
                img_shapes=[[(1, size[0] // 2, size[1] // 2)]] * len(z),
                return_dict=False,
            )[0]
        return unpack(output, size).to(z.dtype)

    def guided(self, negative: Tensor, positive: Tensor) -> Tensor:
        """Return the guided velocity ``[B,C,h,w]`` from the velocities for the negative and the positive condition.

        As in the pipeline, each image token of the result of classifier-free guidance is rescaled to the norm of the
        same token of ``positive``. The guided velocity is not affine in ``negative`` and ``positive``.
        """
        tokens = pack(super().guided(negative, positive))
        norm = pack(positive).norm(dim=-1, keepdim=True)
        return unpack(tokens * (norm / tokens.norm(dim=-1, keepdim=True)), (positive.shape[-2], positive.shape[-1]))


@dataclass(frozen=True)
class QwenImage21Denoiser(TransformerDenoiser):
    """``Denoiser`` that returns the velocity (noise minus clean latent) of a ``QwenImage21Transformer2DModel``.

    Each spatial element of the latents is one image token. ``Condition.added["mask"]`` (bool ``[B,L]``) is True for
    text embeddings of the prompt and False for padding. Prompts of different lengths are evaluated separately and
    without padding, because padding would change the positions of the image tokens.
    """

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        lengths = torch.tensor(condition.lengths)  # on the CPU, so that grouping does not synchronize with a GPU
        groups = {length: (lengths == length).nonzero().flatten() for length in lengths.unique().tolist()}
        if len(groups) == 1:
            return self._network(z, t, condition.text[:, : condition.lengths[0]])
        outputs = [
            self._network(z[to_device(rows, z.device)], t, condition.select(rows).text[:, :length])
            for length, rows in groups.items()
        ]
        order = torch.cat(list(groups.values())).argsort()
        return torch.cat(outputs)[to_device(order, z.device)]

    def _network(self, z: Tensor, t: float, text: Tensor) -> Tensor:
        """Return the velocity ``[B,C,h,w]`` that the transformer predicts for text embeddings ``text [B,L,D]``.

        ``text`` must not contain padding.
        """
        height, width = z.shape[-2:]
        slots = height * width // 4  # the transformer counts 2 x 2 image tokens as one position of the sequence
        is_image = torch.arange(text.shape[1] + slots, device=z.device) >= text.shape[1]
        with eval_no_grad(self.transformer):
            output = self.transformer(
                hidden_states=z.to(self.dtype).flatten(2).transpose(1, 2),
                timestep=self.timesteps(z, t).to(self.dtype) / TIMESTEP_SCALE,
                encoder_hidden_states=text,
                img_shapes=[[(1, height, width)]] * len(z),
                img_mask=is_image.expand(len(z), -1),
                return_dict=False,
            )[0]
        return output[:, -height * width :].transpose(1, 2).unflatten(2, (height, width)).to(z.dtype)


@register_family
class QwenImageFamily(PackedTransformerFamily):
    """Model family of ``QwenImagePipeline``.

    The guidance scale is the pipeline's argument ``true_cfg_scale``. ``true_cfg_scale`` has an effect only if the
    pipeline call also has a negative prompt, which may be empty.
    """

    pipelines: ClassVar = (QwenImagePipeline,)
    supported: ClassVar = "Qwen-Image"

    @property
    def pixels_per_latent(self) -> int:
        return self.pipeline.vae_scale_factor

    @property
    def default_guidance(self) -> float:
        return inspect.signature(self.pipeline.__call__).parameters["true_cfg_scale"].default

    def pipeline_kwargs(self, guidance: float) -> dict[str, Any]:
        return {"true_cfg_scale": guidance} | ({"negative_prompt": ""} if guidance > 1 else {})

    def vae_mean(self, vae: ModelMixin, pixels: Tensor) -> Tensor:
        """Return the mean ``[B,C,h,w]`` of the VAE's posterior distribution for ``pixels [B,3,H,W]`` in [-1, 1].

        The VAE of Qwen-Image receives each image as a video of one frame.
        """
        return super().vae_mean(vae, pixels.unsqueeze(2)).squeeze(2)

    def vae_decode(self, vae: ModelMixin, latents: Tensor) -> Tensor:
        """Return the images ``[B,3,H,W]`` that ``vae`` decodes; the VAE of Qwen-Image clamps its images to [-1, 1]."""
        return super().vae_decode(vae, latents.unsqueeze(2)).squeeze(2)

    def check(self) -> None:
        config = self.network.config
        for field, needed in UNSUPPORTED_INPUTS.items():
            if config.get(field):
                raise ValueError(
                    f"{field} is on in the config.json of the transformer, which then needs {needed} as an input: use "
                    "the text-to-image checkpoint of Qwen-Image."
                )
        self._check_components("joint_attention_dim")

    def _check_components(self, text_field: str) -> None:
        """Raise ValueError if the components do not fit together, or the scheduler is not supported.

        Args:
            text_field: field of the transformer's config that defines the width of the text embeddings.
        """
        check_latent_channels(self.pipeline, self.channels, "take the transformer and the VAE from one checkpoint")
        check_embedding_dim(
            "transformer",
            text_field,
            expected=self.network.config[text_field],
            actual=self.pipeline.text_encoder.config.get_text_config().hidden_size,
            source="the hidden size",
        )
        check_flow_scheduler(self.pipeline.scheduler)

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> TransformerDenoiser:
        """Return the denoiser for ``prompts``, with classifier-free guidance if ``guidance`` is above 1.

        ``negatives`` are the negative prompts of classifier-free guidance.
        """
        return self._denoiser_class(
            transformer=self.network,
            positive=self._encode(prompts),
            negative=self._encode(negatives) if guidance > 1 else None,
            guidance=guidance,
        )

    _denoiser_class: ClassVar[type[TransformerDenoiser]] = QwenImageDenoiser

    def _encode(self, prompts: list[str]) -> Condition:
        """Return the text embeddings of ``prompts``.

        The maximum number of tokens is the default ``max_sequence_length`` of a pipeline call, which is smaller than
        the default of the pipeline's ``encode_prompt``.
        """
        options = {}
        maximum = inspect.signature(self.pipeline.__call__).parameters.get("max_sequence_length")
        if maximum is not None:
            options["max_sequence_length"] = maximum.default
        device = torch.device(self.pipeline._execution_device)
        with torch.no_grad(), eval_no_grad(*components(self.pipeline).values()):
            text, mask, *_ = self.pipeline.encode_prompt(prompt=prompts, device=device, **options)
        if mask is None:
            mask = torch.ones(text.shape[:2], device=text.device)
        return Condition(text, {"mask": mask.bool()})

    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        """Return the pipeline's schedule; with dynamic shifting, the shift depends on the number of image tokens."""
        scheduler = self.pipeline.scheduler
        check_steps(steps, scheduler.config.num_train_timesteps)
        return Schedule.from_scheduler(scheduler, steps, sigmas=self._sigmas(steps), mu=self.dynamic_shift(latent_size))

    def _sigmas(self, steps: int) -> list[float]:
        """Return the sigmas that the pipeline passes to its scheduler."""
        return np.linspace(1.0, 1 / steps, steps).tolist()

    def pack(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def unpack(self, latents: Tensor, latent_size: tuple[int, int]) -> Tensor:
        return unpack(latents, latent_size)


@register_family
class QwenImage21Family(QwenImageFamily):
    """Model family of ``QwenImage21Pipeline`` for generation from text alone.

    The images of the VAE have four channels: RGB and opacity. Images are encoded as opaque, and the decoded opacity is
    ignored. In a pipeline call for several prompts, the padding of the shorter prompts changes the images.
    """

    pipelines: ClassVar = (QwenImage21Pipeline,)
    supported: ClassVar = "Qwen-Image 2.1"
    batch_independent: ClassVar = False
    _denoiser_class: ClassVar = QwenImage21Denoiser

    @classmethod
    def required_components(cls, pipeline_class: type[DiffusionPipeline]) -> tuple[str, ...]:
        return (cls.network_name, "vae", "text_encoder", "processor", "scheduler")

    @property
    def channels(self) -> int:
        return self.network.config.in_channels

    @property
    def latent_size(self) -> tuple[int, int]:
        size = inspect.signature(self.pipeline.__call__).parameters["output_resolution"].default
        return size // self.pixels_per_latent, size // self.pixels_per_latent

    def image_tokens(self, latent_size: tuple[int, int]) -> int:
        height, width = latent_size
        return height * width

    def vae_mean(self, vae: ModelMixin, pixels: Tensor) -> Tensor:
        opaque = torch.ones_like(pixels[:, : vae.config.in_channels - pixels.shape[1]])
        return super().vae_mean(vae, torch.cat([pixels, opaque], dim=1))

    def vae_decode(self, vae: ModelMixin, latents: Tensor) -> Tensor:
        return super().vae_decode(vae, latents)[:, :3]

    def check(self) -> None:
        self._check_components("context_in_dim")

    def _sigmas(self, steps: int) -> list[float]:
        """Return the sigmas that the pipeline passes to its scheduler.

        Raises:
            ValueError: the checkpoint has fixed sigmas, and ``steps`` differs from the number of fixed sigmas.
        """
        fixed = self.pipeline.config.sample_sigmas
        if fixed is None:
            return super()._sigmas(steps)
        if steps != len(fixed):
            raise ValueError(
                f"steps={steps}: must be {len(fixed)}, the number of sigmas that the checkpoint fixes (sample_sigmas "
                "in model_index.json)."
            )
        return list(fixed)

    def pack(self, latents: Tensor) -> Tensor:
        return latents.flatten(2).transpose(1, 2)

    def unpack(self, latents: Tensor, latent_size: tuple[int, int]) -> Tensor:
        return latents.transpose(1, 2).unflatten(2, latent_size)
