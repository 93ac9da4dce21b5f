"""Processes share units: each process acquires free units, and waits for the units of the other processes."""

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
from experiments.runtime.progress import RunProgress
from experiments.runtime.running_means import RunningMeans
from experiments.runtime.unit_queue import PeerDied, Terminated, UnitDataModule, run_stages
from tests.experiments import tiny_configs


class Numbers(UnitDataModule):
    def __init__(self, folder, count=6):
        self.store = UnitStore(folder / "units", {})
        means = RunningMeans(lambda unit: [{"method": "a", "x": int(unit)}], ["method"], ["x"])
        super().__init__([str(k) for k in range(count)], RunProgress(), folder / "leases", means)

    def done(self, unit):
        return self.store.done(unit)

    def lease_name(self, unit):
        return self.store.lease_name(unit)


class Writing(LightningModule):
    def __init__(self, work):
        super().__init__()
        self.work, self.written = work, []

    def predict_step(self, unit, _):
        self.work.store.write(unit, {"x": torch.zeros(1)}, {})
        self.written.append(unit)


def compute(folder, count=6):
    work = Numbers(folder, count)
    module = Writing(work)
    run_stages(tiny_configs.trainer(), (module, work))
    return module.written


def test_units_are_computed_once_and_acquired_one_at_a_time(tmp_path):
    assert compute(tmp_path) == [str(k) for k in range(6)]
    assert compute(tmp_path) == [] and compute(tmp_path, 8) == ["6", "7"]
    computed = []
    work = Numbers(tmp_path, 10)
    work.trainer = tiny_configs.trainer()
    work.add_to_progress()
    for unit in iter(work.predict_dataloader()):
        computed.append(unit)
        assert LeaseManager(work.leases).owner_of(work.lease_name("9")) is None or unit == "9"
        work.store.write(unit, {"x": torch.zeros(1)}, {})
    assert computed == ["8", "9"]


class RecordingLogger(DummyLogger):
    """A logger that records values over several runs, as W&B does."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics["a/x"]))


class TerminatedModule(Writing):
    """Receives a signal while it computes the fourth unit. Slurm sends SIGTERM before it kills a job."""

    def __init__(self, work, signal_number):
        super().__init__(work)
        self.signal_number = signal_number

    def predict_step(self, unit, number):
        if unit == "3":
            os.kill(os.getpid(), self.signal_number)
            pytest.fail("the signal did not stop the step")
        super().predict_step(unit, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_at_once_and_the_next_run_continues(tmp_path, number):
    before = signal.getsignal(number)
    memory = RecordingLogger()

    def loggers():
        return [memory, CSVLogger(tmp_path, name="", version="")]

    work = Numbers(tmp_path)
    with pytest.raises(
        Terminated, match=rf"stopped by {number.name}: run the same command again; finished results are kept"
    ):
        run_stages(tiny_configs.trainer(logger=loggers()), (TerminatedModule(work, number), work))
    assert signal.getsignal(number) == before
    assert [unit for unit in work.units if work.done(unit)] == ["0", "1", "2"]
    assert memory.rows == [(1, 0), (2, 0.5), (3, 1)]
    work = Numbers(tmp_path)
    module = Writing(work)
    with pytest.warns(UserWarning, match="Previous log files"):
        run_stages(tiny_configs.trainer(logger=loggers()), (module, work))
    assert module.written == ["3", "4", "5"] and signal.getsignal(number) == before
    assert memory.rows == [(k + 1, k / 2) for k in range(6)]  # none twice; units on disk are counted
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert list(zip(table["step"], table["a/x"], strict=True)) == memory.rows


def test_unit_of_another_process_is_waited_for(tmp_path):
    other, work = LeaseManager(tmp_path / "leases"), Numbers(tmp_path)
    assert other.acquire(work.lease_name("2"))

    def finish():
        work.store.write("2", {"x": torch.ones(1)}, {})
        other.close()

    timer = threading.Timer(1.0, finish)
    timer.start()
    assert compute(tmp_path) == ["0", "1", "3", "4", "5"]
    timer.join()
    assert work.store.read("2")[0]["x"].item() == 1


def test_released_unit_is_computed_by_another_process(tmp_path):
    other, work = LeaseManager(tmp_path / "leases"), Numbers(tmp_path)
    assert other.acquire(work.lease_name("2"))
    timer = threading.Timer(1.0, other.close)
    timer.start()
    assert compute(tmp_path) == ["0", "1", "3", "4", "5", "2"]
    timer.join()


def test_failed_step_releases_its_leases(tmp_path):
    class Failing(Writing):
        def predict_step(self, unit, index):
            raise OSError(28, "No space left on device")

    work = Numbers(tmp_path)
    with pytest.raises(OSError):
        run_stages(tiny_configs.trainer(), (Failing(work), work))
    assert compute(tmp_path) == [str(k) for k in range(6)]


def test_lost_connection_raises_peer_died(tmp_path, monkeypatch):
    work, trainer = Numbers(tmp_path), tiny_configs.trainer()

    def lost(*_, **__):
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3211")

    monkeypatch.setattr(trainer, "predict", lost)
    monkeypatch.setattr(type(trainer), "world_size", 2)
    monkeypatch.setattr(trainer.strategy, "cluster_environment", None, raising=False)
    with pytest.raises(PeerDied, match=r"another process of this run has died: run the same command again"):
        run_launched(trainer, work)


def run_launched(trainer, work):
    trainer.strategy.cluster_environment = type("E", (), {"creates_processes_externally": True})()
    run_stages(trainer, (Writing(work), work))
