"""Functions that compute the initial seeds of an arm from the references' seeds."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from experiments.rare_concepts.arm import Arm, around_centroid, between_references
from nao import centroid_seeds, slerp
from rnri import FixedPoint, ImplicitInverter
from rnri.validation import ConfigError
from seedselect import BestOf, SeedSelect


def inverted(references: int = 3) -> torch.Tensor:
    return torch.randn(2, references, 4, 32, 32, generator=torch.Generator().manual_seed(1234))


def test_seeds_between_references_without_noise_are_the_middles_of_all_pairs():
    seeds = inverted()
    middles = between_references(seeds, 3, spread=0.0)
    for k, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        for group in range(2):
            expected = slerp(seeds[group, i], seeds[group, j], 3)[1]
            torch.testing.assert_close(middles[group, k], expected)


def test_seeds_between_references_have_fresh_noise_with_weight_spread():
    seeds = inverted()
    middles = between_references(seeds, 3, spread=0.0)
    noisy = between_references(seeds, 5, spread=0.6)
    for k in range(5):
        middle = middles[:, k % 3]
        cosines = cosine_similarity(noisy[:, k].flatten(1), middle.flatten(1))
        torch.testing.assert_close(cosines, torch.full((2,), 0.8), atol=0.05, rtol=0)
        torch.testing.assert_close(noisy[:, k].flatten(1).norm(dim=1), middle.flatten(1).norm(dim=1))
    assert not torch.allclose(noisy[:, 0], noisy[:, 3])  # the same pair with other noise


@pytest.mark.parametrize(("references", "pairs"), [(1, 1), (3, 3)])
def test_without_noise_there_is_one_seed_per_pair(references, pairs):
    message = (
        rf"spread=0 gives one seed per pair of references \({pairs} for task.references={references}\), but the arm"
    )
    with pytest.raises(ValueError, match=message):
        between_references(inverted(references), pairs + 1, spread=0.0)


def test_middle_of_one_reference_is_its_seed():
    seeds = inverted(1)
    torch.testing.assert_close(between_references(seeds, 1, spread=0.0), seeds)


def test_copies_of_the_centroid_may_omit_the_centroid():
    seeds = inverted()
    around = around_centroid(seeds, 3, spread=0.3, include_centroid=False)
    center = centroid_seeds(seeds, 1)[:, 0]
    assert not any(torch.allclose(around[:, k], center) for k in range(3))
    torch.testing.assert_close(around[:, 1:], around_centroid(seeds, 3, spread=0.3)[:, 1:])


def test_sampling_guidance_changes_the_cost_of_sampling_and_not_of_the_inversion():
    inverter = ImplicitInverter(FixedPoint(2))
    usual = Arm(1.0, inverter, around_centroid, SeedSelect(2))
    guided = Arm(1.0, inverter, around_centroid, SeedSelect(2), sampling_guidance=3.0)
    assert (usual.guidance_of_sampling, guided.guidance_of_sampling) == (1.0, 3.0)
    once = torch.tensor(1)
    assert guided.nfe(10, once, once) == 2 * usual.nfe(10, once, once)
    inversion = usual.cost(10, 4, 3).forward - usual.sampling_cost(10, 4).forward
    assert guided.cost(10, 4, 3).forward - guided.sampling_cost(10, 4).forward == inversion


def test_sdedit_executes_the_last_steps_only():
    sdedit = Arm(1.0, strength=0.8)
    full = Arm(1.0)
    assert (sdedit.sampled_steps(10), full.sampled_steps(10)) == (8, 10)
    once = torch.tensor(1)
    assert sdedit.nfe(10, once, torch.tensor(0)) == full.nfe(8, once, torch.tensor(0)) == 8
    assert sdedit.cost(10, 4, 3).forward == 4 * 8
    assert Arm(1.0, select=BestOf(SeedSelect(1), 3), strength=0.8).nfe(10, torch.tensor(3), torch.tensor(0)) == 24


def test_sdedit_needs_no_inverter():
    with pytest.raises(ConfigError, match="strength: must be null with an inverter"):
        Arm(1.0, ImplicitInverter(FixedPoint(2)), around_centroid, strength=0.8)
