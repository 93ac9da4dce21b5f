"""A training resumes only with the settings of its checkpoint, and keeps the values that earlier parts logged."""

import csv
import shutil

import numpy as np
import pytest
import torch
import wandb
from PIL import Image

from experiments.config.errors import one_line
from experiments.runtime.loggers import finish_loggers, log_config
from experiments.runtime.setup import setup
from tests.experiments.pretrain.configured import configured
from tests.wandb_files import wait_for_exit_record
from tools.inspect_wandb import records

pytestmark = pytest.mark.slow

LOGGERS = ("logger=wandb", "logger.wandb.offline=true", "trainer.log_every_n_steps=1")


def overrides(root) -> list[str]:
    return [
        "data=folder", f"data.references={root}/references", f"data.real={root}/real", "task.image_size=32",
        "trainer.precision=32-true", *LOGGERS,
    ]  # fmt: skip


def train(root, *others: str, steps: int) -> None:
    config = configured("classifier", root, *overrides(root), *others, steps=steps)
    task, trainer = setup(config)
    log_config(trainer.loggers, config)
    try:
        task.run(trainer)
    finally:
        finish_loggers(trainer.loggers)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training of two parts: three steps, and three more."""
    root = tmp_path_factory.mktemp("training")
    generator = np.random.default_rng(0)
    for kind in ("references", "real"):
        for name in ("camel", "owl"):
            folder = root / kind / name
            folder.mkdir(parents=True)
            for k in range(2):
                Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_RUN_ID", raising=False)
        patch.setenv("WANDB_MODE", "offline")
        train(root, steps=3)
        train(root, steps=6)
    return root


def logged_steps(root) -> list[int]:
    with (root / "run" / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["loss"]]


def test_metrics_contain_the_steps_of_both_parts(trained):
    steps = logged_steps(trained)
    assert len(steps) == len(set(steps)) == 6 and steps[:3] == [0, 1, 2] and min(steps[3:]) > 2


def test_last_offline_file_of_wandb_contains_the_steps_of_both_parts(trained):
    assert wandb.run is None
    first, last = sorted(trained.glob("run/wandb/offline-run-*/*.wandb"))  # the name of a folder starts with its time
    assert first.name == last.name  # the id of the W&B run
    wait_for_exit_record(last)
    steps = []
    for record in records(last):
        values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        if "loss" in values:
            steps.append(int(values["trainer/global_step"]))
    assert steps == logged_steps(trained)


def test_finished_training_keeps_its_metrics(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    train(
        tmp_path / "copy",
        "data.references=" + str(trained / "references"),
        "data.real=" + str(trained / "real"),
        steps=6,
    )
    assert logged_steps(tmp_path / "copy") == logged_steps(trained)


def error_of(root, *others: str, steps: int = 6) -> str:
    with pytest.raises(ValueError) as caught:
        setup(configured("classifier", root, *overrides(root), *others, steps=steps))
    return one_line(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.excluded=[real]", "task.excluded: must be [] as in the training of "),
        ("task.architecture=resnet18", "task.architecture: must be 'resnet10t' as in the training of "),
        ("seed=1", "seed: must be 0 as in the training of "),
    ],
)
def test_other_settings_than_those_of_the_checkpoint_raise(trained, override, message):
    error = error_of(trained, override)
    assert error.startswith(message) and "delete the file to train from the start, or choose another run_dir" in error


def test_output_and_trainer_may_change_between_parts(trained, tmp_path):
    setup(configured("classifier", trained, *overrides(trained), f"task.output={tmp_path}/model", steps=9))


def test_fewer_steps_than_those_of_the_checkpoint_raise(trained):
    assert error_of(trained, steps=4).startswith("trainer.max_steps: must be at least 6, the number of training steps")


def test_checkpoint_of_another_training_raises(trained):
    with pytest.raises(ValueError, match=r"^name: must be 'pretrain_classifier' as in the training of "):
        setup(configured("clip", trained))


def damaged(path, content: bytes) -> str:
    (path / "run" / "checkpoints").mkdir(parents=True)
    (path / "run" / "checkpoints" / "last.ckpt").write_bytes(content)
    return error_of(path)


def test_damaged_checkpoint_raises_before_networks_are_built(trained, tmp_path):
    content = (trained / "run" / "checkpoints" / "last.ckpt").read_bytes()
    for k, part in enumerate((content[: len(content) // 2], b"", b"not a checkpoint")):
        assert "last.ckpt cannot be read as a checkpoint (" in damaged(tmp_path / str(k), part)


def test_checkpoint_without_settings_raises(tmp_path):
    torch.save({"global_step": 1, "callbacks": {}}, tmp_path / "file")
    error = damaged(tmp_path / "root", (tmp_path / "file").read_bytes())
    assert "last.ckpt does not contain the settings of its training: delete the file" in error
