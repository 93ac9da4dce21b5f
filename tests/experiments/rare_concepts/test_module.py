"""Images of an SDEdit arm, which starts from reference images with added noise."""

import pytest
import torch

from experiments.rare_concepts.arm import Arm
from rnri.models.sampling import sample, steps_for_strength
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
