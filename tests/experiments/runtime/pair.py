"""Two ranks that Lightning starts and that share slow units: ``python -m tests.experiments.runtime.pair FOLDER``."""

import sys
import time
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer

from experiments.cache.store import UnitStore
from experiments.config.errors import exit_with_error
from experiments.runtime.distributed import set_process_group_timeout
from experiments.runtime.progress import RunProgress
from experiments.runtime.unit_queue import PeerDied, UnitDataModule, run_stages
from experiments.runtime.watchdog import install_watchdogs

UNITS = 30
SECONDS_PER_UNIT = 1.0


class Numbers(UnitDataModule):
    def __init__(self, folder: Path) -> None:
        self.store = UnitStore(folder / "units", {})
        super().__init__(list(map(str, range(UNITS))), RunProgress(), folder / "leases")

    def done(self, unit: str) -> bool:
        return self.store.done(unit)

    def lease_name(self, unit: str) -> str:
        return self.store.lease_name(unit)


class Writing(LightningModule):
    """Writes each unit with the time when it was computed."""

    def __init__(self, work: Numbers, pause: float) -> None:
        super().__init__()
        self.work = work
        self.pause = pause

    def predict_step(self, unit: str, _: int) -> None:
        time.sleep(self.pause)
        self.work.store.write(unit, {"x": torch.zeros(1)}, {"time": time.time()})


def run(folder: Path, pause: float, **options: object) -> None:
    flags = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", **flags, **options)
    work = Numbers(folder)
    run_stages(trainer, (Writing(work, pause), work))


if __name__ == "__main__":
    install_watchdogs()
    set_process_group_timeout()
    try:
        run(Path(sys.argv[1]), SECONDS_PER_UNIT, devices=2, strategy="ddp")
    except PeerDied as error:
        exit_with_error(str(error))
