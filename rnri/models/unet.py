"""Model family of UNets: checkpoints of Stable Diffusion 1.x, 2.x and XL, turbo and LCM."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from diffusers import (
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    ModelMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from rnri.models.checks.components import check_embedding_dim, check_size_conditioning, check_unet_inputs
from rnri.models.checks.inputs import check_no_negative_prompts
from rnri.models.diffusers_schedulers import alpha_bar_table, check_scheduler
from rnri.models.eval_mode import eval_no_grad
from rnri.models.family import Family, as_pair, components, register_family, supported_models
from rnri.models.predictor import Condition, GuidedDenoiser
from rnri.models.schedule import Schedule

if TYPE_CHECKING:
    from rnri.models.attention.prompt_to_prompt import PromptToPromptEditor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class UNetDenoiser(GuidedDenoiser):
    """``Denoiser`` that returns the noise predicted by a diffusers UNet.

    Attributes:
        unet: the ``UNet2DConditionModel``.
        prediction_type: what the UNet predicts: ``epsilon``, ``v_prediction`` (Salimans & Ho 2022) or ``sample``.
        alpha_bar: the scheduler's ``alphas_cumprod`` for all training timesteps, float64 ``[num_train_timesteps]``.
        guidance_embedding: embedding of the guidance scale, ``[1,D]``, for networks that take the guidance scale as an
            input (LCM); otherwise None.
    """

    unet: ModelMixin
    prediction_type: str
    alpha_bar: Tensor  # [num_train_timesteps]
    guidance_embedding: Tensor | None = None  # [1,D]

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type={self.prediction_type!r} in the scheduler's config: must be one of "
                f"{', '.join(PREDICTION_TYPES)}."
            )
        super().__post_init__()

    @cached_property
    def dtype(self) -> torch.dtype:
        """Dtype of the network; the value is cached, because diffusers iterates over all weights to find the dtype."""
        return self.unet.dtype

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.unet,)

    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        embedding = self.guidance_embedding
        # The timestep is created on the device, because copying a Python number would synchronize with the device.
        timestep = torch.full((1,), t, dtype=torch.int64 if isinstance(t, int) else z.dtype, device=z.device)
        with eval_no_grad(self.unet):
            output = self.unet(
                z.to(self.dtype),
                timestep,
                encoder_hidden_states=condition.text,
                timestep_cond=None if embedding is None else embedding.expand(len(z), -1),
                added_cond_kwargs=dict(condition.added) or None,
                return_dict=False,
            )[0]
        return output.to(z.dtype)

    def to_prediction(self, output: Tensor, z: Tensor, t: float) -> Tensor:
        if self.prediction_type == "epsilon":
            return output
        timestep = cast(int, t)  # schedules of UNets have integer timesteps
        return to_noise(output, z, float(self.alpha_bar[timestep]), self.prediction_type)


def to_noise(output: Tensor, z: Tensor, alpha_bar: float, prediction_type: str) -> Tensor:
    """Convert a network's ``output`` for the latents ``z`` to noise.

    ``alpha_bar`` in (0, 1) is the entry of ``alphas_cumprod`` for the timestep. ``prediction_type`` is what ``output``
    predicts: ``epsilon``, ``v_prediction`` or ``sample``.
    """
    alpha = alpha_bar**0.5
    sigma = (1 - alpha_bar) ** 0.5
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return alpha * output + sigma * z
    return (z - alpha * output) / sigma


@register_family
class UNetFamily(Family):
    """Model family of the pipelines with a ``UNet2DConditionModel``; all schedules are deterministic DDIM."""

    pipelines: ClassVar = (StableDiffusionPipeline, StableDiffusionXLPipeline, LatentConsistencyModelPipeline)
    network_name: ClassVar = "unet"
    supported: ClassVar = "Stable Diffusion 1.x, 2.x, XL, turbo and LCM"

    @property
    def channels(self) -> int:
        return self.network.config.in_channels

    @property
    def latent_size(self) -> tuple[int, int]:
        """Default latent size ``(h, w)``: the UNet's ``sample_size`` or, if the UNet has none, the VAE's image size."""
        image_size = self.pipeline.vae.config.sample_size
        if self.network.config.sample_size is None and image_size is not None:
            height, width = as_pair(image_size)
            return height // self.pixels_per_latent, width // self.pixels_per_latent
        return super().latent_size

    @property
    def default_guidance(self) -> float:
        return 7.5 if self._guidance_embedding_dim is None else 1.0

    @property
    def _guidance_embedding_dim(self) -> int | None:
        """Width of the guidance embedding if the network takes the guidance scale as an input (LCM), otherwise None."""
        return self.network.config.get("time_cond_proj_dim")

    @classmethod
    def required_components(cls, pipeline_class: type[DiffusionPipeline]) -> tuple[str, ...]:
        required = super().required_components(pipeline_class)
        if issubclass(pipeline_class, StableDiffusionXLPipeline):
            return (*required, "text_encoder_2", "tokenizer_2")
        return required

    def check(self) -> None:
        check_unet_inputs(self.network.config, self.pipeline.vae.config, supported_models())
        check_size_conditioning(self.pipeline, supported_models())
        self._check_text_embeddings()
        check_scheduler(self.pipeline.scheduler)

    def _check_text_embeddings(self) -> None:
        """Raise ValueError unless the UNet's cross-attention is as wide as the concatenated text embeddings."""
        config = self.network.config
        encoders = [getattr(self.pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
        width = sum(encoder.config.hidden_size for encoder in encoders if encoder is not None)
        field = "cross_attention_dim" if config.get("encoder_hid_dim") is None else "encoder_hid_dim"
        values = [config[field]] if isinstance(config[field], int) else config[field]
        for expected in values:
            if isinstance(expected, int):  # a nested list contains the widths of several layers
                source = "the total hidden size"
                check_embedding_dim("unet", field, expected=expected, actual=width, source=source)

    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> UNetDenoiser:
        """Return the denoiser for ``prompts``.

        A network that takes the guidance scale as an input (LCM) receives ``guidance``. With any other network, the
        denoiser uses classifier-free guidance if ``guidance`` is above 1.
        """
        embedding_dim = self._guidance_embedding_dim
        if embedding_dim is not None:
            check_no_negative_prompts(negatives, "LCM")
        guided = guidance > 1 and embedding_dim is None
        positive, negative = self._conditions(prompts, guided, negatives, image_size)
        return UNetDenoiser(
            unet=self.network,
            prediction_type=self.pipeline.scheduler.config.get("prediction_type", "epsilon"),
            alpha_bar=alpha_bar_table(self.pipeline.scheduler),
            positive=positive,
            negative=negative,
            guidance=guidance if guided else 1.0,
            guidance_embedding=None if embedding_dim is None else self._guidance_embedding(guidance, embedding_dim),
        )

    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        return Schedule.from_scheduler(self.pipeline.scheduler, steps)

    def attention_editor(self) -> PromptToPromptEditor:
        from rnri.models.attention.prompt_to_prompt import PromptToPromptEditor  # only edits need it

        return PromptToPromptEditor(self.pipeline, self.pixels_per_latent)

    @torch.no_grad()
    def _conditions(
        self, prompts: list[str], guided: bool, negatives: list[str], image_size: tuple[int, int]
    ) -> tuple[Condition, Condition | None]:
        """Return the pipeline's encodings of the prompts and, if ``guided``, of the negative prompts ``negatives``.

        For an empty negative prompt, SDXL's negative condition is all zeros instead of the encoding of "". The
        pipeline's ``encode_prompt`` returns an all-zero negative condition only for ``negative_prompt=None``. Therefore
        the prompts are encoded twice if only some of the negative prompts in a batch are empty.
        """
        negative_prompt = negatives if guided and any(negatives) else None
        with eval_no_grad(*components(self.pipeline).values()):
            encoded = self.pipeline.encode_prompt(
                prompt=prompts,
                device=torch.device(self.pipeline._execution_device),
                num_images_per_prompt=1,
                do_classifier_free_guidance=guided,
                negative_prompt=negative_prompt,
            )
        added: dict[str, Tensor] = {}
        negative_added: dict[str, Tensor] = {}
        if len(encoded) > 2:
            added, negative_added = self._added_conditions(encoded[2:], len(prompts), image_size)
        negative = Condition(encoded[1], negative_added) if guided else None
        if negative_prompt and not all(negative_prompt):
            has_text = torch.tensor([bool(text) for text in negative_prompt])
            default = self._conditions(prompts, guided, [""] * len(prompts), image_size)[1]
            assert negative is not None and default is not None  # negative_prompt is only set if guided
            negative = negative.where(has_text, default)
        return Condition(encoded[0], added), negative

    def _added_conditions(
        self, pooled: tuple[Tensor, Tensor | None], batch_size: int, image_size: tuple[int, int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return SDXL's additional inputs for the prompts and for the negative prompts.

        The inputs are the pooled text embeddings and six numbers ``time_ids``: the original size and the target size,
        which are both ``image_size``, and the crop offset, which is zero. If guidance is off, the inputs for the
        negative prompts are empty.

        Args:
            pooled: pooled text embeddings of the prompts and of the negative prompts. If guidance is off, the second
                entry is None.
            batch_size: number of prompts.
            image_size: height and width ``(H, W)`` of the images in pixels.
        """
        text, negative_text = pooled
        sizes = self.pipeline._get_add_time_ids(
            image_size,
            (0, 0),
            image_size,
            dtype=text.dtype,
            text_encoder_projection_dim=self.pipeline.text_encoder_2.config.projection_dim,
        )
        sizes = sizes.to(text.device).repeat(batch_size, 1)  # [B,6]
        negative = {} if negative_text is None else {"text_embeds": negative_text, "time_ids": sizes}
        return {"text_embeds": text, "time_ids": sizes}, negative

    def _guidance_embedding(self, guidance: float, dim: int) -> Tensor:
        embedding = self.pipeline.get_guidance_scale_embedding(torch.tensor([guidance - 1]), embedding_dim=dim)
        return embedding.to(self.pipeline._execution_device, self.network.dtype)
