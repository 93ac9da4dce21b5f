"""Every config composes, and what it names exists."""

from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from tests.commands import composed

CONFIGS = Path("configs").resolve()
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "sweep")  # those are W&B's


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def targets(node) -> list[str]:
    """Every class and function that a config names."""
    return _targets(OmegaConf.to_container(node))


def _targets(node) -> list[str]:
    if isinstance(node, dict):
        return [value for key, value in node.items() if key == "_target_"] + _targets(list(node.values()))
    return [target for item in node for target in _targets(item)] if isinstance(node, list) else []


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_composes_and_its_targets_exist(experiment):
    config = composed(f"experiment={experiment}")
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert config.name == experiment
    named = targets(config)
    assert named
    for target in named:
        assert callable(get_object(target)), target


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_a_group_composes(group):
    for option in options(group):
        if group not in ("model", "data", "logger", "trainer"):
            config = OmegaConf.load(CONFIGS / group / f"{option}.yaml")
        else:
            config = composed("experiment=rare_concepts", f"{group}={option}")[group]
        for target in targets(config):
            assert callable(get_object(target)), target


def test_an_arm_is_added_on_the_command_line():
    added = composed("+arm@task.arms.mine=seedselect", "+method@task.arms.mine.inverter=renoise").task.arms.mine
    assert added.inverter._target_.endswith("ImplicitInverter") and added.select._target_.endswith("SeedSelect")


def test_the_main_job_is_the_default():
    assert composed().name == "rare_concepts"
