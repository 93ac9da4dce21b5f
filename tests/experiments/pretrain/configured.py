"""A training's configuration, as small as it goes."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig


def configured(what: str, folder: Path, *overrides: str, steps: int = 2) -> DictConfig:
    """Of ``experiment=pretrain_WHAT`` in the folder's ``run``."""
    options = [
        f"experiment=pretrain_{what}", f"run_dir={folder}/run", "task.batch_size=4", f"trainer.max_steps={steps}",
        "trainer.val_check_interval=2", "trainer.accelerator=cpu", "+trainer.limit_val_batches=1",
        "+trainer.num_sanity_val_steps=0", *overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(Path("configs").resolve()), version_base="1.3"):
        return compose("train", options)
