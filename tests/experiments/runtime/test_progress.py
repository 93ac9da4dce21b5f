"""The progress of a run in a log file and on a terminal, and the estimated duration before a run."""

import io
import re

import pytest

from experiments.runtime import progress
from experiments.runtime.progress import Progress, RunProgress, format_duration, print_estimate, timed


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def log(monkeypatch) -> io.StringIO:
    stream = io.StringIO()  # not a terminal
    monkeypatch.setattr("sys.stderr", stream)
    return stream


def test_log_has_one_line_per_unit(monkeypatch, clock):
    stream = log(monkeypatch)
    bar = Progress("seedselect")
    bar.start(5, 2, visible=True)
    for k in range(3):
        bar.set_stage("inverting")
        clock.now += 60
        bar.set_stage(f"sampling {k}")
        bar.finish(1)
    bar.close()
    text = stream.getvalue()
    lines = text.splitlines()
    assert "\r" not in text and text.endswith("\n")
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d seedselect: ", line) for line in lines)
    finished = [line for line in lines if re.search(r"[345]/5 concepts", line)]
    assert "3/5 concepts, sampling 0, about 2 min left" in finished[0]
    assert finished[-1].endswith("5/5 concepts, sampling 2")


def test_long_unit_logs_its_stages(monkeypatch, clock):
    stream = log(monkeypatch)
    bar = Progress("plain", "batch")
    bar.start(1, 0, visible=True)
    bar.set_stage("inverting, step 1")
    assert stream.getvalue() == ""
    clock.now += 61
    bar.set_stage("inverting, step 2")
    bar.set_stage("inverting, step 3")
    assert stream.getvalue().count("\n") == 1
    assert "0/1 batches, inverting, step 2" in stream.getvalue()


def test_min_interval_limits_the_lines(monkeypatch, clock):
    stream = log(monkeypatch)
    bar = Progress("classifying", min_interval=10)
    bar.start(100, 0, visible=True)
    for _ in range(100):
        clock.now += 1
        bar.finish(1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10 and "100/100" in lines[-1]


def test_short_task_prints_no_line(monkeypatch, clock):
    stream = log(monkeypatch)
    bar = Progress("classifying", min_interval=10)
    bar.start(5, 0, visible=True)
    for _ in range(5):
        clock.now += 1
        bar.finish(1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_invisible_progress_prints_nothing(monkeypatch, terminal):
    stream = log(monkeypatch)
    stream.isatty = lambda: terminal
    bar = Progress("plain")
    bar.set_stage("before the start")
    bar.start(2, 0, visible=False)
    bar.set_stage("sampling")
    bar.finish(2)
    bar.close()
    assert stream.getvalue() == ""


def test_terminal_shows_a_bar(monkeypatch):
    stream = log(monkeypatch)
    stream.isatty = lambda: True
    bar = Progress("plain")
    bar.start(2, 1, visible=True)
    bar.finish(1)
    bar.close()
    assert "2/2" in stream.getvalue() and "\r" in stream.getvalue()


def run_of_two_arms() -> RunProgress:
    """Return the progress of a run with cheap and expensive units, of which one cheap unit is on disk."""
    bar = RunProgress()
    for k in range(4):
        bar.add("plain", "concept", 10, done=k == 0)
    for _ in range(2):
        bar.add("seedselect", "concept", 180, done=False)
    return bar


def test_run_without_network_evaluations_counts_units(monkeypatch, clock):
    stream = log(monkeypatch)
    bar = RunProgress()
    for done in (True, False, False, False):
        bar.add("vae bound", "batch", 0, done=done)
    bar.start(visible=True)
    bar.begin("vae bound")
    clock.now += 30
    bar.finish("vae bound", [0.0])
    assert " 50 % of 4 units, vae bound 2/4 batches\n" in stream.getvalue()


def test_run_has_one_line_per_batch_with_one_remaining_time(monkeypatch, clock):
    stream = log(monkeypatch)
    bar = run_of_two_arms()
    bar.start(visible=True)
    bar.begin("plain")
    bar.set_stage("sampling")
    clock.now += 30
    bar.finish("plain", [10, 10, 10])
    bar.begin("seedselect")
    clock.now += 180
    bar.finish("seedselect", [180])
    bar.finish("seedselect", [180])
    bar.close()
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \d+ % of 6 units, ", line) for line in lines)
    assert [line[20:] for line in lines] == [
        "10 % of 6 units, plain 4/4 concepts, about 6 min left",
        "55 % of 6 units, seedselect 1/2 concepts, about 3 min left",
        "100 % of 6 units, seedselect 2/2 concepts",
    ]


@pytest.mark.parametrize(("seconds", "is_shown"), [(1, False), (61, True)])
def test_no_remaining_time_shortly_after_one_cheap_unit(monkeypatch, clock, seconds, is_shown):
    stream = log(monkeypatch)
    bar = RunProgress()
    bar.add("vae", "batch", 1, done=False)
    bar.add("aidi", "batch", 99, done=False)
    bar.start(visible=True)
    bar.begin("vae")
    clock.now += seconds
    bar.finish("vae", [1])
    assert (" left" in stream.getvalue()) == is_shown


def test_long_batch_of_a_run_logs_its_step_once_a_minute(monkeypatch, clock):
    stream = log(monkeypatch)
    bar = run_of_two_arms()
    bar.start(visible=True)
    bar.start(visible=True)  # of the second stage, which does not start the clock again
    bar.begin("seedselect")
    clock.now += 61
    bar.set_stage("optimizing, iteration 1")
    bar.set_stage("optimizing, iteration 2")
    (line,) = stream.getvalue().splitlines()
    assert line[20:] == "2 % of 6 units, seedselect 0/2 concepts, optimizing, iteration 1"


def test_run_on_a_terminal_is_a_bar(monkeypatch):
    stream = log(monkeypatch)
    stream.isatty = lambda: True
    bar = run_of_two_arms()
    bar.start(visible=True)
    bar.begin("plain")
    bar.set_stage("sampling")
    bar.finish("plain", [10, 10, 10])
    bar.close()
    assert "of 6 units, plain 4/4 concepts" in stream.getvalue() and "\r" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "about 1 s"), (59.4, "about 59 s"), (59.6, "about 1 min"), (3599, "about 1 h"), (3660, "about 1 h 1 min"),
     (36000, "about 10 h")],
)  # fmt: skip
def test_durations_are_rounded_to_readable_units(seconds, words):
    assert format_duration(seconds) == words


def test_timing_excludes_the_first_call(clock):
    times = iter([100.0, 3.0, 2.0, 4.0])

    def call():
        clock.now += next(times)

    assert timed(call) == 2.0


def test_estimate_is_printed(capsys):
    print_estimate(24, 36_000, 1800, unit="concept", done=4)
    print_estimate(24, 0, 0.05, done=24)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("To compute: 24 concepts, 4 of them on disk; 36,000 network evaluations, about 30 min")
    assert second == "Nothing to compute: all 24 units are on disk."
