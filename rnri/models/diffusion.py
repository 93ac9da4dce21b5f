"""``LatentDiffusion``: encode, decode, predict and sample with a diffusers text-to-image pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from rnri.models.adapters import check_lora, check_scheduler_name, load_lora, set_scheduler
from rnri.models.checkpoint import load_pipeline
from rnri.models.checks.caches import check_no_cache
from rnri.models.checks.folder import IGNORED_COMPONENTS, is_list_of_floats
from rnri.models.checks.inputs import (
    as_guidance,
    as_negative_prompts,
    check_image_size,
    check_images,
    check_prompts,
)
from rnri.models.checks.pipeline import check_pipeline
from rnri.models.checks.tokenizers import tokenizer_settings, tokenizers
from rnri.models.diffusers_schedulers import alpha_bar_table, scheduler_settings
from rnri.models.eval_mode import eval_no_grad
from rnri.models.families import family_of
from rnri.models.family import components
from rnri.models.fingerprint import fingerprint, is_compiled
from rnri.models.fp32_copy import Float32Copy
from rnri.models.noise import noise_for_samples
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample, trajectory
from rnri.models.schedule import Schedule
from rnri.validation import Dtype, GuidanceScale, NonEmptyStr

IGNORED_CONFIG_KEYS = ("requires_safety_checker", "requires_aesthetics_score")
"""Keys of a pipeline's config that do not change the results of ``LatentDiffusion``."""


class LatentDiffusion:
    """A text-to-image model with tensor inputs and outputs, created from a diffusers pipeline.

    The pipelines of all registered model families are supported, see :mod:`rnri.models.families`. The pipeline remains
    usable: its training modes, ``requires_grad`` flags, dtypes and scheduler are restored after every call. Images are
    ``[B,3,H,W]`` with values in [0, 1]. Latents ``z [B,C,h,w]`` are scaled to about unit variance, as in the training
    of the network.

    ``sample`` and ``pipe(latents=seed)`` generate the same image from a seed if the pipeline's scheduler is DDIM or
    flow matching. Pipelines whose transformer takes packed latents, such as FLUX's, need ``latents=family.pack(seed)``,
    where ``family`` is an attribute of ``LatentDiffusion``. With other schedulers, ``pipe(latents=seed)`` generates a
    different image than ``sample``. For example, ``EulerDiscreteScheduler`` scales the seed by 0.9977 for trailing
    timesteps, and ``LCMScheduler`` adds noise between steps. With ``PNDMScheduler`` and few steps, the latents differ
    by up to 7 % from the latents of ``sample``. With the scheduler that ``rnri.scheduler_for`` returns, the pipeline
    generates the same image as ``sample``.

    Args:
        pipeline: a diffusers pipeline; CPU offload is supported.
        default_guidance: guidance scale for sampling when the user sets no scale; the value should be 1 for turbo and
            LCM checkpoints. None means the default of the model family.
        image_size: height and width ``(H, W)`` of images in pixels; None means the checkpoint's default.

    Raises:
        ValueError: the pipeline or its scheduler is not supported, its components do not fit together, or a side of
            ``image_size`` is not a multiple of the number of pixels that the model family requires.
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
        compile: bool = False,
    ) -> LatentDiffusion:
        """Load a local folder written by ``save_pretrained``, or a hub id ``owner/name``.

        Args:
            path: local folder or hub id.
            device: device of the networks.
            dtype: dtype of the networks. "auto" means float16 on a GPU and float32 on a CPU or on MPS; float16 is
                slower on a CPU and can overflow on MPS.
            local_files_only: if True, use only local files, without downloads.
            variant, revision: arguments ``variant`` and ``revision`` of diffusers' ``from_pretrained``.
            default_guidance: guidance scale for sampling when the user sets no scale; None means the default of the
                model family.
            lora: folder, file or hub id of a LoRA, which is fused into the weights; loading a LoRA needs the package
                ``peft``.
            scheduler: name of a scheduler class of diffusers that replaces the checkpoint's scheduler, such as
                "LCMScheduler" for an LCM-LoRA. The new scheduler is created from the checkpoint's scheduler config.
            compile: whether ``torch.compile`` compiles the denoising network, see :meth:`compile_network`.

        Raises:
            ValueError: an argument is invalid, the checkpoint folder does not exist or lacks a component, the hub id
                cannot be reached, the pipeline is not supported, or the LoRA cannot be loaded.
            ConfigError: ``compile`` is True and PyTorch finds no compiler.
        """
        check_scheduler_name(scheduler)
        check_lora(lora)
        if compile:
            from rnri.models.compilation import check_compiler  # imported here, because most users do not compile

            check_compiler(torch.device(device))
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
        for network in components(model.pipeline).values():  # once, so that no call has to change the modes
            network.eval().requires_grad_(False)
        if compile:
            model.compile_network()
        return model

    def compile_network(self) -> None:
        """Compile the denoising network in place with ``torch.compile``, for static shapes.

        The first call of the network with each batch size compiles the network, which takes seconds to minutes. The
        results of the compiled network differ by rounding errors from the results without compilation. On CUDA, the
        kernel launches are captured in CUDA graphs.

        Raises:
            ConfigError: PyTorch finds no compiler for the device.
        """
        from rnri.models.compilation import compile_network  # imported here, because most users do not compile

        compile_network(self.family.network, self.device)

    @property
    def device(self) -> torch.device:
        """Device on which the networks run; with CPU offload, the weights may be stored on another device."""
        return torch.device(self.pipeline._execution_device)

    @property
    def alpha_bar(self) -> Tensor:
        """The scheduler's ``alphas_cumprod`` for all training timesteps, float64 ``[num_train_timesteps]``.

        Raises:
            ValueError: the model is a flow-matching model.
        """
        return alpha_bar_table(self.pipeline.scheduler)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network that predicts noise or velocity."""
        return self.family.network.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape ``(C, h, w)`` of the latent of one image."""
        if self._image_size is None:
            return self.family.channels, *self.family.latent_size
        height, width = (side // self.family.pixels_per_latent for side in self._image_size)
        return self.family.channels, height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width ``(H, W)`` of images in pixels."""
        _, height, width = self.latent_shape
        return height * self.family.pixels_per_latent, width * self.family.pixels_per_latent

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 hash of the model's weights and settings, independent of the checkpoint's location.

        The hash includes active adapters and their scales, tokenizers, the scheduler and its tables, attention
        processors and hooks, and whether the network is compiled. Components that do not affect the generated images,
        such as the safety checker, are not included. The same weights in a different dtype have a different
        fingerprint. Every access reads all weights, because a weight can change without notice. Store the value to
        reuse it as long as the model does not change.
        """
        networks = {name: value for name, value in components(self.pipeline).items() if name not in IGNORED_COMPONENTS}
        settings: dict[str, object] = {"scheduler": scheduler_settings(self.pipeline.scheduler)}
        for name, tokenizer in tokenizers(self.pipeline).items():
            settings[name] = tokenizer_settings(tokenizer)
        if is_compiled(self.family.network):
            settings["compiled"] = True
        return fingerprint(networks, settings | _pipeline_settings(self.pipeline))

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents ``[B,C,h,w]``, float32, of ``images [B,3,H,W]`` with values in [0, 1].

        The latents are the mean of the VAE's posterior distribution. The latents are differentiable with respect to
        ``images``.

        Raises:
            ValueError: ``images`` has a wrong shape or size, or values outside [0, 1].
        """
        check_images(images, self.image_size)
        vae = self._vae
        with eval_no_grad(vae):
            latents = self.family.vae_mean(vae, (2 * images - 1).to(self.device, vae.dtype)).float()
        mean, std = self.family.latent_statistics(latents)
        return (latents - mean) / std

    def decode(self, z0: Tensor, *, clamp: bool = True) -> Tensor:
        """Return the images ``[B,3,H,W]``, float32, of the clean latents ``z0 [B,C,h,w]``.

        The images are differentiable with respect to ``z0``.

        ``clamp=True`` clamps pixel values to [0, 1], as diffusers does; the gradient of clamped values is 0.
        ``clamp=False`` returns values that can be slightly outside of [0, 1], for losses that need gradients at
        saturated pixels.
        """
        vae = self._vae
        mean, std = self.family.latent_statistics(z0)
        with eval_no_grad(vae):
            images = self.family.vae_decode(vae, (z0 * std + mean).to(self.device, vae.dtype)).float() / 2 + 0.5
        return images.clamp(0, 1) if clamp else images

    def predictor(
        self, prompts: Sequence[str], guidance: float = 1.0, negative_prompt: str | Sequence[str] = ""
    ) -> NoisePredictor:
        """Return the predictor of noise or velocity for a batch of ``prompts``, whose evaluation counts start at 0.

        ``guidance=1`` disables guidance. A value of ``guidance`` above 1 is the scale of classifier-free guidance.
        Networks that take the guidance scale as an input (LCM, FLUX.1 dev) receive ``guidance`` as this input and do
        not use classifier-free guidance. ``negative_prompt`` is one negative prompt for all samples, or a list with one
        negative prompt per sample.

        Raises:
            ValueError: ``guidance`` is below 1 or not finite, ``prompts`` is empty or a single string, or the number of
                negative prompts differs from the number of prompts; or the network has a cache that reuses results of
                earlier calls.
        """
        guidance = as_guidance(guidance)
        check_prompts(prompts)
        check_no_cache(self.family.network_name, self.family.network)
        negatives = as_negative_prompts(negative_prompt, len(prompts))
        return NoisePredictor(self.family.denoiser(list(prompts), guidance, negatives, self.image_size))

    def schedule(self, steps: int) -> Schedule:
        """Return the checkpoint's schedule with ``steps`` steps.

        Raises:
            ValueError: the checkpoint's scheduler does not support this number of steps.
        """
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
        """Return the clean latent sampled from ``seed``; see :func:`rnri.models.sampling.sample`."""
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
        """Return a list of the latents after each of the last ``keep_last`` steps.

        See :func:`rnri.models.sampling.trajectory`.
        """
        return trajectory(seed, predictor, schedule, keep_last=keep_last, checkpoint=checkpoint, on_step=on_step)

    def noise(self, sample_ids: Sequence[int | str], seed: int) -> Tensor:
        """Return standard normal noise latents ``[B,C,h,w]``, float32, one per sample id.

        The noise of a sample depends only on the random seed ``seed`` and on the sample id, not on the batch, the
        device or the number of processes.
        """
        return noise_for_samples(sample_ids, seed, self.latent_shape).to(self.device)

    @property
    def _vae(self) -> ModelMixin:
        """The pipeline's VAE, or a float32 copy of a VAE that would overflow in float16, such as SDXL's VAE."""
        vae = self.pipeline.vae
        if vae.dtype != torch.float16 or not vae.config.get("force_upcast", False):
            return vae
        return self._float32_vae.get(vae, self.device)


def _pipeline_settings(pipeline: DiffusionPipeline) -> dict[str, object]:
    """Return the pipeline's config entries that are not components, such as ``force_zeros_for_empty_prompt``."""
    settings = {
        name: value
        for name, value in pipeline.config.items()
        if isinstance(value, bool | int | float | str) or is_list_of_floats(value)
    }
    return {
        name: value for name, value in settings.items() if name not in IGNORED_CONFIG_KEYS and not name.startswith("_")
    }
