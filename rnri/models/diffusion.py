"""A diffusers text-to-image pipeline as functions of tensors: encode, decode, predict, sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from rnri.models.adapters import check_lora, check_scheduler_name, load_lora, set_scheduler
from rnri.models.checkpoint import load_pipeline
from rnri.models.checks.folder import IGNORED_COMPONENTS
from rnri.models.checks.inputs import (
    as_guidance,
    as_negative_prompts,
    check_image_size,
    check_images,
    check_prompts,
)
from rnri.models.checks.pipeline import check_pipeline
from rnri.models.checks.tokenizers import tokenizer_settings
from rnri.models.diffusers_schedulers import alpha_bar_table, scheduler_settings
from rnri.models.eval_mode import eval_no_grad
from rnri.models.families import family_of
from rnri.models.family import components
from rnri.models.fingerprint import fingerprint
from rnri.models.fp32_copy import Float32Copy
from rnri.models.noise import noise_for_samples
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample, trajectory
from rnri.models.schedule import Schedule
from rnri.validation import Dtype, GuidanceScale, NonEmptyStr

IGNORED_CONFIG_KEYS = ("requires_safety_checker", "requires_aesthetics_score")
"""Keys of a pipeline's config that do not change what is computed here."""


class LatentDiffusion:
    """A model from any diffusers pipeline of a supported architecture.

    Supported are Stable Diffusion 1.x, 2.x, XL, turbo, LCM, 3 and 3.5, FLUX.1, and registered families. The pipeline
    remains usable: modes, gradients, dtypes and scheduler are restored after every call. Images are ``[B,3,H,W]`` in
    [0, 1]; latents ``z [B,C,h,w]`` are scaled as the network was trained, to about unit variance.

    A seed and ``pipe(latents=seed)`` give the same image for DDIM and flow-matching schedulers (FLUX takes the seed
    packed). The samplers of other pipelines differ: Euler by a factor of 0.9977 at trailing timesteps, PNDM by up to
    7 % at few steps, LCM by the noise that it adds between steps; ``rnri.scheduler_for`` returns a scheduler that does
    not differ.

    Args:
        pipeline: a diffusers pipeline, also with CPU offload.
        default_guidance: guidance scale of plain samples, 1 for turbo and LCM checkpoints; None means the family's.
        image_size: ``(H, W)`` in pixels; None means the checkpoint's default.

    Raises:
        ValueError: the pipeline or its scheduler is not supported, its components do not fit together, or the size is
            not a multiple of the latent patch size.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        default_guidance: float | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        self.family = family_of(pipeline)
        check_pipeline(self.family)
        self.pipeline = pipeline
        self.default_guidance = as_guidance(
            self.family.default_guidance if default_guidance is None else default_guidance
        )
        if image_size is not None:
            check_image_size(image_size, self.family.pixels_per_latent * self.family.patch)
        self._image_size = image_size
        self._float32_vae = Float32Copy()

    @classmethod
    def from_pretrained(
        cls,
        path: NonEmptyStr | Path,
        *,
        device: str | torch.device,
        dtype: torch.dtype | Dtype | Literal["auto"],
        local_files_only: bool = False,
        variant: NonEmptyStr | None = None,
        revision: NonEmptyStr | None = None,
        default_guidance: GuidanceScale | None = None,
        lora: NonEmptyStr | Path | None = None,
        scheduler: NonEmptyStr | None = None,
    ) -> LatentDiffusion:
        """Load a local folder written by ``save_pretrained``, or a hub id ``owner/name``.

        Args:
            device: device of the networks.
            dtype: dtype of the networks; "auto" means float16 on a GPU, and float32 on a CPU, where float16 is slower,
                and on MPS, where it can overflow.
            local_files_only: do not download anything.
            variant, revision: as in diffusers.
            default_guidance: guidance scale of plain samples; None means the family's.
            lora: folder, file or hub id of a LoRA, which is fused into the weights; needs ``peft``.
            scheduler: name of a scheduler class of diffusers, created from the checkpoint's scheduler config, such as
                "LCMScheduler" for an LCM-LoRA.

        Raises:
            ValueError: an argument is invalid, a folder does not exist or lacks a component, a hub id cannot be
                reached, the pipeline is not supported, or the LoRA cannot be loaded.
        """
        check_scheduler_name(scheduler)
        check_lora(lora)
        if dtype == "auto":
            dtype = torch.float32 if torch.device(device).type in ("cpu", "mps") else torch.float16
        pipeline = load_pipeline(
            path, dtype=dtype, local_files_only=local_files_only, variant=variant, revision=revision
        )
        if scheduler is not None:
            set_scheduler(pipeline, scheduler)
        if lora is not None:
            load_lora(pipeline, lora, local_files_only=local_files_only)
        model = cls(pipeline.to(device), default_guidance)
        for network in components(model.pipeline).values():  # saves changing the modes in every call
            network.eval().requires_grad_(False)
        return model

    @property
    def device(self) -> torch.device:
        """Device on which the networks run; with CPU offload their weights may be elsewhere."""
        return torch.device(self.pipeline._execution_device)

    @property
    def alpha_bar(self) -> Tensor:
        """Cumulative alphas, float64 ``[num_train_timesteps]``; ValueError for flow matching."""
        return alpha_bar_table(self.pipeline.scheduler)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the predicting network."""
        return self.family.network.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, h, w)``."""
        if self._image_size is None:
            return self.family.channels, *self.family.latent_size
        return self.family.channels, *(side // self.family.pixels_per_latent for side in self._image_size)

    @property
    def image_size(self) -> tuple[int, int]:
        """``(H, W)`` in pixels."""
        _, height, width = self.latent_shape
        return height * self.family.pixels_per_latent, width * self.family.pixels_per_latent

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of weights and configuration, independent of the checkpoint's location.

        It includes active adapters with their scales, tokenizers, the scheduler with its tables, attention processors
        and hooks, but no unused components. Weights of another dtype have another fingerprint. All weights are read at
        every access, because a weight can change unnoticed: cache the value while the model does not change.
        """
        networks = {name: value for name, value in components(self.pipeline).items() if name not in IGNORED_COMPONENTS}
        settings: dict[str, object] = {"scheduler": scheduler_settings(self.pipeline.scheduler)}
        for name, value in self.pipeline.components.items():
            if name.startswith("tokenizer") and value is not None:
                settings[name] = tokenizer_settings(value)
        return fingerprint(networks, settings | _pipeline_settings(self.pipeline))

    def encode(self, images: Tensor) -> Tensor:
        """Return latents ``[B,C,h,w]``, float32: the posterior mean for ``images [B,3,H,W]`` in [0, 1].

        Differentiable.

        Raises:
            ValueError: wrong shape or size, or values outside [0, 1].
        """
        check_images(images, self.image_size)
        vae = self._vae
        with eval_no_grad(vae):
            latents = vae.encode((2 * images - 1).to(self.device, vae.dtype)).latent_dist.mode().float()
        mean, std = self.family.latent_statistics(latents)
        return (latents - mean) / std

    def decode(self, z0: Tensor, *, clamp: bool = True) -> Tensor:
        """Return images ``[B,3,H,W]``, float32, of latents ``[B,C,h,w]``; differentiable.

        ``clamp=True``, as in diffusers, clamps values to [0, 1], where the gradient of clamped values is 0.
        ``clamp=False`` keeps values slightly outside, for losses that need gradients at saturated pixels.
        """
        vae = self._vae
        mean, std = self.family.latent_statistics(z0)
        with eval_no_grad(vae):
            images = vae.decode((z0 * std + mean).to(self.device, vae.dtype), return_dict=False)[0].float() / 2 + 0.5
        return images.clamp(0, 1) if clamp else images

    def predictor(
        self, prompts: Sequence[str], guidance: float = 1.0, negative_prompt: str | Sequence[str] = ""
    ) -> NoisePredictor:
        """Return the predictor of noise or velocity for a batch of ``prompts``, with counts starting at 0.

        ``guidance=1`` is the conditional prediction alone. Above 1 it is classifier-free guidance away from
        ``negative_prompt``, one string for all samples or a list with one per sample. Networks distilled with
        guidance as an input (LCM, FLUX.1 dev) get it as that input instead.

        Raises:
            ValueError: ``guidance`` is below 1 or not finite, ``prompts`` is empty or a single string, or the number
                of negative prompts differs.
        """
        guidance = as_guidance(guidance)
        check_prompts(prompts)
        negatives = as_negative_prompts(negative_prompt, len(prompts))
        return NoisePredictor(self.family.denoiser(list(prompts), guidance, negatives, self.image_size))

    def schedule(self, steps: int) -> Schedule:
        """Return the checkpoint's schedule with ``steps`` steps; ValueError if it does not support that number."""
        return self.family.schedule(steps, self.latent_shape[1:])

    def sample(
        self,
        seed: Tensor,
        predictor: NoisePredictor,
        schedule: Schedule,
        *,
        checkpoint: bool = False,
        on_step: LatentCallback = no_callback,
    ) -> Tensor:
        """Return the clean latent of ``seed``; see :func:`rnri.models.sampling.sample`."""
        return sample(seed, predictor, schedule, checkpoint=checkpoint, on_step=on_step)

    def trajectory(
        self,
        seed: Tensor,
        predictor: NoisePredictor,
        schedule: Schedule,
        *,
        keep_last: int,
        checkpoint: bool = False,
        on_step: LatentCallback = no_callback,
    ) -> list[Tensor]:
        """Return the latents after the last ``keep_last`` steps; see :func:`rnri.models.sampling.trajectory`."""
        return trajectory(seed, predictor, schedule, keep_last=keep_last, checkpoint=checkpoint, on_step=on_step)

    def noise(self, sample_ids: Sequence[int | str], seed: int) -> Tensor:
        """Return standard normal seeds ``[B,C,h,w]``, float32, one per sample id.

        Each seed depends only on ``seed`` and its id, not on the batch, the device or the number of processes.
        """
        return noise_for_samples(sample_ids, seed, self.latent_shape).to(self.device)

    @property
    def _vae(self) -> nn.Module:
        """The VAE, or its float32 copy if it overflows in float16, as SDXL's does."""
        vae = self.pipeline.vae
        if vae.dtype != torch.float16 or not vae.config.get("force_upcast", False):
            return vae
        return self._float32_vae.get(vae, self.device)


def _pipeline_settings(pipeline: DiffusionPipeline) -> dict[str, object]:
    """Return the values in the pipeline's config that are not components, such as ``force_zeros_for_empty_prompt``."""
    settings = {name: value for name, value in pipeline.config.items() if isinstance(value, bool | int | float | str)}
    return {
        name: value for name, value in settings.items() if name not in IGNORED_CONFIG_KEYS and not name.startswith("_")
    }
