"""A value of the command line that the experiment does not read is an error."""

import pytest
from hydra import compose, initialize_config_dir

from experiments.config.project import PROJECT
from experiments.config.unused_keys import unused_key_errors

GROUPS = ["experiment", "model", "data", "logger"]


def errors(*overrides: str) -> list[str]:
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    return unused_key_errors(config, overrides, GROUPS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["experiment=reconstruction", "data.concepts=[foo]"],
            "data.concepts: the experiment reconstruction does not read this key; set task.concepts instead.",
        ),
        (
            ["experiment=reconstruction", "metrics.sscd=sscd.pt"],
            "metrics.sscd: the experiment reconstruction does not read this key; remove metrics.sscd.",
        ),
        (["+methds=[aidi]"], "methds: the experiment rare_concepts does not read this key; nearest: methods"),
    ],
)
def test_unused_key_is_an_error(overrides, message):
    (error,) = errors(*overrides)
    assert error.startswith(message)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.concepts=[camel]", "metrics.sscd=sscd.pt", "steps=4", "run_dir=x", "plan=true", "seed=1"],
        ["data.folder=x"],  # through data.source.folder
        ["data.source.head=500", "++data.source.background=red"],
        ["experiment=reconstruction", "+task.methods.ddim.solver.iterations=1", "task.settings.0.images=2"],
        ["experiment=reconstruction", "+method@task.methods.extra=aidi", "~task.methods.ddim", "task.clip=null"],
        ["model=emoji_lcm", "model.dtype=bfloat16", "logger=wandb", "logger.wandb.offline=true", "hydra.verbose=true"],
        ["select.iterations=3", "select.optimizer.lr=0.1"],
    ],
    ids=str,
)
def test_keys_that_the_experiment_reads(overrides):
    assert errors(*overrides) == []
