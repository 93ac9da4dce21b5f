"""Every config composes, and its targets can be imported."""

from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from tests.commands import composed

CONFIGS = Path("configs").resolve()
GROUPS = sorted(
    path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "sweep"
)  # sweeps are files of W&B


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def targets(node) -> list[str]:
    """Return the targets of a config, at any depth."""
    return _targets(OmegaConf.to_container(node))


def _targets(node) -> list[str]:
    if isinstance(node, dict):
        return [value for key, value in node.items() if key == "_target_"] + _targets(list(node.values()))
    return [target for item in node for target in _targets(item)] if isinstance(node, list) else []


@pytest.mark.slow
@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_composes_and_its_targets_exist(experiment):
    config = composed(f"experiment={experiment}")
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert config.name == experiment
    names = targets(config)
    assert names
    for target in names:
        assert callable(get_object(target)), target


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_group_option_composes(group):
    for option in options(group):
        if group not in ("model", "data", "logger", "trainer"):
            config = OmegaConf.load(CONFIGS / group / f"{option}.yaml")
        else:
            config = composed("experiment=rare_concepts", f"{group}={option}")[group]
        for target in targets(config):
            assert callable(get_object(target)), target


def test_arm_can_be_added_on_the_command_line():
    added = composed("+arm@task.arms.mine=seedselect", "+method@task.arms.mine.inverter=renoise").task.arms.mine
    assert added.inverter._target_.endswith("ImplicitInverter") and added.select._target_.endswith("SeedSelect")


def test_default_experiment_is_rare_concepts():
    assert composed().name == "rare_concepts"
