"""The random checkpoints have the published numbers of weights, and their reduced versions run on a CPU."""

import pytest
import torch

from benchmarks.random_checkpoints import CHECKPOINTS, FLUX_VAE, GEMMA2_2B, QWEN3_4B, SANA_VAE, T5_XXL, count_weights

PUBLISHED = {
    "sd15": 859_520_964,
    "sdxl": 2_567_463_684,
    "sdxl_turbo": 2_567_463_684,
    "sd3": 2_028_328_000,
    "flux_schnell": 11_891_178_560,
    "sana": 1_604_462_752,
    "z_image_turbo": 6_154_908_736,
}
"""Number of weights of the network that predicts noise or velocity."""
ENCODERS = [
    (T5_XXL, 4_762_310_656),
    (QWEN3_4B, 4_022_468_096),
    (GEMMA2_2B, 2_614_341_888),
    (FLUX_VAE, 83_819_683),
    (SANA_VAE, 312_250_275),
]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_network_has_the_published_number_of_weights(name):
    assert count_weights(CHECKPOINTS[name].network[1]) == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.parametrize("component, weights", ENCODERS, ids=lambda value: getattr(value, "name", ""))
def test_encoders_have_the_published_number_of_weights(component, weights):
    assert count_weights(component) == weights


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name != "sdxl"])
def test_reduced_checkpoint_predicts_and_decodes(name):
    model = CHECKPOINTS[name].build("cpu", torch.bfloat16, tiny=True)
    noise = model.noise([0, 1], seed=0)
    with torch.no_grad():
        prediction = model.predictor(["a cat", "a dog"])(noise, model.schedule(2).timestep(0))
        image = model.decode(noise)
    assert model.dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32
    assert prediction.isfinite().all() and prediction.abs().mean() > 1e-3
    assert image.shape == (2, 3, *model.image_size) and image.isfinite().all()
