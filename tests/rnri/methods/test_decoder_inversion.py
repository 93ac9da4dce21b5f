"""Decoder inversion: lower decoding error than the encoder, per image and independent of the batch."""

import pytest
import torch

from rnri import DecoderInversion, LatentDiffusion
from tests.pipelines import IMAGE_SIZE, tiny_stable_diffusion


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion(tiny_stable_diffusion())


def images(batch=2):
    return torch.rand(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


def errors(model, z):
    with torch.no_grad():
        return (model.decode(z, clamp=False) - images(len(z))).square().flatten(1).mean(1)


def test_lower_error_than_the_encoder(model):
    z = DecoderInversion(iterations=60)(model, images())
    assert (errors(model, z) < 0.9 * errors(model, model.encode(images()))).all() and not z.requires_grad


def test_no_image_gets_worse_with_a_huge_learning_rate(model):
    z = DecoderInversion(iterations=5, learning_rate=1e3, warmup=0)(model, images())
    assert (errors(model, z) <= 1.0001 * errors(model, model.encode(images()))).all()


def test_zero_iterations_return_the_encoding(model):
    assert torch.equal(DecoderInversion(iterations=0)(model, images()), model.encode(images()))


def test_result_does_not_depend_on_the_batch():
    model = LatentDiffusion(tiny_stable_diffusion().to(torch.float64))
    method = DecoderInversion(iterations=10)
    together = method(model, images())
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], method(model, images()[i : i + 1]), rtol=1e-3, atol=1e-3)


def test_runs_under_no_grad(model):
    with torch.no_grad():
        z = DecoderInversion(iterations=3)(model, images())
    assert not torch.equal(z, model.encode(images()))


def test_invalid_settings():
    with pytest.raises(ValueError, match=r"iterations: .*, got -1"):
        DecoderInversion(iterations=-1)
