"""A diffusers text-to-image pipeline seen as tensor maps: the only place that knows checkpoints."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from rnri.models.adapters import check_lora, check_scheduler_name, load_lora, set_scheduler
from rnri.models.checkpoint import load_pipeline
from rnri.models.checks.folder import IGNORED_COMPONENTS
from rnri.models.checks.tokenizers import check_tokenizers, tokenizer_settings
from rnri.models.diffusers_schedulers import alpha_bar_table, scheduler_settings
from rnri.models.eval_mode import eval_no_grad
from rnri.models.families import family_of
from rnri.models.family import components
from rnri.models.fingerprint import fingerprint
from rnri.models.fp32_copy import Float32Copy
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample, trajectory
from rnri.models.schedule import Schedule
from rnri.validation import Dtype, GuidanceScale, NonEmptyStr

IGNORED_CONFIG_KEYS = ("requires_safety_checker", "requires_aesthetics_score")
"""Settings of pipelines that say nothing of what is computed here."""


class LatentDiffusion:
    """Stable Diffusion 1.x, 2.x, XL, turbo, LCM, 3 or 3.5, or FLUX.1, from any diffusers pipeline of that architecture.

    The pipeline stays the user's and is left as it was found: modes, gradients, dtypes and scheduler. Images are
    ``[B,3,H,W]`` in [0, 1]; latents ``z [B,C,h,w]`` are scaled to what the network was trained on, about unit
    variance.

    A seed of ours and ``pipe(latents=seed)`` are the same for DDIM's scheduler and flow matching's (FLUX takes it
    packed). Other pipelines' own samplers differ: Euler's by a factor of 0.9977 at trailing timesteps, PNDM's by up to
    7 % at few steps, LCM's by the noise that it adds between steps; ``rnri.scheduler_for`` gives one that does not.

    Args:
        pipeline: any diffusers pipeline of that architecture, under CPU offload too.
        default_guidance: what its authors sample with, for those who ask; 1 for turbo and LCM checkpoints.
        image_size: ``(H, W)`` in pixels; None: the checkpoint's own.

    Raises:
        ValueError: one sentence for a pipeline of another architecture, a scheduler that cannot be followed, or a size
            that is no multiple of what a latent's element covers.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        default_guidance: float = 1.0,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        self.family = family_of(pipeline)
        self.family.check()
        check_tokenizers(pipeline)
        self.pipeline, self.default_guidance = pipeline, _as_guidance(default_guidance)
        self._size = image_size
        if image_size is not None:
            self._check_size(image_size)
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
        default_guidance: GuidanceScale = 1.0,
        lora: NonEmptyStr | Path | None = None,
        scheduler: NonEmptyStr | None = None,
    ) -> LatentDiffusion:
        """Loads a local folder written by ``save_pretrained``, or a hub id such as ``owner/name``.

        ``lora`` (a folder, a file or a hub id; needs ``peft``) is put on it as by ``pipe.load_lora_weights`` and
        ``pipe.fuse_lora``. ``scheduler``, the name of one of diffusers', is made of the checkpoint's own config: LCM's,
        with an LCM-LoRA.

        ``dtype="auto"`` is float16 on a GPU and float32 on a CPU, where halves are slower, and on MPS, where they can
        overflow.

        Raises:
            ValueError: one sentence for an unknown ``dtype``, a folder that does not exist or lacks a part, an
                unreachable hub id, or a pipeline that is of no known family;
                a LoRA that cannot be loaded, and a scheduler that diffusers does not have.
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
        for module in components(
            model.pipeline
        ).values():  # the pipeline is ours: nothing is to be switched at every call
            module.eval().requires_grad_(False)
        return model

    @property
    def device(self) -> torch.device:
        """Where the networks run; under CPU offload they need not lie there."""
        return torch.device(self.pipeline._execution_device)

    @property
    def alpha_bar(self) -> Tensor:
        """Cumulative alphas of the pipeline's scheduler, float64 ``[num_train_timesteps]``; none in flow matching."""
        return alpha_bar_table(self.pipeline.scheduler)

    @property
    def dtype(self) -> torch.dtype:
        """The predicting network's."""
        return self.family.network.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, h, w)``."""
        if self._size is None:
            return self.family.channels, *self.family.latent_size
        return self.family.channels, *(side // self._scale for side in self._size)

    @property
    def image_size(self) -> tuple[int, int]:
        """``(H, W)`` in pixels."""
        _, height, width = self.latent_shape
        return height * self._scale, width * self._scale

    @property
    def _scale(self) -> int:
        """Pixels to a side of a latent's element."""
        return 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of weights and configuration, the same wherever the checkpoint lies.

        Adapters count, with their scales and whether they are on; tokenizers, the scheduler with its table, attention
        processors and hooks count too, and parts that are not used here do not. Every weight is read at every use,
        for a weight can change without a sign: keep the value where the model stays as it is. Weights in another
        dtype are another checkpoint.
        """
        used = {name: part for name, part in components(self.pipeline).items() if name not in IGNORED_COMPONENTS}
        settings: dict[str, object] = {"scheduler": scheduler_settings(self.pipeline.scheduler)}
        for name, part in self.pipeline.components.items():
            if name.startswith("tokenizer") and part is not None:
                settings[name] = tokenizer_settings(part)
        return fingerprint(used, settings | _own_settings(self.pipeline))

    def encode(self, images: Tensor) -> Tensor:
        """Latents ``[B,C,h,w]``, float32, of ``images [B,3,H,W]`` in [0, 1]: the mean of the VAE's posterior.

        Differentiable.

        Raises:
            ValueError: wrong shape or size, or values outside [0, 1].
        """
        self._check_images(images)
        vae = self._vae
        with eval_no_grad(vae):
            latents = vae.encode((2 * images - 1).to(self.device, vae.dtype)).latent_dist.mode().float()
        mean, std = self._latent_statistics(latents)
        return (latents - mean) / std

    def decode(self, z0: Tensor, *, clamp: bool = True) -> Tensor:
        """Images ``[B,3,H,W]``, float32, of latents ``[B,C,h,w]``; differentiable.

        ``clamp=True`` (diffusers' choice) cuts values to [0, 1], and the gradient with them; ``clamp=False``
        lets values slightly outside pass, for losses whose gradient should not stop at saturated pixels.
        """
        vae = self._vae
        mean, std = self._latent_statistics(z0)
        with eval_no_grad(vae):
            images = vae.decode((z0 * std + mean).to(self.device, vae.dtype), return_dict=False)[0].float() / 2 + 0.5
        return images.clamp(0, 1) if clamp else images

    def predictor(
        self, prompts: Sequence[str], guidance: float = 1.0, negative_prompt: str | Sequence[str] = ""
    ) -> NoisePredictor:
        """The prediction (noise, or velocity) for a batch of ``prompts``, in order, with a fresh count.

        ``guidance=1`` is off: the conditional prediction alone. Above 1 it is classifier-free guidance away
        from ``negative_prompt``, one for all or a list of one a sample; networks distilled with guidance as an input
        (LCM, FLUX.1 dev) get it as that input instead.

        Raises:
            ValueError: ``guidance`` below 1 or not finite, no prompts, a single string for ``prompts``, or negative
                prompts of another number.
        """
        guidance = _as_guidance(guidance)
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"prompts={prompts!r} must be a non-empty list of strings, one a sample.")
        negatives = _as_negatives(negative_prompt, len(prompts))
        return NoisePredictor(self.family.denoiser(list(prompts), guidance, negatives, self.image_size))

    def schedule(self, steps: int) -> Schedule:
        """The checkpoint's own schedule with ``steps`` steps; ValueError if it has not that many."""
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
        """``rnri.models.sampling.sample``: the clean latent of ``seed``."""
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
        """``rnri.models.sampling.trajectory``: the latents after the last ``keep_last`` steps, cleanest last."""
        return trajectory(seed, predictor, schedule, keep_last=keep_last, checkpoint=checkpoint, on_step=on_step)

    def noise(self, sample_ids: Sequence[int | str], seed: int) -> Tensor:
        """Standard normal seeds ``[B,C,h,w]``, float32, one for each sample id.

        Each is drawn by its own CPU generator, keyed by ``seed`` and the id's text: the same whatever the
        batch, the device and the number of processes.
        """
        return torch.stack([self._one_noise(sample_id, seed) for sample_id in sample_ids]).to(self.device)

    def _one_noise(self, sample_id: int | str, seed: int) -> Tensor:
        key = hashlib.sha256(f"{seed}\n{sample_id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        return torch.randn(self.latent_shape, generator=generator)

    @property
    def _vae(self) -> nn.Module:
        """The VAE; of one that overflows in half precision, as SDXL's does, a copy in single precision."""
        vae = self.pipeline.vae
        if vae.dtype != torch.float16 or not vae.config.get("force_upcast", False):
            return vae
        return self._float32_vae.get(vae, self.device)

    def _check_size(self, size: tuple[int, int]) -> None:
        step = self._scale * self.family.patch
        if len(size) != 2 or any(not isinstance(side, int) or side < step or side % step for side in size):
            raise ValueError(f"image_size={size!r} must be (height, width), both multiples of {step} pixels.")

    def _check_images(self, images: Tensor) -> None:
        expected = (3, *self.image_size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; this checkpoint takes "
                f"[B, {', '.join(map(str, expected))}]: resize them first."
            )
        if not images.is_floating_point() or not ((images >= 0) & (images <= 1)).all():
            raise ValueError("images must be floating point with every value in [0, 1]; clamp them after resizing.")

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """``(mean, std)`` with ``VAE latent = std z + mean``."""
        config = self.pipeline.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return config.get("shift_factor") or 0.0, 1 / config.scaling_factor
        mean, std = (like.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        return mean, std / config.scaling_factor


def _as_guidance(guidance: float) -> float:
    number = isinstance(guidance, Real) and not isinstance(guidance, bool)
    if not number or not math.isfinite(guidance) or guidance < 1:
        raise ValueError(f"guidance={guidance!r} must be a finite number of at least 1; 1 turns it off.")
    return float(guidance)


def _as_negatives(negative_prompt: str | Sequence[str], batch: int) -> list[str]:
    """One negative prompt a sample."""
    negatives = [negative_prompt] * batch if isinstance(negative_prompt, str) else negative_prompt
    if (
        not isinstance(negatives, list | tuple)
        or len(negatives) != batch
        or not all(isinstance(text, str) for text in negatives)
    ):
        raise ValueError(
            f"negative_prompt={negative_prompt!r} must be a string, or a list of strings, one for each of the {batch} "
            "prompts."
        )
    return list(negatives)


def _own_settings(pipeline: DiffusionPipeline) -> dict[str, object]:
    """What the pipeline's own configuration says beside its parts, such as ``force_zeros_for_empty_prompt``."""
    config = {name: value for name, value in pipeline.config.items() if isinstance(value, bool | int | float | str)}
    return {
        name: value for name, value in config.items() if name not in IGNORED_CONFIG_KEYS and not name.startswith("_")
    }
