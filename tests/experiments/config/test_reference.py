"""The config reference of the documentation describes every key of ``configs/``."""

from pathlib import Path

import pytest

from experiments.config.help import CONFIGS
from experiments.config.reference import GROUPS, config_reference, described_keys, escape

FILES = [
    CONFIGS / "train.yaml",
    CONFIGS / "app.yaml",
    *(path for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_key_has_a_description(path):
    assert [key for key, _, text in described_keys(path) if len(text) < 5] == []


def test_reference_lists_every_group_and_its_keys():
    text = config_reference()
    groups = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()}
    assert groups == {*GROUPS, "experiment", "sweep"}
    assert "| `data.counts` | `???` | number of training captions per class" in text
    assert "| `solver.prior_weight` | `0.1` |" in text


def test_reference_has_the_keys_of_other_configs(tmp_path):
    Path(tmp_path / "a.yaml").write_text("defaults: [b]\nx: 1  # an x\ny: {z: null}\n")
    assert list(described_keys(tmp_path / "a.yaml")) == [("x", "1", "an x"), ("y.z", "null", "")]


def test_characters_of_markdown_are_escaped():
    assert escape("train/* or `a*b` [x|y]") == "train/\\* or `a*b` \\[x\\|y\\]"
