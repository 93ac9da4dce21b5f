"""Progress of a run: a bar on a terminal, a line per unit in a log file, and an estimate before the run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

LOG_INTERVAL_S = 60.0  # between two lines of a log file within a long unit


class Progress:
    """Counts finished units and shows the stage of the current one. Silent until started.

    On a terminal this is a bar. Otherwise it is a line on stderr per finished unit, with the time, the count, the stage
    and the remaining time. A long unit has additional lines, at most one per minute.

    Args:
        description: shown first.
        unit: name of what is counted.
        min_interval: in a log file, minimum seconds between two lines, for many short units. The last unit always has
            a line.
    """

    def __init__(self, description: str, unit: str = "concept", min_interval: float = 0.0) -> None:
        self.description = description
        self.unit = unit
        self.min_interval = min_interval
        self.bar = tqdm(disable=True)
        self._log: _Log | None = None

    def start(self, total: int, done: int, visible: bool) -> None:
        """Start with ``done`` of ``total`` units finished. If not ``visible``, stay silent."""
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
        """Count finished units."""
        self.bar.update(units)
        if self._log is not None:
            self._log.finish(units)

    def iterate(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items and count each as a unit."""
        for item in items:
            yield item
            self.finish(1)

    def close(self) -> None:
        self.bar.set_postfix_str("done")
        self.bar.close()
        self._log = None


class _Log:
    """Progress lines without a terminal."""

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
        """Estimate the remaining time from the units that this run has finished."""
        finished = self.done - self.done_before
        missing = self.total - self.done
        if not finished or not missing:
            return ""
        return f"{format_duration(missing * (time.monotonic() - self.start_time) / finished)} left"


def plural(unit: str) -> str:
    return unit + ("es" if unit.endswith("ch") else "s")


def format_duration(seconds: float) -> str:
    """Return a rounded duration: ``about 40 s``, ``about 12 min``, ``about 3 h 20 min``."""
    if seconds < 59.5:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"about {hours} h" + (f" {rest} min" if rest else "")


def timed(call: Callable[[], Any], wait: Callable[[], None] = lambda: None, repeats: int = 3) -> float:
    """Return the minimum seconds of ``repeats`` calls after a warm-up; ``wait`` synchronizes with the device."""
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
    """Print what a run computes and its estimated duration.

    Args:
        units: number of all units.
        nfe: network evaluations of the units that are not on disk; a gradient counts as two more.
        seconds: their estimated total duration.
        unit: name of a unit.
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
