"""``PipelineInversion``: the result of ``rnri.invert``, with methods to reconstruct, save and show the images."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rnri.inversion import Inversion
from rnri.seed_file import read_seed_file, write_seed_file

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


CONVERGED_DB = 0.1
"""Maximum PSNR loss of a converged reconstruction in dB, compared with encoding and decoding by the VAE alone."""

MANY_NFE_PER_STEP = 3.0
"""Mean number of evaluations per step that only methods with more evaluations than the default method use."""
MAX_NFE_OF_ACCELERATED_8 = 8.0
"""Maximum mean number of evaluations per step of the method ``accelerated_8``."""

BY_STEP = ("residuals", "nfe", "backward", "solved")
"""Fields of ``Inversion`` with shape ``[N,B]``, for N inversion steps and B images."""

THUMBNAIL_SIDE = 192
"""Maximum side of an image in the HTML representation, in pixels."""


@dataclasses.dataclass(frozen=True)
class RoundTrip:
    """Reconstructions from inverted seeds, and their PSNR.

    Attributes:
        images: reconstructed images, uint8 ``[B,3,H,W]``.
        psnr: PSNR of the reconstructed images with respect to the inverted images in dB, float64 ``[B]``.
        vae_psnr: PSNR of the images after encoding and decoding by the VAE alone in dB, float64 ``[B]``. The PSNR of a
            reconstruction is rarely above ``vae_psnr``, because every reconstruction is decoded by the VAE.
    """

    images: Tensor
    psnr: Tensor
    vae_psnr: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class PipelineInversion(Inversion):
    """An ``Inversion`` with the arguments of the pipeline call that regenerates the images.

    ``inversion.reconstruct(pipe)`` regenerates the images. ``pipe(**inversion.pipe_kwargs)`` also regenerates the
    images if the pipeline uses the scheduler ``scheduler_for(pipe)``. ``len(inversion)`` is the number of images, and
    ``inversion[i]`` is the inversion of image ``i``.

    Attributes:
        latents: the seeds in the layout of the pipeline's ``latents=`` argument and in the dtype of the network:
            ``[B,C,h,w]``, or image tokens for FLUX.1, Chroma and Qwen-Image.
        prompts: one prompt per image.
        negative_prompts: one negative prompt per image.
        num_inference_steps: number of sampler steps.
        guidance_scale: guidance scale of the inversion; 1 disables guidance.
        family_kwargs: arguments of the pipeline call that depend on the model family: the guidance scale as the
            pipeline defines it, and settings such as ``use_resolution_binning`` of PixArt.
        image_size: height and width of the images in pixels.
        timesteps: ``[N]``, the sampler's timesteps, from noisy to clean.
        alphas: float64 ``[N+1]``, the factor of the clean latent before each sampler step and after the last step
            (``alpha`` of :class:`~rnri.models.schedule.Schedule`).
        prediction_type: ``prediction_type`` of the scheduler; None for flow-matching schedulers.
        scheduler: class name of the pipeline's scheduler at the time of the inversion.
        images: the inverted images, uint8 ``[B,3,H,W]``.
        round_trip: the reconstructions and their PSNR; None if ``invert`` was called with ``round_trip=False``.
        seconds: duration of the inversion of the batch in seconds, without the reconstruction.
    """

    latents: Tensor
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    num_inference_steps: int
    guidance_scale: float
    family_kwargs: Mapping[str, Any]
    image_size: tuple[int, int]
    timesteps: Tensor
    alphas: Tensor
    prediction_type: str | None
    scheduler: str
    images: Tensor
    round_trip: RoundTrip | None
    seconds: float

    @property
    def pipe_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline call that regenerates the images.

        The pipeline must use the scheduler ``scheduler_for(pipe)``. Qwen-Image 2.1 needs one call per image, with
        ``inversion[i].pipe_kwargs``, if the prompts have different numbers of tokens.
        """
        height, width = self.image_size
        pipe_kwargs = {
            "prompt": list(self.prompts),
            "latents": self.latents,
            "num_inference_steps": self.num_inference_steps,
            **self.family_kwargs,
            "height": height,
            "width": width,
        }
        if any(self.negative_prompts) or "negative_prompt" in self.family_kwargs:
            pipe_kwargs["negative_prompt"] = list(self.negative_prompts)
        return pipe_kwargs

    @property
    def psnr(self) -> Tensor:
        """PSNR of the reconstructed images in dB, float64 ``[B]``; NaN if ``invert`` did not reconstruct the images."""
        return self._unmeasured if self.round_trip is None else self.round_trip.psnr

    @property
    def vae_psnr(self) -> Tensor:
        """PSNR in dB of encoding and decoding the images with the VAE alone, float64 ``[B]``; NaN if not measured."""
        return self._unmeasured if self.round_trip is None else self.round_trip.vae_psnr

    @property
    def converged(self) -> Tensor:
        """Whether the PSNR of a reconstruction is at most 0.1 dB below the PSNR of the VAE alone, bool ``[B]``.

        If ``invert`` did not reconstruct the images, ``converged`` equals ``residual_converged``.
        """
        if self.round_trip is None:
            return self.residual_converged
        return self.psnr >= self.vae_psnr - CONVERGED_DB

    @property
    def quality(self) -> str:
        """The quality of the reconstructions in one phrase, such as "40.7 of 40.9 dB, as good as the VAE allows".

        The first number is the mean PSNR of the reconstructions. The second number is the mean PSNR of encoding and
        decoding the images with the VAE alone, which limits the first number. A higher PSNR means a smaller error. If a
        reconstruction has not converged, ``quality`` also names a setting that reduces the error.
        """
        if not len(self):
            return "no images"
        if not self.seed.isfinite().all():
            return "the seeds are not finite; use dtype=torch.float32 or a lower guidance scale"
        if self.round_trip is None:
            return f"round trip not measured, residual {float(self.residual.max()):.1e}"
        if not (self.psnr.isfinite() | self.psnr.isposinf()).all():
            return "the reconstructions are not finite; use a VAE in float32"
        psnr = f"{float(self.psnr.mean()):.1f} of {float(self.vae_psnr.mean()):.1f} dB"
        if self.converged.all():
            return f"{psnr}, as good as the VAE allows"
        number = int((~self.converged).sum())
        if len(self) == 1:
            return f"{psnr}: try {self._remedy}"
        return f"{psnr} on average, {number} of {len(self)} images below the PSNR of the VAE: try {self._remedy}"

    def reconstruct(self, pipe: DiffusionPipeline) -> list[Image.Image]:
        """Regenerate the images with ``pipe`` and return them.

        The pipeline's scheduler is replaced by ``scheduler_for(pipe)`` during the call. The seeds are converted to the
        dtype of ``pipe``.

        Raises:
            ValueError: ``pipe`` samples with other timesteps, noise levels or another prediction type than those of the
                inversion, or the sampled latents or the output of the VAE are not finite.
        """
        from rnri.models.deterministic import scheduler_for  # imports diffusers
        from rnri.models.families import family_of
        from rnri.models.finite import finite_decoding

        self.check_pipeline(pipe)
        scheduler = pipe.scheduler
        pipe.scheduler = scheduler_for(pipe)
        try:
            family = family_of(pipe)
            converted = dataclasses.replace(self, latents=self.latents.to(family.latents_dtype))
            calls = [converted] if family.batch_independent else list(converted)
            with finite_decoding(pipe.vae):
                return [image for inversion in calls for image in pipe(**inversion.pipe_kwargs).images]
        finally:
            pipe.scheduler = scheduler

    def check_pipeline(self, pipe: DiffusionPipeline) -> None:
        """Check that ``pipe`` samples with the timesteps, noise levels and prediction type of this inversion.

        Raises:
            ValueError: ``pipe`` samples with other timesteps, noise levels or another prediction type.
        """
        from rnri.models.families import family_of  # imports diffusers

        height, width = self.seed.shape[-2:]
        schedule = family_of(pipe).schedule(self.num_inference_steps, (height, width))
        differences = {
            "timesteps": not _close(schedule.timesteps, self.timesteps),
            "noise levels": not _close(schedule.alphas, self.alphas),
            "a prediction_type": pipe.scheduler.config.get("prediction_type") != self.prediction_type,
        }
        different = next((name for name, differs in differences.items() if differs), None)
        if different is not None:
            raise ValueError(
                f"pipe: the scheduler {type(pipe.scheduler).__name__} has {different} other than the scheduler "
                f"{self.scheduler} of the inversion; load the pipeline with the scheduler of the inversion."
            )

    def save(self, path: str | Path, *, checkpoint: str | None = None) -> Path:
        """Write the inversion to the safetensors file ``path`` and return the path.

        The file can be read by ``rnri.load`` and by the web page of this project.

        Args:
            path: path of the file; its folder is created if it does not exist.
            checkpoint: ``LatentDiffusion.fingerprint`` of the model. If the file contains a fingerprint, the web page
                rejects the file when the page runs with another checkpoint.
        """
        tensors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        settings = {name: value for name, value in tensors.items() if not isinstance(value, Tensor)}
        tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        tensors |= {f"aux.{name}": value for name, value in settings.pop("aux").items()}
        round_trip = settings.pop("round_trip")
        if round_trip is not None:
            tensors |= {f"round_trip.{name}": value for name, value in vars(round_trip).items()}
        if checkpoint is not None:
            settings["checkpoint"] = checkpoint
        return write_seed_file(path, tensors, settings)

    def to_pil(self) -> list[Image.Image]:
        """Return one PIL image per inverted image: the inverted image on the left, its reconstruction on the right.

        If ``invert`` was called with ``round_trip=False``, there are no reconstructions, and the inverted images alone
        are returned.
        """
        if self.round_trip is None:
            return [_to_pil(image) for image in self.images]
        return [_to_pil(torch.cat(pair, dim=2)) for pair in zip(self.images, self.round_trip.images, strict=True)]

    def show(self) -> None:
        """Display the inverted images and their reconstructions in a notebook or in the system's image viewer."""
        strip = stack_images(self.to_pil())
        try:
            from IPython.display import display
        except ImportError:
            strip.show()
        else:
            display(strip)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int | slice) -> PipelineInversion:
        """Return the inversion of image ``index``, or of a slice of the images."""
        rows = index if isinstance(index, slice) else slice(range(len(self))[index], range(len(self))[index] + 1)
        changes: dict[str, Any] = {name: getattr(self, name)[:, rows] for name in BY_STEP}
        for name in ("seed", "z0", "latents", "images", "prompts", "negative_prompts"):
            changes[name] = getattr(self, name)[rows]
        changes["aux"] = {name: tensor[rows] for name, tensor in self.aux.items()}
        if self.round_trip is not None:
            changes["round_trip"] = RoundTrip(**{name: tensor[rows] for name, tensor in vars(self.round_trip).items()})
        return dataclasses.replace(self, **changes)

    def __iter__(self) -> Iterator[PipelineInversion]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        height, width = self.image_size
        images = "1 image" if len(self) == 1 else f"{len(self)} images"
        nfe = self.nfe.sum(0).double().mean()
        return (
            f"PipelineInversion({images} {width}x{height}, {self.num_inference_steps} steps, "
            f"guidance {self.guidance_scale:g}, {self.quality}, {float(nfe):.4g} evaluations, {self.seconds:.1f} s)"
        )

    def _repr_html_(self) -> str:
        """Return the representation that notebooks display: the images, their reconstructions and the PSNR."""
        rows = []
        for inversion, image in zip(self, self.to_pil(), strict=True):
            caption = html.escape(f"{inversion.prompts[0]}: {inversion.quality}")
            rows.append(f'<figure style="margin:4px">{_img(image)}<figcaption>{caption}</figcaption></figure>')
        return f"<p>{html.escape(repr(self))}</p>{''.join(rows)}"

    @property
    def _remedy(self) -> str:
        """A setting that reduces the reconstruction error: another method, more steps or less guidance.

        With strong guidance, more steps can increase the error.
        """
        nfe_per_step = float(self.nfe.sum(0).max()) / len(self.nfe)
        if self.guidance_scale == 1:
            return "method accelerated_8 or more steps" if nfe_per_step < MANY_NFE_PER_STEP else "more steps"
        if nfe_per_step < MANY_NFE_PER_STEP:
            return "method accelerated_8"
        is_corrected = nfe_per_step > MAX_NFE_OF_ACCELERATED_8
        return "a lower guidance scale" if is_corrected else "method round_trip_corrected"

    @property
    def _unmeasured(self) -> Tensor:
        return torch.full((len(self),), torch.nan, dtype=torch.float64)


def load(path: str | Path) -> PipelineInversion:
    """Return the inversion that :meth:`PipelineInversion.save` wrote to ``path``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file was not written by :meth:`PipelineInversion.save`, or lacks a tensor or a setting.
    """
    tensors, settings = read_seed_file(path)
    settings.pop("checkpoint", None)
    groups: dict[str, dict[str, Tensor]] = {"aux": {}, "round_trip": {}}
    for name in list(tensors):
        group, dot, key = name.partition(".")
        if dot:
            groups[group][key] = tensors.pop(name)
    try:
        for name in ("prompts", "negative_prompts", "image_size"):
            settings[name] = tuple(settings[name])
        round_trip = RoundTrip(**groups["round_trip"]) if groups["round_trip"] else None
        fields: dict[str, Any] = {**tensors, **settings, "aux": groups["aux"], "round_trip": round_trip}
        return PipelineInversion(**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: incomplete seed file ({error}); save the inversion again.") from error


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.double().cpu(), other.double().cpu(), rtol=1e-6, atol=1e-9)


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Return the PSNR of ``images [B,3,H,W]`` in [0, 1] with respect to ``originals`` in dB, float64 ``[B]``.

    The PSNR of equal images is infinite.
    """
    mse = (images.double() - originals.double().to(images.device)).square().flatten(1).mean(1)
    return (-10 * mse.log10()).cpu()


def _to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def stack_images(images: list[Image.Image]) -> Image.Image:
    """Return one image in which ``images``, which must have the same size, are stacked vertically."""
    width, height = images[0].size
    strip = Image.new("RGB", (width, height * len(images)))
    for i, image in enumerate(images):
        strip.paste(image, (0, i * height))
    return strip


def _img(image: Image.Image) -> str:
    """Return an HTML ``img`` element with a PNG thumbnail of ``image``."""
    image = image.copy()
    image.thumbnail((2 * THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    data = io.BytesIO()
    image.save(data, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'
