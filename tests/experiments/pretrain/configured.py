"""A training's configuration, as small as it goes."""

from pathlib import Path

from omegaconf import DictConfig

from tests.commands import composed


def configured(what: str, folder: Path, *overrides: str, steps: int = 2) -> DictConfig:
    """Of ``experiment=pretrain_WHAT`` in the folder's ``run``."""
    options = [
        f"experiment=pretrain_{what}", f"run_dir={folder}/run", "task.batch_size=4", f"trainer.max_steps={steps}",
        "trainer.val_check_interval=2", "trainer.accelerator=cpu", "+trainer.limit_val_batches=1",
        "+trainer.num_sanity_val_steps=0", *overrides,
    ]  # fmt: skip
    return composed(*options)
