"""No two methods with different names compute the same result, for any number of network evaluations."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rnri import check_schedule
from rnri.methods import ALL_METHODS
from tests.problems import flow_schedule, function_predictor, schedule, wavy

BUDGETS = (None, 1, 2, 3, 4, 5, 8, 9, 12)
"""Numbers of network evaluations per step in configs/experiment; None: the number of the config."""

SAME_BY_DEFINITION = (
    {"ddim", "negative_prompt", "null_text"},  # without guidance, as their docstrings say
    {"accelerated", "accelerated_8"},  # accelerated_8 is accelerated with eight evaluations
    {"edit_friendly", "edit_friendly_exact"},  # if the last step ends at noise level 0, as its docstring says
)


def configured(name):
    return instantiate(OmegaConf.load(f"configs/method/{name}.yaml"))


def with_budget(inverter, nfe):
    """Return the inverter with ``nfe`` evaluations per step, or None if it rejects this number in one line."""
    if nfe is None:
        return inverter
    try:
        return inverter.with_nfe(nfe)
    except ValueError as error:
        assert "network evaluations" in str(error) and "\n" not in str(error)
        return None


def computation(inverter, steps):
    """Return everything that a method computes: seeds, reconstructions, counts and auxiliary tensors."""
    z0 = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inversion = inverter.invert(z0, function_predictor(wavy, 2), steps)
    reconstruction = inverter.reconstruct(inversion, function_predictor(wavy, 2), steps)
    counts = inversion.nfe.sum(0), inversion.backward.sum(0)
    return inversion.seed, reconstruction, *counts, *inversion.aux.values()


def same(first, second):
    return [a.shape for a in first] == [b.shape for b in second] and all(
        torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True) for a, b in zip(first, second, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("steps", [schedule(6), flow_schedule(6)], ids=["noise", "flow"])
def test_no_two_methods_are_the_same_computation(steps):
    computed = {}
    for name in sorted(ALL_METHODS):
        try:
            check_schedule(configured(name), steps)
        except ValueError:
            continue
        for nfe in BUDGETS:
            inverter = with_budget(configured(name), nfe)
            if inverter is not None:
                computed[name, nfe] = computation(inverter, steps)
    assert {name for name, _ in computed} >= {"ddim", "aidi", "aidi_a", "renoise", "newton_krylov", "accelerated_8"}
    for (first, a), (second, b) in combinations(computed.items(), 2):
        names = {first[0], second[0]}
        if len(names) == 2 and not any(names <= group for group in SAME_BY_DEFINITION):
            assert not same(a, b), (first, second)


@pytest.mark.parametrize("name", ["ddim", "accelerated_8", "accelerated_plus_one"])
@pytest.mark.parametrize("key", ["iterations", "nfe_per_step", "extra_evaluations", "solver"])
def test_config_of_a_method_with_a_fixed_number_has_no_key_for_it(name, key):
    config = OmegaConf.load(Path("configs/method") / f"{name}.yaml")
    assert key not in config
    with pytest.raises(InstantiationException, match=key):
        instantiate(config, **{key: 5})


@pytest.mark.parametrize("name", ["ddim", "accelerated_8", "accelerated_plus_one", "uni_inv", "edict", "null_text"])
def test_method_with_a_fixed_number_refuses_others(name):
    with pytest.raises(ValueError, match="fixed number of network evaluations"):
        configured(name).with_nfe(7)
