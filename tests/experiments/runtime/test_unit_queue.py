"""Units shared by processes: each claims what is free, and waits for the rest."""

import os
import signal
import threading

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger

from experiments.cache.store import UnitStore
from experiments.runtime.leases import LeaseManager
from experiments.runtime.progress import Progress
from experiments.runtime.running_means import Running
from experiments.runtime.unit_queue import PeerDied, Stopped, Work, carry_out
from tests.experiments import tiny_configs as small


class Numbers(Work):
    def __init__(self, folder, count=6):
        self.store = UnitStore(folder / "units", {})
        running = Running(lambda unit: [{"method": "a", "x": int(unit)}], ["method"], ["x"])
        super().__init__([str(k) for k in range(count)], Progress("numbers"), folder / "claims", running)

    def done(self, unit):
        return self.store.done(unit)

    def claim(self, unit):
        return self.store.claim(unit)


class Writing(LightningModule):
    def __init__(self, work):
        super().__init__()
        self.work, self.made = work, []

    def predict_step(self, unit, _):
        self.work.store.write(unit, {"x": torch.zeros(1)}, {})
        self.made.append(unit)


def written(folder, count=6):
    work = Numbers(folder, count)
    module = Writing(work)
    carry_out(small.trainer(), (module, work))
    return module.made


def test_every_unit_is_made_once_and_none_ahead_of_its_turn(tmp_path):
    assert written(tmp_path) == [str(k) for k in range(6)]
    assert written(tmp_path) == [] and written(tmp_path, 8) == ["6", "7"]
    taken = []
    work = Numbers(tmp_path, 10)
    work.trainer = small.trainer()
    for unit in iter(work.predict_dataloader()):
        taken.append(unit)
        assert LeaseManager(work.claims).holder(work.claim("9")) is None or unit == "9"
        work.store.write(unit, {"x": torch.zeros(1)}, {})
    assert taken == ["8", "9"]


class Heard(DummyLogger):
    """A logger that keeps what it hears over several runs, as W&B does."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics["a/x"]))


class Stopping(Writing):
    """Is asked to end while it computes the fourth unit, as Slurm does before it kills."""

    def predict_step(self, unit, number):
        if unit == "3":
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("SIGTERM was only noted")
        super().predict_step(unit, number)


def test_a_run_that_is_told_to_end_does_so_at_once_and_its_values_go_on_with_the_next(tmp_path):
    before, heard = signal.getsignal(signal.SIGTERM), Heard()

    def loggers():
        return [heard, CSVLogger(tmp_path, name="", version="")]

    work = Numbers(tmp_path)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM: run the same command again, finished units are kept"):
        carry_out(small.trainer(logger=loggers()), (Stopping(work), work))
    assert signal.getsignal(signal.SIGTERM) == before
    assert [unit for unit in work.units if work.done(unit)] == ["0", "1", "2"]
    assert heard.rows == [(1, 0), (2, 0.5), (3, 1)]
    work = Numbers(tmp_path)
    module = Writing(work)
    with pytest.warns(UserWarning, match="Previous log files"):
        carry_out(small.trainer(logger=loggers()), (module, work))
    assert module.made == ["3", "4", "5"] and signal.getsignal(signal.SIGTERM) == before
    assert heard.rows == [(k + 1, k / 2) for k in range(6)]  # none twice, those on disk are counted
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert list(zip(table["step"], table["a/x"], strict=True)) == heard.rows


def test_a_unit_that_another_holds_is_waited_for(tmp_path):
    other, work = LeaseManager(tmp_path / "claims"), Numbers(tmp_path)
    assert other.take(work.claim("2"))

    def finish():
        work.store.write("2", {"x": torch.ones(1)}, {})
        other.close()

    timer = threading.Timer(1.0, finish)
    timer.start()
    assert written(tmp_path) == ["0", "1", "3", "4", "5"]
    timer.join()
    assert work.store.read("2")[0]["x"].item() == 1


def test_a_unit_whose_holder_gave_up_is_taken_over(tmp_path):
    other, work = LeaseManager(tmp_path / "claims"), Numbers(tmp_path)
    assert other.take(work.claim("2"))
    timer = threading.Timer(1.0, other.close)
    timer.start()
    assert written(tmp_path) == ["0", "1", "3", "4", "5", "2"]
    timer.join()


def test_a_failed_step_leaves_no_claim(tmp_path):
    class Failing(Writing):
        def predict_step(self, unit, index):
            raise OSError(28, "No space left on device")

    work = Numbers(tmp_path)
    with pytest.raises(OSError):
        carry_out(small.trainer(), (Failing(work), work))
    assert written(tmp_path) == [str(k) for k in range(6)]


def test_a_lost_process_is_one_sentence(tmp_path, monkeypatch):
    work, trainer = Numbers(tmp_path), small.trainer()

    def lost(*_, **__):
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3211")

    monkeypatch.setattr(trainer, "predict", lost)
    monkeypatch.setattr(type(trainer), "world_size", 2)
    monkeypatch.setattr(trainer.strategy, "cluster_environment", None, raising=False)
    with pytest.raises(PeerDied, match=r"another process of this run has ended: run the same command again"):
        carry_out_launched(trainer, work)


def carry_out_launched(trainer, work):
    trainer.strategy.cluster_environment = type("E", (), {"creates_processes_externally": True})()
    carry_out(trainer, (Writing(work), work))
