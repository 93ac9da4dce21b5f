"""How far a long experiment is: a bar on a terminal, a line a unit in a log; and beforehand, what it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

QUIET = 60.0  # seconds after which a log tells of a new stage within a unit


class Progress:
    """Counts finished units and names the stage of the present one; silent until started.

    On a terminal this is one bar. Elsewhere it is a line on stderr for each finished unit, with the time, how many of
    how many, the stage and the time that is left; a unit that takes long has lines of its own, a minute apart at least.

    Args:
        description: stands before every line.
        unit: what is counted.
        every: in a log, least seconds between two lines, for units that are many and short; the last always has one.
    """

    def __init__(self, description: str, unit: str = "concept", every: float = 0.0) -> None:
        self.description, self.unit, self.every = description, unit, every
        self.bar = tqdm(disable=True)
        self._log: _Log | None = None

    def start(self, total: int, done: int, visible: bool) -> None:
        """``done`` of ``total`` units are finished already; a progress that is not ``visible`` stays silent."""
        if visible and not sys.stderr.isatty():
            self._log = _Log(self.description, self.unit, self.every, total, done)
        else:
            self.bar = tqdm(
                total=total, initial=done, desc=self.description, unit=self.unit, disable=not visible,
                dynamic_ncols=True,
            )  # fmt: skip

    def stage(self, text: str) -> None:
        self.bar.set_postfix_str(text)
        if self._log is not None:
            self._log.stage(text)

    def finish(self, units: int) -> None:
        self.bar.update(units)
        if self._log is not None:
            self._log.finish(units)

    def over(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, each a unit that is finished when the next is asked for."""
        for item in items:
            yield item
            self.finish(1)

    def close(self) -> None:
        self.bar.set_postfix_str("done")
        self.bar.close()
        self._log = None


class _Log:
    """The lines of a progress that no terminal shows."""

    def __init__(self, description: str, unit: str, every: float, total: int, done: int) -> None:
        self.description, self.unit, self.every = description, unit, every
        self.total, self.done, self.first = total, done, done
        self.now, self.started = "", time.monotonic()
        self.last = -float("inf")

    def stage(self, text: str) -> None:
        self.now = text
        if time.monotonic() - max(self.last, self.started) >= max(QUIET, self.every):
            self._say()

    def finish(self, units: int) -> None:
        self.done += units
        if self.done >= self.total or time.monotonic() - self.last >= self.every:
            self._say()

    def _say(self) -> None:
        self.last = time.monotonic()
        parts = [f"{self.done}/{self.total} {plural(self.unit)}", self.now, self._left()]
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {self.description}: {', '.join(part for part in parts if part)}"
        print(line, file=sys.stderr, flush=True)

    def _left(self) -> str:
        """From the units finished since the start; those found finished took no time."""
        made, missing = self.done - self.first, self.total - self.done
        if not made or not missing:
            return ""
        return f"{said(missing * (time.monotonic() - self.started) / made)} left"


def plural(unit: str) -> str:
    return unit + ("es" if unit.endswith("ch") else "s")


def said(seconds: float) -> str:
    """A time as people say it: ``about 40 s``, ``about 12 min``, ``about 3 h 20 min``."""
    if seconds < 59.5:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"about {hours} h" + (f" {rest} min" if rest else "")


def timed(call: Callable[[], Any], wait: Callable[[], None] = lambda: None, repeats: int = 3) -> float:
    """Seconds that ``call`` takes: the least of ``repeats``, after one that warms up; ``wait`` waits for the device."""
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
def announce(units: int, nfe: float, seconds: float, *, unit: str = "unit", done: int = 0) -> None:
    """Prints what a run will do before it begins, and about how long that takes.

    Args:
        units: all of them.
        evaluations: network evaluations of those that are not on disk yet; those of a gradient count too, about two
            each.
        seconds: that they take, all in all.
        unit: their name.
        done: how many units are on disk.
    """
    if done >= units:
        print(f"Nothing to compute: all {units} {plural(unit)} are on disk.", flush=True)
        return
    found = f", {done} of them on disk" if done else ""
    end = datetime.now() + timedelta(seconds=seconds)
    print(
        f"To compute: {units} {plural(unit)}{found}; {nfe:,.0f} network evaluations, "
        f"{said(seconds)}, until {end:%Y-%m-%d %H:%M}.",
        flush=True,
    )
