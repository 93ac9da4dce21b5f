"""Progress of a run: a progress bar on a terminal, a line per unit in a log file, and an estimate of the duration."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

LOG_INTERVAL_S = 60.0  # minimum interval between two log lines about the same unit


class Progress:
    """Counts the finished units of a run and shows the stage of the current unit. Prints nothing before ``start``.

    If stderr is a terminal, the progress is a bar. Otherwise it is one line on stderr per finished unit, with the time,
    the number of finished units, the current stage and the estimated remaining time. While a long unit is computed,
    a line is printed at most once per minute.

    Args:
        description: text at the beginning of the bar and of each line.
        unit: singular noun for what is counted, such as ``concept``.
        min_interval: minimum number of seconds between two lines on stderr, to be used if there are many short units.
            A line is always printed after the last unit.
    """

    def __init__(self, description: str, unit: str = "concept", min_interval: float = 0.0) -> None:
        self.description = description
        self.unit = unit
        self.min_interval = min_interval
        self.bar = tqdm(disable=True)
        self._log: _Log | None = None

    def start(self, total: int, done: int, visible: bool) -> None:
        """Start showing the progress, with ``done`` of ``total`` units finished. Print nothing if not ``visible``."""
        if visible and not sys.stderr.isatty():
            self._log = _Log(self.description, self.unit, self.min_interval, total, done)
        else:
            self.bar = tqdm(
                total=total,
                initial=done,
                desc=self.description,
                unit=self.unit,
                disable=not visible,
                dynamic_ncols=True,
            )

    def set_stage(self, text: str) -> None:
        """Show the stage of the current unit."""
        self.bar.set_postfix_str(text)
        if self._log is not None:
            self._log.set_stage(text)

    def finish(self, units: int) -> None:
        """Add ``units`` to the number of finished units."""
        self.bar.update(units)
        if self._log is not None:
            self._log.finish(units)

    def iterate(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items, and count one finished unit after each of them."""
        for item in items:
            yield item
            self.finish(1)

    def close(self) -> None:
        self.bar.set_postfix_str("done")
        self.bar.close()
        self._log = None


class _Log:
    """Progress as lines on stderr, for runs without a terminal."""

    def __init__(self, description: str, unit: str, min_interval: float, total: int, done: int) -> None:
        self.description = description
        self.unit = unit
        self.min_interval = min_interval
        self.total = total
        self.done = done
        self.done_before = done
        self.stage = ""
        self.start_time = time.monotonic()
        self.last_time = -float("inf")

    def set_stage(self, text: str) -> None:
        self.stage = text
        if time.monotonic() - max(self.last_time, self.start_time) >= max(LOG_INTERVAL_S, self.min_interval):
            self._print()

    def finish(self, units: int) -> None:
        self.done += units
        if self.done >= self.total or time.monotonic() - self.last_time >= self.min_interval:
            self._print()

    def _print(self) -> None:
        self.last_time = time.monotonic()
        parts = [f"{self.done}/{self.total} {plural(self.unit)}", self.stage, self._remaining()]
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {self.description}: {', '.join(part for part in parts if part)}"
        print(line, file=sys.stderr, flush=True)

    def _remaining(self) -> str:
        """Return the remaining time, estimated from the units that were finished since the start of this run."""
        finished = self.done - self.done_before
        missing = self.total - self.done
        if not finished or not missing:
            return ""
        return f"{format_duration(missing * (time.monotonic() - self.start_time) / finished)} left"


def plural(unit: str) -> str:
    return unit + ("es" if unit.endswith("ch") else "s")


def format_duration(seconds: float) -> str:
    """Format a duration as a rounded text, such as ``about 40 s``, ``about 12 min`` or ``about 3 h 20 min``."""
    if seconds < 59.5:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"about {hours} h" + (f" {rest} min" if rest else "")


def timed(call: Callable[[], Any], wait: Callable[[], None] = lambda: None, repeats: int = 3) -> float:
    """Return the duration in seconds of the fastest of ``repeats`` calls after a warm-up call.

    Args:
        wait: function that synchronizes with the device after each call.
    """
    call()
    wait()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


@rank_zero_only
def print_estimate(units: int, nfe: float, seconds: float, *, unit: str = "unit", done: int = 0) -> None:
    """Print the number of units and network evaluations that a run computes, and the estimated duration.

    Args:
        units: number of all units, including the units on disk.
        nfe: network evaluations of the units that are not on disk; a backward pass counts as two evaluations.
        seconds: estimated duration of the units that are not on disk.
        unit: singular noun for a unit, such as ``concept``.
        done: number of units on disk.
    """
    if done >= units:
        print(f"Nothing to compute: all {units} {plural(unit)} are on disk.", flush=True)
        return
    cached = f", {done} of them on disk" if done else ""
    end = datetime.now() + timedelta(seconds=seconds)
    print(
        f"To compute: {units} {plural(unit)}{cached}; {nfe:,.0f} network evaluations, "
        f"{format_duration(seconds)}, until {end:%Y-%m-%d %H:%M}.",
        flush=True,
    )
