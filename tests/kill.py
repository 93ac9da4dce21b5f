"""Processes that share units and are killed at random moments: ``python -m tests.kill --kills 20 --processes 3``.

Each process claims units, writes them and goes on; one of them is killed by SIGKILL again and again, and a new one
takes its place, as when the same command is run again. In the end it is counted: kills, units that are missing, units
that were written twice, and whether the figures are those of one process alone. ``--command`` does the same to the main
job on a tiny random model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

BEAT, SILENCE = 0.2, 2.0


@dataclass
class Summary:
    """What became of a run whose processes were killed; all but the first three have to be as good as without."""

    kills: int
    processes: int
    seconds: float
    units: int
    lost: int
    twice: int
    figures_equal: bool

    @property
    def sound(self) -> bool:
        return not self.lost and not self.twice and self.figures_equal


def unit_figure(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def work(folder: Path, units: int, pause: float) -> None:
    """A process: claims, writes and notes units until all are there. It imports no PyTorch and starts at once."""
    from experiments.results.claims import Claims
    from experiments.results.files import write_whole

    claims, missing = Claims(folder / "claims", BEAT, SILENCE), [f"unit{k}" for k in range(units)]
    generator = random.Random(os.getpid())
    while missing:
        for name in missing:
            path = folder / "units" / name
            if path.is_file() or not claims.take(name) or path.is_file():
                continue
            time.sleep(pause * generator.random())
            write_whole(path, lambda made, name=name: made.write_text(unit_figure(name)))
            note(folder, name)
        missing = [name for name in missing if not (folder / "units" / name).is_file()]
        time.sleep(0.02)
    claims.close()


def note(folder: Path, name: str) -> None:
    """A line of the journal: an append of so few bytes is one write."""
    with open(folder / "journal", "a", buffering=1) as journal:
        journal.write(f"{name}\n")


def main_job(folder: Path) -> None:
    """A process of the main job on coloured squares, in full: claims, Lightning's loop, units, report."""
    import torch

    from experiments.results import claims, store
    from tests.experiments import small

    torch.set_num_threads(1)
    claims.BEAT, claims.SILENCE = BEAT, SILENCE
    write = store.UnitStore.write

    def noted(self, unit, *rest):
        write(self, unit, *rest)
        note(folder, self.claim(unit))

    store.UnitStore.write = noted
    task = small.rare_concepts(folder, {"plain": small.PLAIN, "select": small.SELECT}, concepts_per_batch=1)
    small.carried_out(task)


def kill(folder: Path, command: list[str], kills: int, processes: int, wait: tuple[float, float], seed: int) -> float:
    """Keeps ``processes`` at work and kills one after a random time, ``kills`` times; returns the seconds in all."""
    generator, start = random.Random(seed), time.monotonic()

    def begin() -> subprocess.Popen:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    alive, killed = [begin() for _ in range(processes)], 0
    while killed < kills:
        time.sleep(generator.uniform(*wait))
        victim = generator.randrange(processes)
        if alive[victim].poll() is None:
            alive[victim].send_signal(signal.SIGKILL)
            killed += 1
        alive[victim].wait()
        alive[victim] = begin()
    for process in alive:
        _, said = process.communicate(timeout=600)
        if process.returncode:
            raise RuntimeError(f"a process that nobody killed failed:\n{said[-2000:]}")
    return time.monotonic() - start


def of_units(folder: Path, kills: int, processes: int, units: int, pause: float, seed: int) -> Summary:
    """Units that only write a line, for the claims alone."""
    (folder / "units").mkdir(parents=True)
    command = [sys.executable, "-m", "tests.kill", "--work", str(folder), "--units", str(units), "--pause", str(pause)]
    seconds = kill(folder, command, kills, processes, (0.15, 0.5), seed)
    written = (folder / "journal").read_text().split()
    made = {path.name: path.read_text() for path in (folder / "units").iterdir() if not path.name.startswith(".")}
    expected = {f"unit{k}": unit_figure(f"unit{k}") for k in range(units)}
    return Summary(
        kills, processes, seconds, units, lost=len(expected.keys() - made.keys()),
        twice=len(written) - len(set(written)), figures_equal=made == expected,
    )  # fmt: skip


def of_the_main_job(folder: Path, kills: int, processes: int, seed: int) -> Summary:
    """The main job; figures without the times are compared with those of a run in another folder by one process."""
    alone = folder / "alone"
    for place in (alone, folder / "killed"):
        place.mkdir(parents=True)
    one = [sys.executable, "-m", "tests.kill", "--main-job", str(alone)]
    subprocess.run(one, check=True, capture_output=True)
    command = [*one[:-1], str(folder / "killed")]
    seconds = kill(folder / "killed", command, kills, processes, (4.0, 16.0), seed)
    written = (folder / "killed" / "journal").read_text().split()
    expected = set((alone / "journal").read_text().split())
    return Summary(
        kills, processes, seconds, len(expected), lost=len(expected - set(written)),
        twice=len(written) - len(set(written)), figures_equal=figures(alone) == figures(folder / "killed"),
    )  # fmt: skip


def figures(folder: Path) -> list[dict]:
    """The rows of a run's results without its times."""
    rows = json.loads((folder / "run" / "results.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name not in ("t_init", "t_opt")} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--pause", type=float, default=0.1, help="longest time of a unit, seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="store_true", help="the main job instead of units alone")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--main-job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        return work(options.work, options.units, options.pause)
    if options.main_job is not None:
        return main_job(options.main_job)
    with tempfile.TemporaryDirectory() as folder:
        if options.command:
            summary = of_the_main_job(Path(folder), options.kills, options.processes, options.seed)
        else:
            summary = of_units(
                Path(folder), options.kills, options.processes, options.units, options.pause, options.seed
            )  # fmt: skip
    print(json.dumps(asdict(summary)))
    sys.exit(not summary.sound)


if __name__ == "__main__":
    main()
