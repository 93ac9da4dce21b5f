"""Display of the progress of a run as a bar or as lines on stderr, and of its estimated duration."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

LOG_INTERVAL_S = 60.0  # minimum time between two printed lines during a long computation


class Progress:
    """Shows how many units of a task are finished, for example how many images a task has read.

    If stderr is a terminal, the progress is shown as a bar. If stderr is not a terminal, a line is printed after each
    unit, with the number of finished units, the current stage and the estimated remaining time. During the computation
    of a long unit, a line is printed at most once per minute. Nothing is shown before the call of :meth:`start`.

    Args:
        description: text at the beginning of the bar and of each line.
        unit: singular noun for what is counted, such as ``concept``.
        min_interval: minimum time in seconds between two lines, for tasks with many short units. A task that takes less
            time than ``min_interval`` prints no line.
    """

    def __init__(self, description: str, unit: str = "concept", min_interval: float = 0.0) -> None:
        self.description = description
        self.unit = unit
        self.min_interval = min_interval
        self.bar = tqdm(disable=True)
        self._log: _Log | None = None

    def start(self, total: int, done: int, visible: bool) -> None:
        """Start to show the progress.

        Args:
            total: number of all units.
            done: number of units that are already finished.
            visible: whether to show the progress.
        """
        if visible and not sys.stderr.isatty():
            self._log = _Log(self.description, self.unit, self.min_interval, total=total, done=done)
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
        """Show ``text``, the current stage of the computation, after the number of finished units."""
        self.bar.set_postfix_str(text)
        if self._log is not None:
            self._log.set_stage(text)

    def finish(self, units: int) -> None:
        """Add ``units`` to the number of finished units."""
        self.bar.update(units)
        if self._log is not None:
            self._log.finish(units)

    def iterate(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield each item, and count one finished unit after each item."""
        for item in items:
            yield item
            self.finish(1)

    def close(self) -> None:
        self.bar.set_postfix_str("done")
        self.bar.close()
        self._log = None


class _Log:
    """Prints the progress as lines to stderr, for runs without a terminal."""

    def __init__(self, description: str, unit: str, min_interval: float, *, total: int, done: int) -> None:
        self.description = description
        self.unit = unit
        self.min_interval = min_interval
        self.total = total
        self.done = done
        self.done_before = done
        self.stage = ""
        self.start_time = time.monotonic()
        self.last_time = self.start_time if min_interval else -float("inf")

    def set_stage(self, text: str) -> None:
        self.stage = text
        if time.monotonic() - max(self.last_time, self.start_time) >= max(LOG_INTERVAL_S, self.min_interval):
            self._print()

    def finish(self, units: int) -> None:
        self.done += units
        is_end = self.done >= self.total and self.last_time != self.start_time
        if is_end or time.monotonic() - self.last_time >= self.min_interval:
            self._print()

    def _print(self) -> None:
        self.last_time = time.monotonic()
        parts = [f"{self.done}/{self.total} {plural(self.unit)}", self.stage, self._remaining()]
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {self.description}: {', '.join(part for part in parts if part)}"
        print(line, file=sys.stderr, flush=True)

    def _remaining(self) -> str:
        """Return the formatted remaining time, estimated from the units that were finished in this process."""
        finished = self.done - self.done_before
        missing = self.total - self.done
        if not finished or not missing:
            return ""
        return f"{format_duration(missing * (time.monotonic() - self.start_time) / finished)} left"


MIN_SHARE = 0.02
MIN_SECONDS = 60.0
"""The remaining time of a run is shown as soon as ``MIN_SHARE`` of the run or ``MIN_SECONDS`` are over.

An earlier estimate is wrong, because the first units of work can be much cheaper than the other units.
"""


@dataclass
class _Part:
    """Numbers of finished and unfinished units of work in one part of a run.

    A unit of work is, for example, generating the images of one concept. A part of a run is, for example, one of the
    compared methods.

    Attributes:
        unit: singular noun for a unit of work, such as ``concept``.
        total: number of all units of work.
        done: number of finished units of work.
        cost: planned number of network evaluations of all units of work.
        done_cost: planned number of network evaluations of the finished units of work.
    """

    unit: str
    total: int = 0
    done: int = 0
    cost: float = 0.0
    done_cost: float = 0.0


class RunProgress:
    """Shows how much of a run is finished, and the estimated remaining time.

    A unit of work, such as generating the images of one concept, belongs to a part of the run, such as one of the
    compared methods. Each unit of work is weighted by its planned number of network evaluations.

    If stderr is a terminal, the progress is shown as a bar. If stderr is not a terminal, a line is printed after each
    batch. During the computation of a long batch, a line with the current step is printed at most once per minute.
    Nothing is shown before the call of :meth:`start`.
    """

    def __init__(self) -> None:
        self.parts: dict[str, _Part] = {}
        self.bar = tqdm(disable=True)
        self._part = ""
        self._logs = False
        self._start_time: float | None = None
        self._last_time = 0.0
        self._cost_before = 0.0

    def add(self, part: str, unit: str, cost: float, *, done: bool) -> None:
        """Add a unit of work, such as generating the images of one concept, to a part of the run, such as a method.

        Args:
            part: name of the part, such as a method.
            unit: singular noun for the unit of work, such as ``concept``.
            cost: planned number of network evaluations.
            done: whether the result of the unit of work is on disk.
        """
        entry = self.parts.setdefault(part, _Part(unit))
        entry.total += 1
        entry.cost += cost
        if done:
            entry.done += 1
            entry.done_cost += cost

    def start(self, visible: bool) -> None:
        """Start to measure elapsed time, and show the progress if ``visible``. Only the first call has an effect."""
        if self._start_time is not None:
            return
        self._start_time = self._last_time = time.monotonic()
        self._cost_before = self._sum("done_cost")
        self._logs = visible and not sys.stderr.isatty()
        if visible and not self._logs:
            bar_format = "{percentage:3.0f} % |{bar}| {desc}{postfix}, {remaining} left"
            self.bar = tqdm(
                total=self._sum("cost"),
                initial=self._cost_before,
                bar_format=bar_format,
                smoothing=0,
                dynamic_ncols=True,
            )

    def begin(self, part: str) -> None:
        """Show that units of work of ``part`` (a part of the run, such as a method) are being computed."""
        self._part = part
        self.bar.set_description_str(self._counts())

    def set_stage(self, text: str) -> None:
        """Show ``text`` as the current step of the computation."""
        self.bar.set_postfix_str(text)
        if self._logs and time.monotonic() - self._last_time >= LOG_INTERVAL_S:
            self._print(text)

    def finish(self, part: str, costs: Sequence[float]) -> None:
        """Count units of work, such as generating the images of one concept, as finished.

        Args:
            part: name of the part of the run.
            costs: planned number of network evaluations of each finished unit of work.
        """
        entry = self.parts[part]
        entry.done += len(costs)
        entry.done_cost += sum(costs)
        self._part = part
        self.bar.set_description_str(self._counts(), refresh=False)
        self.bar.update(sum(costs))
        if self._logs:
            self._print("")

    def close(self) -> None:
        self.bar.set_postfix_str("")
        self.bar.close()
        self._logs = False

    def _sum(self, name: str) -> float:
        return sum(getattr(part, name) for part in self.parts.values())

    def _counts(self) -> str:
        part = self.parts[self._part]
        return f"of {self._sum('total'):.0f} units, {self._part} {part.done}/{part.total} {plural(part.unit)}"

    def _print(self, stage: str) -> None:
        self._last_time = time.monotonic()
        done, total = ("done_cost", "cost") if self._sum("cost") else ("done", "total")
        percent = int(100 * self._sum(done) / self._sum(total))
        if self._sum("done") == self._sum("total"):
            percent = 100
        parts = [f"{datetime.now():%Y-%m-%d %H:%M:%S} {percent} % {self._counts()}", stage, self._remaining()]
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)

    def _remaining(self) -> str:
        """Return the formatted remaining time, estimated from the units that were finished since :meth:`start`."""
        finished = self._sum("done_cost") - self._cost_before
        missing = self._sum("cost") - self._sum("done_cost")
        if not finished or self._sum("done") == self._sum("total"):
            return ""
        seconds = time.monotonic() - self._start_time
        if finished < MIN_SHARE * self._sum("cost") and seconds < MIN_SECONDS:
            return ""
        return f"{format_duration(missing * seconds / finished)} left"


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
        call: the function whose duration is measured.
        wait: function that synchronizes with the device. The function is called after each call of ``call``.
        repeats: number of measured calls.
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
    """Print how much a run has to compute: units of work, network evaluations and estimated duration.

    A unit of work is the smallest part of a run that a resumed run can skip, such as generating the images of one
    concept.

    Args:
        units: number of all units of work, including finished units.
        nfe: number of network evaluations of the unfinished units; a backward pass counts as two evaluations.
        seconds: estimated duration of the unfinished units, in seconds.
        unit: singular noun for a unit of work, such as ``concept``.
        done: number of finished units, whose results are on disk.
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
