"""Measure how a run scales with the number of processes and devices: ``python -m benchmarks.scaling``.

The first part of the benchmark inverts images in 1, 2, ... processes, each on one CPU core. A unit of work is the
inversion of one image. The output contains the number of units of work per second of CPU time.

The second part simulates a run on up to 64 devices. The simulation uses the code and the files of a real run, but a
simulated clock. A unit of work takes ``--unit-seconds`` seconds of simulated time, and a file operation on the shared
file system takes ``--latency-ms`` milliseconds. With ``--run``, the durations of the units of work are read from the
folder of a finished run. The output contains the ``efficiency``, the share of the time in which the devices are busy
with units of work.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling --processes 1 2 --devices 1 8 16 32 64 --figure scaling.png
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import math
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import arguments
from benchmarks.inversion import load
from experiments.cache.atomic import atomic_write
from experiments.reporting import figures
from experiments.runtime import unit_queue
from experiments.runtime.leases import LeaseManager
from experiments.runtime.unit_queue import UnitDataModule, UnitQueue
from rnri import anderson_inverter

DEVICES_PER_MACHINE = 8
FILE_FUNCTIONS = ((os, "stat"), (os, "mkdir"), (os, "rename"), (io, "open"))
"""The functions with which processes access the shared files that distribute the work among them.

Each call of one of these functions counts as one file operation.
"""
NO_TIMEOUT_S = 1e9
"""Interval and timeout of heartbeats in a simulation, in seconds: so large that no simulated device counts as dead."""


@dataclass(frozen=True)
class ProcessResult:
    """Measured speed of several processes, each of which runs on one CPU core.

    Attributes:
        processes: number of processes.
        units_per_second: number of units of work per second of CPU time.
    """

    processes: int
    units_per_second: float


@dataclass(frozen=True)
class SimulationResult:
    """Result of one simulated run.

    Attributes:
        devices: number of devices.
        unit_seconds: mean duration of a unit of work, in seconds.
        latency_ms: duration of a file operation, in milliseconds.
        units: number of units of work.
        seconds: duration of the run, in seconds.
        efficiency: share of the time in which the devices are busy with units of work.
        operations: number of file operations per unit of work.
    """

    devices: int
    unit_seconds: float
    latency_ms: float
    units: int
    seconds: float
    efficiency: float
    operations: float


class VirtualClock:
    """A simulated clock for several threads, of which only one runs at a time.

    If a thread calls :meth:`sleep`, the waiting thread with the earliest wake-up time continues, and the clock is set
    to this time.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.operations = 0
        self._lock = threading.Lock()
        self._waiting: list[tuple[float, int, threading.Event]] = []
        self._numbers: dict[int, int] = {}

    def run(self, functions: Sequence[Callable[[], None]]) -> float:
        """Run each function in its own thread; return the simulated time at which the last function ends."""
        errors: list[BaseException] = []

        def body(function: Callable[[], None], ready: threading.Event) -> None:
            ready.wait()
            try:
                function()
            except BaseException as error:  # re-raised in the thread that called run
                errors.append(error)
            self._continue_next()

        threads = []
        for number, function in enumerate(functions):
            ready = threading.Event()
            thread = threading.Thread(target=body, args=(function, ready), daemon=True)
            thread.start()
            self._numbers[thread.ident or 0] = number
            heapq.heappush(self._waiting, (0.0, number, ready))
            threads.append(thread)
        self._continue_next()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return self.now

    def sleep(self, seconds: float) -> None:
        """Pause the calling thread for ``seconds`` of simulated time."""
        ready = threading.Event()
        heapq.heappush(self._waiting, (self.now + seconds, self._numbers[threading.get_ident()], ready))
        self._continue_next()
        ready.wait()

    def is_simulated(self) -> bool:
        """Return whether the calling thread was started by :meth:`run`."""
        return threading.get_ident() in self._numbers

    def _continue_next(self) -> None:
        if self._waiting:
            self.now, _, ready = heapq.heappop(self._waiting)
            ready.set()


@contextmanager
def with_latency(clock: VirtualClock, latency: float) -> Iterator[None]:
    """Context manager in which a file operation of a simulated device takes ``latency`` seconds of simulated time."""

    def slow(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if clock.is_simulated() and not str(path).startswith("/proc"):
                clock.operations += 1
                clock.sleep(latency)
            return function(path, *args, **kwargs)

        return call

    patches = [patch.object(module, name, slow(getattr(module, name))) for module, name in FILE_FUNCTIONS]
    patches.append(patch.object(unit_queue, "time", SimpleNamespace(sleep=clock.sleep)))
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


class FileUnits(UnitDataModule):
    """Data module of units of work whose results are empty files in ``folder``.

    Args:
        names: names of the units of work.
        folder: folder of the results.
        rank: index of this process or device.
        processes: number of processes or devices.
    """

    def __init__(self, names: Sequence[str], folder: Path, rank: int, processes: int) -> None:
        progress: Any = SimpleNamespace(begin=lambda _: None, finish=lambda *_: None, set_stage=lambda _: None)
        super().__init__(names, progress)
        self.trainer: Any = SimpleNamespace(is_global_zero=False, loggers=[], global_rank=rank, world_size=processes)
        self.folder = folder

    def done(self, unit: str) -> bool:
        return (self.folder / unit).exists()

    def lease_name(self, unit: str) -> str:
        return f"lease {unit}"


def claim(data: FileUnits, leases: Path, machine: str | None, compute: Callable[[str], object]) -> int:
    """Compute units of work until all are finished; return the number that this process or device computed.

    Args:
        data: the units of work.
        leases: folder of the leases (exclusive rights to compute a unit of work).
        machine: name of a simulated machine; None for this machine.
        compute: function that computes a unit of work.
    """
    manager = LeaseManager(leases, NO_TIMEOUT_S if machine else 3.0, NO_TIMEOUT_S if machine else 45.0)
    if machine is not None:
        manager.me = replace(manager.me, host=machine, pid_namespace=machine)
    count = 0
    try:
        for unit in UnitQueue(data, manager, set(range(len(data.units)))):
            compute(unit)
            (data.folder / unit).write_text("")
            count += 1
    finally:
        manager._stop.set()
    return count


def simulate(devices: int, unit_seconds: Sequence[float], latency_ms: float) -> SimulationResult:
    """Simulate a run on several devices.

    Args:
        devices: number of devices; each simulated machine has eight devices.
        unit_seconds: duration of each unit of work, in seconds.
        latency_ms: duration of a file operation, in milliseconds.
    """
    clock = VirtualClock()
    with tempfile.TemporaryDirectory() as folder:
        units = Path(folder) / "units"
        units.mkdir()
        names = [str(k) for k in range(len(unit_seconds))]

        def device(number: int) -> None:
            machine = f"machine {number // DEVICES_PER_MACHINE}"
            claim(FileUnits(names, units, number, devices), Path(folder) / "leases", machine,
                  lambda unit: clock.sleep(unit_seconds[int(unit)]))  # fmt: skip

        with with_latency(clock, latency_ms / 1000):
            seconds = clock.run([lambda number=number: device(number) for number in range(devices)])
        missing = [name for name in names if not (units / name).exists()]
        if missing:
            raise RuntimeError(f"the simulated run ended, but {len(missing)} of {len(names)} units were not computed.")
    total = sum(unit_seconds)
    return SimulationResult(devices, total / len(names), latency_ms, len(names), seconds,
                            total / devices / seconds, clock.operations / len(names))  # fmt: skip


def measure_processes(processes: int, units: int, steps: int) -> ProcessResult:
    """Measure how many inversions several processes compute per second, each on one CPU core.

    Args:
        processes: number of processes.
        units: number of inversions per process.
        steps: number of inversion steps.
    """
    model = load("emoji", "cpu", "float32")
    predictor = model.predictor(["a drawing of a camel"])
    schedule = model.schedule(steps)
    z0 = model.noise([0], seed=0)
    invert = partial(anderson_inverter(2).invert, z0, predictor, schedule)
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def work(rank: int, folder: Path, names: list[str]) -> None:
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
        torch.set_num_threads(1)
        invert()  # warm-up
        start = time.process_time()
        count = claim(FileUnits(names, folder, rank, processes), folder.parent / "leases", None, lambda _: invert())
        results.put((count, time.process_time() - start))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "units"
        folder.mkdir()
        names = [str(k) for k in range(units * processes)]
        workers = [context.Process(target=work, args=(rank, folder, names)) for rank in range(processes)]
        for worker in workers:
            worker.start()
        counts = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
    return ProcessResult(processes, sum(count for count, _ in counts) / sum(seconds for _, seconds in counts))


def measured_unit_seconds(run: Path) -> list[float]:
    """Return the durations in seconds of the units of work of a finished run.

    A duration is the time between two consecutive files of results. The first unit of work is therefore omitted.

    Raises:
        ValueError: the folder has fewer than three files of results.
    """
    times = sorted(path.stat().st_mtime for path in run.glob("units/**/*") if path.is_file())
    if len(times) < 3:
        raise ValueError(f"--run: must be the folder of a run with at least three files of results, got {str(run)!r}.")
    return [later - earlier for earlier, later in pairwise(times)]


def draw(results: Sequence[SimulationResult], path: Path) -> None:
    """Draw the efficiency over the number of devices, and write the figure to ``path``.

    There is one line for each combination of duration of a unit of work and duration of a file operation.
    """
    figure, axes = figures.plt.subplots(figsize=(6.4, 3.6))
    latencies = list(dict.fromkeys(r.latency_ms for r in results))
    for unit_seconds, latency in dict.fromkeys((r.unit_seconds, r.latency_ms) for r in results):
        line = [r for r in results if (r.unit_seconds, r.latency_ms) == (unit_seconds, latency)]
        label = f"{unit_seconds:.3g} s per unit, {latency:g} ms per file operation"
        style = ("-", "--", ":")[latencies.index(latency) % 3]  # lines with equal unit_seconds / latency coincide
        axes.plot([r.devices for r in line], [100 * r.efficiency for r in line], style, marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks([r for r in dict.fromkeys(r.devices for r in results)])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 105)
    axes.set_xlabel("devices")
    axes.set_ylabel("efficiency, %")
    axes.legend(fontsize="small")
    figure.savefig(path, bbox_inches="tight", dpi=150)


def positive(text: str) -> float:
    """Convert ``text`` to a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}.")
    return value


@dataclass
class Results:
    """The results of the two parts of the benchmark."""

    processes: list[ProcessResult] = field(default_factory=list)
    simulations: list[SimulationResult] = field(default_factory=list)


def main() -> None:
    parser = arguments.Arguments(__doc__)
    parser.add_argument("--processes", nargs="*", type=arguments.integer(), default=(1, 2))
    parser.add_argument(
        "--units", type=arguments.integer(), default=8, help="number of units of work per process and device"
    )
    parser.add_argument("--steps", type=arguments.steps, default=10, help="number of steps of an inversion")
    parser.add_argument("--devices", nargs="*", type=arguments.integer(), default=(1, 8, 16, 32, 64))
    parser.add_argument("--unit-seconds", nargs="+", type=positive, default=(1.0, 10.0))
    parser.add_argument("--latency-ms", nargs="+", type=positive, default=(1.0, 10.0))
    parser.add_argument("--run", type=Path, help="folder of a finished run from which durations of units are read")
    parser.add_argument("--json", type=arguments.output_file, help="file to write the results to")
    parser.add_argument("--figure", type=arguments.output_file, help="file to draw the efficiency to")
    options = parser.parse_args()
    results = Results()
    times = [[seconds] for seconds in options.unit_seconds]
    if options.run is not None:
        times = [measured_unit_seconds(options.run)]
    if options.processes:
        print("| processes | units / CPU second and core |\n|---|---|")
    for processes in options.processes:
        result = measure_processes(processes, options.units, options.steps)
        results.processes.append(result)
        print(f"| {processes} | {result.units_per_second:.3f} |", flush=True)
    if options.devices:
        print("\n| devices | s / unit | ms / file operation | efficiency | file operations / unit |")
        print("|---|---|---|---|---|")
    for unit_seconds in times:
        for latency in options.latency_ms:
            for devices in options.devices:
                count = options.units * max(options.devices)
                cycle = [unit_seconds[k % len(unit_seconds)] for k in range(count)]
                one = simulate(devices, cycle, latency)
                results.simulations.append(one)
                print(f"| {devices} | {one.unit_seconds:.3g} | {latency:g} | {100 * one.efficiency:.1f} % "
                      f"| {one.operations:.0f} |", flush=True)  # fmt: skip
    if options.json:
        text = json.dumps(asdict(results), indent=1)
        atomic_write(options.json, lambda path: path.write_text(f"{text}\n"))
    if options.figure:
        draw(results.simulations, options.figure)


if __name__ == "__main__":
    arguments.run(main)
