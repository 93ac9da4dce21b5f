"""The command: ``python train.py experiment=NAME``."""

from __future__ import annotations

import hydra
from hydra.utils import instantiate
from lightning.pytorch import seed_everything
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> None:
    seed_everything(config.seed, verbose=False)
    task = instantiate(config.task)
    trainer = instantiate(config.trainer, logger=list(instantiate(config.logger).values()))
    print(task.run(trainer))


if __name__ == "__main__":
    main()
