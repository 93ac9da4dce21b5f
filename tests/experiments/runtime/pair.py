"""Two processes that Lightning starts, which share slow units: ``python -m tests.experiments.runtime.pair FOLDER``."""

import sys
import time
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer

from experiments.cache.store import UnitStore
from experiments.config.errors import refuse
from experiments.runtime.distributed import set_process_group_timeout
from experiments.runtime.progress import Progress
from experiments.runtime.unit_queue import PeerDied, Work, carry_out
from experiments.runtime.watchdog import install_watchdogs

UNITS, SLOW = 30, 1.0


class Numbers(Work):
    def __init__(self, folder: Path) -> None:
        self.store = UnitStore(folder / "units", {})
        super().__init__(list(map(str, range(UNITS))), Progress("numbers"), folder / "claims")

    def done(self, unit: str) -> bool:
        return self.store.done(unit)

    def claim(self, unit: str) -> str:
        return self.store.claim(unit)


class Writing(LightningModule):
    """Writes a unit with the time at which it was made."""

    def __init__(self, work: Numbers, pause: float) -> None:
        super().__init__()
        self.work, self.pause = work, pause

    def predict_step(self, unit: str, _: int) -> None:
        time.sleep(self.pause)
        self.work.store.write(unit, {"x": torch.zeros(1)}, {"made": time.time()})


def run(folder: Path, pause: float, **options: object) -> None:
    flags = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    trainer, work = Trainer(accelerator="cpu", **flags, **options), Numbers(folder)
    carry_out(trainer, (Writing(work, pause), work))


if __name__ == "__main__":
    install_watchdogs()
    set_process_group_timeout()
    try:
        run(Path(sys.argv[1]), SLOW, devices=2, strategy="ddp")
    except PeerDied as error:
        refuse(str(error))
