"""Progress as a log file holds it, as a terminal shows it, and what is said beforehand."""

import io
import re

import pytest

from experiments.runtime import progress
from experiments.runtime.progress import Progress, announce, said, timed


class Clock:
    """Stands still until it is told to go on."""

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
    stream = io.StringIO()  # is no terminal
    monkeypatch.setattr("sys.stderr", stream)
    return stream


def test_a_log_has_a_plain_line_a_unit(monkeypatch, clock):
    stream = log(monkeypatch)
    bar = Progress("seedselect")
    bar.start(5, 2, visible=True)
    for k in range(3):
        bar.stage("inverting")
        clock.now += 60
        bar.stage(f"sampling {k}")
        bar.finish(1)
    bar.close()
    text = stream.getvalue()
    lines = text.splitlines()
    assert "\r" not in text and text.endswith("\n")
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d seedselect: ", line) for line in lines)
    finished = [line for line in lines if re.search(r"[345]/5 concepts", line)]
    assert "3/5 concepts, sampling 0, about 2 min left" in finished[0]
    assert finished[-1].endswith("5/5 concepts, sampling 2")


def test_a_long_unit_tells_of_its_stages(monkeypatch, clock):
    stream = log(monkeypatch)
    bar = Progress("plain", "batch")
    bar.start(1, 0, visible=True)
    bar.stage("inverting, step 1")
    assert stream.getvalue() == ""
    clock.now += 61
    bar.stage("inverting, step 2")
    bar.stage("inverting, step 3")
    assert stream.getvalue().count("\n") == 1
    assert "0/1 batches, inverting, step 2" in stream.getvalue()


def test_lines_of_short_units_can_be_kept_apart(monkeypatch, clock):
    stream = log(monkeypatch)
    bar = Progress("judging", every=10)
    bar.start(100, 0, visible=True)
    for _ in range(100):
        clock.now += 1
        bar.finish(1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11 and "100/100" in lines[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_process_that_is_not_to_be_seen_is_silent(monkeypatch, terminal):
    stream = log(monkeypatch)
    stream.isatty = lambda: terminal
    bar = Progress("plain")
    bar.stage("before the start")
    bar.start(2, 0, visible=False)
    bar.stage("sampling")
    bar.finish(2)
    bar.close()
    assert stream.getvalue() == ""


def test_a_terminal_has_a_bar(monkeypatch):
    stream = log(monkeypatch)
    stream.isatty = lambda: True
    bar = Progress("plain")
    bar.start(2, 1, visible=True)
    bar.finish(1)
    bar.close()
    assert "2/2" in stream.getvalue() and "\r" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "about 1 s"), (59.4, "about 59 s"), (59.6, "about 1 min"), (3599, "about 1 h"), (3660, "about 1 h 1 min"),
     (36000, "about 10 h")],
)  # fmt: skip
def test_times_are_said_as_people_say_them(seconds, words):
    assert said(seconds) == words


def test_a_call_is_timed_without_its_first_time(clock):
    times = iter([100.0, 3.0, 2.0, 4.0])

    def call():
        clock.now += next(times)

    assert timed(call) == 2.0


def test_a_run_is_announced(capsys):
    announce(24, 36_000, 1800, unit="concept", done=4)
    announce(24, 0, 0.05, done=24)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("To compute: 24 concepts, 4 of them on disk; 36,000 network evaluations, about 30 min")
    assert second == "Nothing to compute: all 24 units are on disk."
