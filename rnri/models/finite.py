"""Errors for latents and images with NaN or infinite values, for which pipelines would return black images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def check_finite_latents(latents: Tensor) -> None:
    """Raise ValueError if ``latents`` has an element that is not finite."""
    if not latents.isfinite().all():
        raise ValueError(
            "the sampled latents are not finite: the network overflows; load the pipeline in float32 "
            "(torch_dtype=torch.float32)."
        )


@contextmanager
def finite_decoding(vae: nn.Module) -> Iterator[None]:
    """Raise ValueError inside the ``with`` block if the input or the output of the VAE's decoder is not finite."""

    def check(decoder: nn.Module, inputs: tuple[Any, ...], images: Tensor) -> None:
        check_finite_latents(inputs[0])
        if not images.isfinite().all():
            raise ValueError(
                "the decoded images are not finite: the VAE overflows; convert the VAE to float32 (pipe.vae.float())."
            )

    decoder: Any = vae.decoder
    handle = decoder.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()
