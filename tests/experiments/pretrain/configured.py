"""Configurations of small trainings for tests."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.runtime.setup import save_config, setup
from tests.commands import composed

DISTILLATION = ("task.prompts=[a camel]", "task.max_images=6", "task.accuracy_probe.samples=1")


def configured(name: str, folder: Path, *overrides: str, steps: int = 2) -> DictConfig:
    """The configuration of ``experiment=pretrain_NAME`` with the run folder ``folder/run``."""
    options = [
        f"experiment=pretrain_{name}", f"run_dir={folder}/run", "task.batch_size=4", f"trainer.max_steps={steps}",
        "trainer.val_check_interval=2", "trainer.accelerator=cpu", "+trainer.limit_val_batches=1",
        "+trainer.num_sanity_val_steps=0", *overrides,
    ]  # fmt: skip
    return composed(*options)


def prepare(name: str, corpus: Path, folder: Path, *overrides: str, steps: int = 2) -> tuple[DictConfig, Any, Any]:
    """Configuration, task and trainer of a training on ``corpus``."""
    config = configured(name, folder, f"data.folder={corpus}", *overrides, steps=steps)
    return config, *setup(config)


def pretrain(name: str, corpus: Path, folder: Path, *overrides: str, steps: int = 2) -> dict:
    """Runs a training and returns its results; the model is in ``folder/run/model``."""
    config, task, trainer = prepare(name, corpus, folder, *overrides, steps=steps)
    save_config(config)
    task.run(trainer)
    return json.loads((folder / "run" / "results.json").read_text())
