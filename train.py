"""The command: ``python train.py experiment=NAME [key=value ...]``; bare ``python train.py`` runs the main job."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.results.store import digest

LONGEST_NAME = 200  # bytes; most file systems take 255


def multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_folder(run_dir: str) -> str:
    """The runs of a sweep have a folder each in ``run_dir``, named by what the sweep changes or W&B's id of the run."""
    if multirun():
        return str(Path(run_dir) / short(HydraConfig.get().job.override_dirname))
    if "WANDB_SWEEP_ID" in os.environ:
        return str(Path(run_dir) / os.environ["WANDB_RUN_ID"])
    return run_dir


def short(name: str) -> str:
    """``name``, its end replaced by its hash where it exceeds what file systems take."""
    return name if len(name.encode()) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 4]},{digest({'name': name})[:12]}"


def prepare(config: DictConfig) -> tuple[object, Trainer]:
    """Everything that can be wrong with the input is found here, before any long work."""
    if multirun() and str(config.trainer.get("strategy", "")).startswith("ddp"):
        raise ValueError(
            "Hydra's multirun (-m) and trainer.strategy=ddp do not go together, each process would repeat the sweep: "
            "use one device, trainer.strategy=ddp_spawn, or a W&B sweep."
        )
    seed_everything(config.seed, verbose=False)
    task = instantiate(config.task)
    trainer = instantiate(config.trainer, logger=list(instantiate(config.logger or {}).values()))
    task.prepare(trainer)
    return task, trainer


def save_config(config: DictConfig) -> None:
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, run_dir / "config.yaml", resolve=True)


def explain(error: BaseException) -> str:
    """The innermost message: Hydra wraps what a constructor raises."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> float | None:
    config.run_dir = run_folder(config.run_dir)
    try:
        task, trainer = prepare(config)
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        sys.exit(f"error: {explain(error)}")
    if rank_zero_only.rank == 0:
        save_config(config)
    try:
        return task.run(trainer)
    finally:
        if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            import wandb

            wandb.finish()  # or the jobs of a multirun would become one run


if __name__ == "__main__":
    main()
