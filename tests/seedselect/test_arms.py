"""Every optimizer, learning-rate schedule and seed initialization in configs/ gives an arm with its own cache key."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from experiments.cache.key import fingerprint_config
from experiments.rare_concepts.arm import Arm, inverted_seeds
from seedselect import BestOf, SeedSelect
from tests.commands import composed

CONFIGS = Path("configs").resolve()
OPTIONS = [
    (group, path.stem, package)
    for group, package in (("optimizer", "@select.optimizer"), ("lr_schedule", "@select.schedule"), ("seed_init", ""))
    for path in sorted((CONFIGS / group).glob("*.yaml"))
]


@cache
def arms(*overrides: str) -> dict[str, Arm]:
    return instantiate(composed(*overrides).task.arms, _convert_="all")


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option", "package"), OPTIONS)
def test_option_gives_an_arm_with_a_unique_cache_key(group, option, package):
    arm = arms(f"{group}{package}={option}")["seedselect_rnri"]
    assert isinstance(arm.select, SeedSelect)
    others = [arms(f"{group}{package}={name}")["seedselect_rnri"] for key, name, _ in OPTIONS if key == group]
    assert [fingerprint_config(other) for other in others].count(fingerprint_config(arm)) == 1


def test_table3_has_all_arms_and_their_cache_keys_differ():
    table3 = arms("experiment=table3")
    assert set(table3) == {
        "plain", "seedselect_random", "seedselect_ddim", "seedselect_aidi", "seedselect_rnri", "seedselect_ours",
        "between_ours",
    }  # fmt: skip
    assert table3["seedselect_random"].inverter is None
    descriptions = [fingerprint_config(arm) for arm in table3.values()]
    assert all(a != b for k, a in enumerate(descriptions) for b in descriptions[:k])


def test_command_line_overrides_reach_the_arms():
    configured = arms("gradient_steps=3", "select.optimizer.lr=0.5", "select.patience=4")
    configured.pop("between_ours")  # its loss has other rewards and settings of its own
    for arm in configured.values():
        assert arm.gradient_steps == (3 if isinstance(arm.select, SeedSelect) else None)
        select = arm.select.loss if isinstance(arm.select, BestOf) else arm.select
        assert not select or (select.patience, select.optimizer.keywords["lr"]) == (4, 0.5)


def test_inverted_seeds_are_the_seeds_of_the_first_references():
    seeds = torch.randn(2, 3, 1, 2, 2)
    assert torch.equal(inverted_seeds(seeds, 2), seeds[:, :2])
    with pytest.raises(ValueError, match="4 initial seeds need 4 reference images, but there are only 3"):
        inverted_seeds(seeds, 4)


@pytest.mark.parametrize(("field", "value"), [("guidance", 0.5), ("gradient_steps", 0)])
def test_invalid_arms_are_rejected(field, value):
    with pytest.raises(ValueError, match=f"{field}: .*{value}"):
        Arm(**{"guidance": 1.0, field: value})
