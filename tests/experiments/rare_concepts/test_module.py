"""Images of arms that execute only a part of the sampling steps: SDEdit, and the best of several previews."""

import pytest
import torch

from experiments.rare_concepts.arm import Arm
from rnri.models.sampling import ddim_step, sample, steps_for_strength
from seedselect import BestOf, LatentReward, SeedSelect
from tests.experiments.tiny_configs import rare_concepts, run_to_end

STRENGTH = 0.5


@pytest.mark.slow
@pytest.mark.parametrize("samples", [2, 3])
def test_sdedit_samples_from_noisy_references(tmp_path, samples):
    arms = {"sdedit": Arm(1.0, strength=STRENGTH)}
    task = run_to_end(rare_concepts(tmp_path, arms, steps=4, samples=samples))
    context = task.context
    model = context.networks.model
    schedule = context.schedule.tail(steps_for_strength(STRENGTH, 4))
    alpha, sigma = schedule.alpha_sigma(0)[:2]
    for concept in context.concepts:
        tensors, record = context.units("sdedit").read(concept.key)
        z0 = model.encode(torch.from_numpy(concept.references[:2]).float() / 255)
        noise = model.noise([f"{concept.name}/{k}" for k in range(samples)], context.seed)
        noisy = alpha * z0[[k % 2 for k in range(samples)]] + sigma * noise
        with torch.no_grad():
            latents = sample(noisy, model.predictor([concept.prompt] * samples, 1.0), schedule)
            expected = model.decode(latents) * 255
        assert (tensors["images"] - expected).abs().max() <= 1
        torch.testing.assert_close(tensors["seeds"], noise.float())
        assert [entry["nfe"] for entry in record["samples"]] == [2] * samples


@pytest.mark.slow
def test_image_is_sampled_from_the_seed_with_the_best_preview(tmp_path):
    loss = SeedSelect(step_weights=(1.0,), rewards=[(LatentReward(brightness), 1.0)])
    arms = {"best": Arm(1.5, select=BestOf(loss, 3, preview=0.5))}
    context = run_to_end(rare_concepts(tmp_path, arms, steps=4, samples=2)).context
    model, schedule = context.networks.model, context.schedule
    chosen = []
    for concept in context.concepts:
        tensors, record = context.units("best").read(concept.key)
        predictor = model.predictor([concept.prompt] * 6, 1.5)
        noise = model.noise([f"{concept.name}/{k}" for k in range(6)], context.seed)  # candidate k // 2 of image k % 2
        with torch.no_grad():
            z = ddim_step(noise.double(), predictor, schedule, 0)
            clean, _ = schedule.clean_and_noise(1, z, predictor(z, schedule.timestep(1)))
            best = brightness(clean).view(3, 2).argmax(0)
            rows = best * 2 + torch.arange(2)
            images = model.decode(sample(noise[rows], predictor.select(rows), schedule))
        torch.testing.assert_close(tensors["seeds"], noise[rows].float())
        assert (tensors["images"] - images * 255).abs().max() <= 1
        assert [entry["nfe"] for entry in record["samples"]] == [2 * (3 * 2 + 2)] * 2
        chosen += best.tolist()
    assert len(set(chosen)) > 1  # the test needs different winners


def brightness(latents: torch.Tensor) -> torch.Tensor:
    return latents.flatten(1).mean(1)
