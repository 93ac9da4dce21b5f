"""Watermarks in seeds: embed a watermark in the seed of an image, and read the watermark from the inverted seed.

::

    mark = watermark.GaussianShading(key=watermark.new_key(), message=b"owner 42")
    seed = watermark.embed(mark, pipe)
    image = pipe("a photo of a cat", latents=seed).images[0]
    inversion = rnri.invert(pipe, image, "", round_trip=False)
    print(watermark.read(mark, inversion).p_value)

Reading a watermark does not require the prompt of the image. The key must be secret: a person with the key can read,
forge and remove the watermark. No function of this module logs, prints or stores a key, and error messages do not
contain keys.
"""

from __future__ import annotations

import hashlib
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import binom, ncx2
from torch import Tensor

from rnri.models.diffusion import LatentDiffusion
from rnri.pipeline_inversion import PipelineInversion
from rnri.validation import ConfigError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MIN_KEY_BYTES = 16
"""Minimum length of a key in bytes."""


@dataclass(frozen=True, kw_only=True)
class WatermarkReading:
    """The watermark that was read from a batch of B seeds.

    Attributes:
        p_value: probability that a random seed without the watermark matches the watermark at least as well as the seed
            that was read, float64 ``[B]`` in [0, 1]. A seed with NaN or infinity has the p-value 1.
        bits: the bits of the message, bool ``[B,k]``; None for a watermark without a message.
        bit_accuracy: fraction of the bits that equal the embedded message, float64 ``[B]`` in [0, 1]; None for a
            watermark without a message. A seed without the watermark has a bit accuracy of 0.5 on average.
        sign_accuracy: fraction of the elements of a seed that have the embedded sign, float64 ``[B]`` in [0, 1]; None
            for a watermark without a message.
    """

    p_value: Tensor
    bits: Tensor | None = None
    bit_accuracy: Tensor | None = None
    sign_accuracy: Tensor | None = None

    @property
    def messages(self) -> list[bytes]:
        """The message of each seed.

        Raises:
            ValueError: the watermark has no message.
        """
        if self.bits is None:
            raise ValueError(
                "messages: the watermark has no message; use a watermark with a message, such as GaussianShading."
            )
        return [np.packbits(bits.numpy()).tobytes() for bits in self.bits]


@dataclass(frozen=True, kw_only=True)
class Watermark(ABC):
    """A watermark that is embedded in seeds with a secret key.

    Args:
        key: the secret key, at least 16 bytes; :func:`new_key` returns a random key. ``repr`` of a watermark does not
            show the key.
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.key, bytes):  # the message must not contain the key
            raise ConfigError("key", f"must be bytes, got {type(self.key).__name__}; call watermark.new_key().")
        if len(self.key) < MIN_KEY_BYTES:
            raise ConfigError(
                "key", f"must have at least {MIN_KEY_BYTES} bytes, got {len(self.key)}; call watermark.new_key()."
            )

    @abstractmethod
    def embed(self, noise: Tensor) -> Tensor:
        """Return the seeds ``[B,C,h,w]`` that result from embedding the watermark in standard normal ``noise``.

        Raises:
            ConfigError: the watermark does not fit into latents of this shape.
        """

    @abstractmethod
    def read(self, seeds: Tensor) -> WatermarkReading:
        """Read the watermark from ``seeds [B,C,h,w]``."""

    def _stream(self, name: str, count: int) -> bytes:
        """Return ``count`` pseudorandom bytes that ``name`` and the key determine (SHAKE256 as a stream cipher)."""
        return hashlib.shake_256(name.encode() + b"\0" + self.key).digest(count)

    def _uniform(self, name: str, count: int) -> np.ndarray:
        """Return ``count`` pseudorandom numbers, uniform in (0, 1), float64."""
        integers = np.frombuffer(self._stream(name, 8 * count), "<u8") >> np.uint64(12)
        return (integers + 0.5) / 2**52


@dataclass(frozen=True, kw_only=True)
class GaussianShading(Watermark):
    """Gaussian Shading: the encrypted bits of a message are the signs of the seed (Yang et al. 2024, arXiv 2404.04956).

    Each bit is copied to several elements of the seed, and reading decides each bit by a majority vote of its copies.
    The absolute values of the noise are unchanged. With a random key, the seed is exactly standard normal.

    The seed has one bit per element (``l = 1`` in the paper). The paper repeats a block of bits over channels and
    space. In this class, the key determines which elements hold the copies of a bit, so that latents of any shape and
    messages of any length are supported. The stream cipher is SHAKE256 instead of the paper's ChaCha20.

    Args:
        message: the message, at least one byte and at most one bit per element of a latent. To read an unknown message,
            pass any message of the same length and use ``WatermarkReading.messages``.
    """

    message: bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.message, bytes) or not self.message:
            raise ConfigError("message", f"must be bytes with at least one byte, got {self.message!r:.80}.")

    def embed(self, noise: Tensor) -> Tensor:
        index, pad = self._layout(noise)
        signs = 1 - 2 * (self._bits[index] ^ pad).to(noise.dtype)
        return noise.abs() * signs.to(noise.device).view(noise.shape[1:])

    def read(self, seeds: Tensor) -> WatermarkReading:
        index, pad = self._layout(seeds)
        seeds = seeds.detach().cpu().double()
        finite = seeds.flatten(1).isfinite().all(1)
        votes = seeds.nan_to_num(0, 0, 0).flatten(1).sign() * (2.0 * pad - 1)  # +1 for bit 1, -1 for bit 0
        bits = self._bits
        first = torch.from_numpy(np.unique(index.numpy(), return_index=True)[1])  # index of each bit's first copy
        total = torch.zeros(len(seeds), len(bits), dtype=torch.float64).index_add_(1, index, votes)
        decided = total + 0.5 * votes[:, first] > 0  # the first copy decides ties
        correct = (decided == bits).sum(1)
        p_value = torch.from_numpy(np.asarray(binom.sf(correct.numpy() - 1, len(bits), 0.5)))
        return WatermarkReading(
            p_value=p_value.masked_fill(~finite, 1.0),
            bits=decided,
            bit_accuracy=correct.double() / len(bits),
            sign_accuracy=(votes * (2.0 * bits[index] - 1) > 0).double().mean(1),
        )

    @property
    def _bits(self) -> Tensor:
        """The bits of the message, bool ``[k]``."""
        return torch.from_numpy(np.unpackbits(np.frombuffer(self.message, np.uint8)).astype(bool))

    def _layout(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each of the ``n`` elements of a latent, the index of its message bit and its keystream bit.

        The keystream bit encrypts the message bit by exclusive or.

        Returns:
            The indices, int64 ``[n]``, and the keystream bits, bool ``[n]``.
        """
        size = _check_latents(latents).numel()
        count = 8 * len(self.message)
        if count > size:
            raise ConfigError(
                "message", f"must have at most {size // 8} bytes for latents of {size} elements, got {count // 8}."
            )
        order = np.argsort(self._uniform("positions", size), kind="stable")
        index = np.empty(size, np.int64)
        index[order] = np.arange(size) % count
        pad = np.unpackbits(np.frombuffer(self._stream("signs", -(-size // 8)), np.uint8))[:size]
        return torch.from_numpy(index), torch.from_numpy(pad.astype(bool))


@dataclass(frozen=True, kw_only=True)
class TreeRing(Watermark):
    """Tree-Ring: rings in the Fourier transform of one channel of the seed (Wen et al. 2023, arXiv 2305.20030).

    All Fourier coefficients with the same distance to frequency 0 have the same real value, which the key determines.
    Rings are unchanged when an image is rotated. A Tree-Ring watermark has no message, and its seed is not standard
    normal.

    The p-value is computed by the paper's noncentral chi-squared test. Unlike the paper's code, the test uses only one
    coefficient of each pair of conjugate Fourier coefficients, because conjugate coefficients are not independent. The
    chi-squared test estimates the variance from all elements of the seed. The p-values of standard normal seeds are
    uniform.

    Args:
        radius: radius of the outer ring as a fraction of the smaller side of a latent, above 0 and below 0.5; the paper
            uses 10/64.
        channel: index of the latent channel that contains the rings.
    """

    radius: float = 10 / 64
    channel: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.radius < 0.5:
            raise ConfigError("radius", f"must be above 0 and below 0.5, got {self.radius!r}.")

    def embed(self, noise: Tensor) -> Tensor:
        rings, values = self._rings(noise, half=False)
        spectrum = torch.fft.fft2(noise[:, self.channel].cpu().double(), norm="ortho")  # MPS lacks float64
        spectrum[:, rings > 0] = values[rings[rings > 0] - 1].to(spectrum.dtype)
        seeds = noise.clone()
        seeds[:, self.channel] = torch.fft.ifft2(spectrum, norm="ortho").real.to(noise.dtype).to(noise.device)
        return seeds

    def read(self, seeds: Tensor) -> WatermarkReading:
        rings, values = self._rings(seeds, half=True)
        seeds = seeds.detach().cpu().double()
        finite = seeds.flatten(1).isfinite().all(1)
        seeds = seeds.nan_to_num(0, 0, 0)
        coefficients = torch.fft.fft2(seeds[:, self.channel], norm="ortho")[:, rings > 0]
        pattern = values[rings[rings > 0] - 1]
        variance = seeds.flatten(1).square().mean(1).clamp_min(torch.finfo(torch.float64).tiny) / 2
        distance = (coefficients - pattern).abs().square().sum(1) / variance
        noncentrality = pattern.square().sum() / variance
        p_value = ncx2.cdf(distance.numpy(), 2 * len(pattern), noncentrality.numpy())
        return WatermarkReading(p_value=torch.from_numpy(np.asarray(p_value)).masked_fill(~finite, 1.0))

    def _rings(self, latents: Tensor, *, half: bool) -> tuple[Tensor, Tensor]:
        """Return the index of the ring that contains each Fourier coefficient, and the value of each ring.

        Args:
            half: whether only one coefficient of each pair of conjugate coefficients belongs to a ring.

        Returns:
            The ring indices, int64 ``[h,w]``, from 1 to R for R rings, and 0 for a coefficient outside all rings; and
            the ring values, float64 ``[R]``.
        """
        channels, height, width = _check_latents(latents).shape
        if not -channels <= self.channel < channels:
            raise ConfigError("channel", f"must be from {-channels} to {channels - 1}, got {self.channel}.")
        count = int(self.radius * min(height, width) + 0.5)
        if not 1 <= count < min(height, width) / 2:
            raise ConfigError(
                "radius",
                f"must be at least {0.5 / min(height, width):.3g} and below {0.5 - 0.5 / min(height, width):.3g} for "
                f"latents of {height}x{width} elements, got {self.radius:g}.",
            )
        y = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64).round()[:, None]
        x = torch.fft.fftfreq(width, 1 / width, dtype=torch.float64).round()[None]
        rings = (y.square() + x.square()).sqrt().round().long()
        rings = rings.masked_fill(rings > count, 0)
        if half:
            rings = rings.masked_fill((x < 0) | ((x == 0) & (y < 0)), 0)
        return rings, torch.from_numpy(ndtri(self._uniform("rings", count)))


def new_key() -> bytes:
    """Return a random key of 32 bytes, from the random generator of the operating system. Store the key safely."""
    return secrets.token_bytes(32)


def embed(
    mark: Watermark,
    pipe: DiffusionPipeline,
    *,
    count: int = 1,
    image_size: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return random seeds with the watermark ``mark``, in the layout and dtype of the pipeline's ``latents=`` argument.

    Args:
        mark: the watermark.
        pipe: a diffusers pipeline of a supported family (:func:`rnri.api.invert`).
        count: number of seeds.
        image_size: height and width ``(H, W)`` of the images in pixels; None means the checkpoint's default.
        generator: random generator of the noise, on the CPU; None means PyTorch's global generator.

    Raises:
        ConfigError: the watermark does not fit into the latents of ``pipe``, or ``count`` is below 1.
    """
    if count < 1:
        raise ConfigError("count", f"must be at least 1, got {count}.")
    model = LatentDiffusion(pipe, image_size=image_size)
    noise = torch.randn(count, *model.latent_shape, generator=generator)
    return model.family.pack(mark.embed(noise).to(model.device, model.family.latents_dtype))


def read(mark: Watermark, inversion: PipelineInversion | Tensor) -> WatermarkReading:
    """Read the watermark ``mark`` from the seeds of an inversion.

    Args:
        mark: a watermark with the same key and settings as the embedded watermark.
        inversion: the result of ``rnri.invert`` with an empty prompt, or seeds ``[B,C,h,w]``.

    Raises:
        ConfigError: the watermark does not fit into latents of this shape.
    """
    return mark.read(inversion if isinstance(inversion, Tensor) else inversion.seed)


def _check_latents(latents: Tensor) -> Tensor:
    """Check the shape of ``latents [B,C,h,w]``, and return the first latent ``[C,h,w]``.

    Raises:
        ValueError: ``latents`` does not have four dimensions or is empty.
    """
    if latents.ndim != 4 or not latents.numel():
        raise ValueError(f"seeds: must have the shape [B,C,h,w], got {list(latents.shape)}; unpack packed latents.")
    return latents[0]
