"""Pipelines that are loaded or used under ``torch.inference_mode`` give the results of ``torch.no_grad``."""

import contextlib

import pytest
import torch

import rnri
from rnri import LatentDiffusion
from tests.pipelines import tiny_stable_diffusion


def pipeline(half: bool):
    pipe = tiny_stable_diffusion()
    if half:
        pipe.vae.register_to_config(force_upcast=True)
        pipe.vae.half()
    return pipe


def invert(pipe) -> torch.Tensor:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return rnri.invert(pipe, images, ["a cat", "a dog"], num_inference_steps=2).seed


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16 VAE"])
@pytest.mark.parametrize("inside", ["loaded", "both"])
def test_inversion_and_fingerprint(half, inside):
    expected = pipeline(half)
    with torch.inference_mode():
        pipe = pipeline(half)
    assert pipe.vae.conv_out.weight.is_inference() if hasattr(pipe.vae, "conv_out") else True
    flags = [weight.requires_grad for weight in pipe.unet.parameters()]
    with torch.inference_mode() if inside == "both" else contextlib.nullcontext():
        seed = invert(pipe)
        fingerprint = LatentDiffusion(pipe).fingerprint
    assert torch.equal(seed.clone(), invert(expected))
    assert fingerprint == LatentDiffusion(expected).fingerprint
    assert [weight.requires_grad for weight in pipe.unet.parameters()] == flags


def test_float32_copy_of_the_vae_is_differentiable():
    with torch.inference_mode():
        model = LatentDiffusion(pipeline(half=True))
        images = torch.rand(1, 3, 16, 16)
        model.encode(images)
    latent = torch.zeros(1, 4, 8, 8, requires_grad=True)
    model.decode(latent, clamp=False).sum().backward()
    assert latent.grad.abs().sum() > 0
