"""The simulation of many devices computes every unit once, on a virtual clock."""

import os
import sys

import pytest

from benchmarks import scaling
from benchmarks.scaling import SimulationResult, VirtualClock, draw, measured_unit_seconds, simulate
from experiments.runtime.unit_queue import POLL_INTERVAL_S


def test_virtual_clock_orders_threads():
    clock = VirtualClock()
    events = []

    def thread(name, pauses):
        for pause in pauses:
            clock.sleep(pause)
            events.append((clock.now, name))

    assert clock.run([lambda: thread("a", [1, 3]), lambda: thread("b", [2, 3])]) == 5
    assert events == [(1, "a"), (2, "b"), (4, "a"), (5, "b")]


def test_error_in_a_thread_is_raised():
    def fail():
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        VirtualClock().run([fail])


def test_one_device_needs_the_time_of_its_units():
    result = simulate(1, [1.0] * 4, 1e-3)
    assert result.seconds == pytest.approx(4, rel=1e-3) and result.efficiency == pytest.approx(1, rel=1e-3)


def test_two_devices_share_the_units_and_latency_reduces_the_efficiency():
    fast = simulate(2, [1.0] * 4, 1e-6)
    slow = simulate(2, [1.0] * 4, 50)
    assert 2 <= fast.seconds < 2 + 2 * POLL_INTERVAL_S  # a device may wait for the last unit of the other device
    assert slow.efficiency < 0.7 < fast.efficiency and slow.operations > 2


def test_unit_times_of_a_run(tmp_path):
    (tmp_path / "units").mkdir()
    for k, seconds in enumerate((10, 12, 15)):
        path = tmp_path / "units" / str(k)
        path.write_text("")
        os.utime(path, (seconds, seconds))
    assert measured_unit_seconds(tmp_path) == [2, 3]
    with pytest.raises(ValueError, match="--run: must be the folder of a run with at least three files of results"):
        measured_unit_seconds(tmp_path / "units")


def test_command_draws_a_figure(monkeypatch, capsys, tmp_path):
    path = tmp_path / "scaling.png"
    options = ["--processes", "--devices", "1", "2", "--units", "1", "--unit-seconds", "1", "--latency-ms", "1"]
    monkeypatch.setattr(sys, "argv", ["scaling", *options, "--figure", str(path)])
    scaling.main()
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert rows == [[" 1 ", " 1 "], [" 2 ", " 1 "]] and path.stat().st_size > 1000


def test_figure_has_one_line_per_latency(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(scaling.figures.plt.Axes, "plot", lambda *args, **kwargs: drawn.append(kwargs["label"]))
    results = [SimulationResult(1, 1.0, latency, 4, 4.0, 1.0, 8) for latency in (1, 10)]
    monkeypatch.setattr(scaling.figures.plt.Axes, "legend", lambda *args, **kwargs: None)
    draw(results, tmp_path / "figure.png")
    assert drawn == ["1 s per unit, 1 ms per file operation", "1 s per unit, 10 ms per file operation"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned")
def test_pinned_processes_compute_all_units():
    assert scaling.measure_processes(2, 1, 2).units_per_second > 0
