import pytest
import torch

from rnri import DecoderInversion, LatentDiffusion
from tests.pipelines import IMAGE_SIZE, tiny_stable_diffusion


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion(tiny_stable_diffusion())


def pictures(batch=2):
    return torch.rand(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


def errors(model, z):
    with torch.no_grad():
        return (model.decode(z, clamp=False) - pictures(len(z))).square().flatten(1).mean(1)


def test_it_decodes_to_the_image_better_than_the_encoder(model):
    z = DecoderInversion(iterations=60)(model, pictures())
    assert (errors(model, z) < 0.9 * errors(model, model.encode(pictures()))).all() and not z.requires_grad


def test_no_image_gets_worse_whatever_the_rate(model):
    z = DecoderInversion(iterations=5, learning_rate=1e3, warmup=0)(model, pictures())
    assert (errors(model, z) <= 1.0001 * errors(model, model.encode(pictures()))).all()


def test_without_iterations_it_is_the_encoder(model):
    assert torch.equal(DecoderInversion(iterations=0)(model, pictures()), model.encode(pictures()))


def test_an_image_alone_and_in_a_batch():
    model = LatentDiffusion(tiny_stable_diffusion().to(torch.float64))
    method = DecoderInversion(iterations=10)
    together = method(model, pictures())
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], method(model, pictures()[i : i + 1]), rtol=1e-3, atol=1e-3)


def test_it_works_where_gradients_are_off(model):
    with torch.no_grad():
        z = DecoderInversion(iterations=3)(model, pictures())
    assert not torch.equal(z, model.encode(pictures()))


def test_bad_settings():
    with pytest.raises(ValueError, match="iterations=-1"):
        DecoderInversion(iterations=-1)
