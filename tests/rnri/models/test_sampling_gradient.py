"""The gradient of sampling with respect to the seed: checkpointing, truncation, cost."""

import pytest
import torch

from benchmarks.seedselect import TensorMemory
from rnri import LatentDiffusion
from rnri.models.sampling import trajectory
from tests.pipelines import LATENT_SHAPE, tiny_stable_diffusion
from tests.problems import function_predictor, schedule, wavy

PROMPTS = ["a b", "c d"]


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return LatentDiffusion(tiny_stable_diffusion())


def seeds(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)


def gradient(predictor, steps, seed: torch.Tensor, keep_last: int = 2, **options) -> torch.Tensor:
    """Return the gradient of a loss of the last latents."""
    seed = seed.clone().requires_grad_()
    latents = trajectory(seed, predictor, steps, keep_last=keep_last, **options)
    return torch.autograd.grad(sum(latent.sin().sum() for latent in latents), seed)[0]


@pytest.mark.parametrize("k", [None, 1, 2, 4])
def test_gradient_with_checkpointing(model, k):
    predictor, steps = model.predictor(PROMPTS, 2.0), model.schedule(4)
    expected = gradient(predictor, steps, seeds(), gradient_steps=k)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient(predictor, steps, seeds(), gradient_steps=k, checkpoint=True), expected)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_latents_are_independent_of_gradient_options(model, checkpoint):
    predictor, steps = model.predictor(PROMPTS), model.schedule(4)
    with torch.no_grad():
        expected = trajectory(seeds(), predictor, steps, keep_last=4)
    for k in (1, 3, 4):
        latents = trajectory(
            seeds().requires_grad_(), predictor, steps, keep_last=4, gradient_steps=k, checkpoint=checkpoint
        )
        for latent, other in zip(latents, expected, strict=True):
            torch.testing.assert_close(latent, other, rtol=0, atol=0)


def test_truncated_gradient_equals_scaled_gradient_of_last_steps():
    predictor, steps = function_predictor(wavy, 2), schedule(6)
    seed = seeds(torch.float64)
    latents = trajectory(seed, predictor, steps, keep_last=6)
    last = gradient(predictor, steps.tail(2), latents[3])
    scale = 1.0
    for i in range(4):
        scale /= steps.coefficients(i)[0]
    torch.testing.assert_close(gradient(predictor, steps, seed, gradient_steps=2), scale * last)
    assert (gradient(predictor, steps, seed) - scale * last).abs().max() > 1e-3


@pytest.mark.parametrize("k", [6, 9])
def test_truncation_beyond_schedule_has_no_effect(k):
    predictor, steps = function_predictor(wavy, 2), schedule(6)
    expected = gradient(predictor, steps, seeds(torch.float64))
    torch.testing.assert_close(gradient(predictor, steps, seeds(torch.float64), gradient_steps=k), expected)


def test_truncated_steps_cost_no_backward_evaluations(model):
    predictor = model.predictor(PROMPTS)
    gradient(predictor, model.schedule(5), seeds(), gradient_steps=2)
    assert (predictor.forward_evaluations, predictor.backward_evaluations) == (5 * 2, 2 * 2)
    predictor = model.predictor(PROMPTS)
    gradient(predictor, model.schedule(5), seeds(), gradient_steps=2, checkpoint=True)
    assert (predictor.forward_evaluations, predictor.backward_evaluations) == ((5 + 2) * 2, 2 * 2)


def peak(model: LatentDiffusion, steps: int, **options) -> int:
    """Return the maximum number of bytes in tensors at any time."""
    predictor = model.predictor(PROMPTS)
    schedule = model.schedule(steps)
    seed = seeds()
    with TensorMemory() as memory:
        gradient(predictor, schedule, seed, **options)
    return memory.peak


@pytest.mark.slow
def test_memory_with_checkpointing_and_truncation(model):
    latent = 8 * seeds().numel()  # float64, the state's dtype
    few, many = (peak(model, steps, checkpoint=True) for steps in (5, 25))
    assert many - few <= 20 * latent
    assert peak(model, 25) - peak(model, 5) > 100 * 20 * latent
    assert peak(model, 25, gradient_steps=3) - peak(model, 5, gradient_steps=3) == 0


def test_truncation_to_zero_steps_is_rejected(model):
    with pytest.raises(ValueError, match="gradient_steps=0"):
        trajectory(seeds(), model.predictor(PROMPTS), model.schedule(4), keep_last=1, gradient_steps=0)
