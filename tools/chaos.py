"""Processes that share units and are killed at random moments: ``python -m tools.chaos --kills 20 --processes 3``.

Each process claims units, writes them and goes on; one of them is killed by SIGKILL again and again, and a new one
takes its place, as when the same command is run again. In the end it is counted: kills, units that are missing, units
that were written twice, and whether the figures are those of one process alone. ``--command`` does the same to the main
job on a tiny random model. ``--ddp torchrun`` or ``--ddp lightning`` runs that job by ``train.py`` with processes that
know of each other: one of them is killed, the others have to end and say why, and the same command is run again.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from experiments.rare_concepts import RareConcepts

BEAT, SILENCE = 0.2, 2.0
MINUTE = 60.0
MARK = "KILLED_RUN"
ENDED = (
    "error: another process of this run has ended",
    "Signal 9 (SIGKILL) received by PID",
    "error: stopped by SIGTERM",
)
"""One of these says why processes ended: the first and the last are ours, the other is torchrun's."""


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
    from experiments.cache.atomic import atomic_write
    from experiments.runtime.leases import LeaseManager

    claims, missing = LeaseManager(folder / "claims", BEAT, SILENCE), [f"unit{k}" for k in range(units)]
    generator = random.Random(os.getpid())
    while missing:
        for name in missing:
            path = folder / "units" / name
            if path.is_file() or not claims.take(name) or path.is_file():
                continue
            time.sleep(pause * generator.random())
            atomic_write(path, lambda made, name=name: made.write_text(unit_figure(name)))
            note(folder, name)
        missing = [name for name in missing if not (folder / "units" / name).is_file()]
        time.sleep(0.02)
    claims.close()


def note(folder: Path, name: str) -> None:
    """A line of the journal: an append of so few bytes is one write."""
    with open(folder / "journal", "a", buffering=1) as journal:
        journal.write(f"{name}\n")


def main_job(folder: Path) -> None:
    """A process of the main job on colored squares, in full: claims, Lightning's loop, units, report."""
    import torch

    from experiments.runtime import leases as claims
    from tests.experiments import tiny_configs as small

    torch.set_num_threads(1)
    claims.BEAT, claims.SILENCE = BEAT, SILENCE
    _note_units(folder)
    task = small.rare_concepts(folder, {"plain": small.PLAIN, "select": small.SELECT}, concepts_per_batch=1)
    small.carried_out(task)


def squares(run_dir: str) -> RareConcepts:
    """The task of ``tests/configs/experiment/squares.yaml``, which notes the units that it writes."""
    import torch

    from tests.experiments import tiny_configs as small

    torch.set_num_threads(1)
    folder = Path(run_dir).parent
    _note_units(folder)
    arms = {"plain": small.PLAIN, "select": small.SELECT}
    return small.rare_concepts(folder, arms, concepts_per_batch=1, run_dir=run_dir)


def _note_units(folder: Path) -> None:
    from experiments.cache.store import UnitStore

    write = UnitStore.write

    def noted(self, unit, *rest):
        write(self, unit, *rest)
        note(folder, self.claim(unit))

    UnitStore.write = noted


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
    command = [sys.executable, "-m", "tools.chaos", "--work", str(folder), "--units", str(units), "--pause", str(pause)]
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
    one = [sys.executable, "-m", "tools.chaos", "--main-job", str(alone)]
    subprocess.run(one, check=True, capture_output=True)
    command = [*one[:-1], str(folder / "killed")]
    seconds = kill(folder / "killed", command, kills, processes, (4.0, 16.0), seed)
    written = (folder / "killed" / "journal").read_text().split()
    expected = set((alone / "journal").read_text().split())
    return Summary(
        kills, processes, seconds, len(expected), lost=len(expected - set(written)),
        twice=len(written) - len(set(written)), figures_equal=figures(alone) == figures(folder / "killed"),
    )  # fmt: skip


@dataclass
class Together:
    """What became of runs whose processes know of each other; ``sound`` wants none of the lists to have an entry."""

    launcher: str
    processes: int
    kills: int = 0
    finished: int = 0
    alone: float = 0.0
    slowest: float = 0.0
    hung: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.hung and not self.silent and not self.wrong


def command(folder: Path, launcher: str, processes: int) -> list[str]:
    """The main job on squares by ``train.py``, alone or with several processes."""
    job = ["train.py", "--config-dir", "tests/configs", "experiment=squares", f"run_dir={folder / 'run'}"]
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *job]
    if launcher == "lightning":
        job += [f"trainer.devices={processes}", "trainer.strategy=ddp"]
    return [sys.executable, *job]


def of_ddp(folder: Path, launcher: str, processes: int, kills: int, longest: float, seed: int) -> Together:
    """Kills one process of a run and runs the command again, in turn.

    Every other kill is at a random time below ``longest``, which is mostly while programs load; the rest are among the
    units. A run that finishes is compared with one process's, and the next begins in a folder of its own.
    """
    generator, summary = random.Random(seed), Together(launcher, processes)
    started = time.monotonic()
    subprocess.run(command(folder / "alone", "", 1), check=True, capture_output=True)
    summary.alone = time.monotonic() - started
    while summary.kills < kills or not summary.finished:
        place = folder / f"run{summary.finished}"
        seconds, units = generator.uniform(1, longest), 0
        if summary.kills >= kills:
            seconds = MINUTE * 10
        elif summary.kills % 2:
            seconds, units = generator.uniform(0, 2), _written(place) + generator.randrange(1, 4)
        if _killed_once(place, command(place, launcher, processes), seconds, units, generator, summary):
            summary.finished += 1
            summary.wrong += _differences(place, folder / "alone")
    return summary


def _written(folder: Path) -> int:
    journal = folder / "journal"
    return len(journal.read_text().split()) if journal.is_file() else 0


def _killed_once(
    folder: Path, command: list[str], seconds: float, units: int, generator: random.Random, summary: Together
) -> bool:
    """Kills a process of the command ``seconds`` after ``units`` were written; whether it finished all the same."""
    with tempfile.TemporaryFile("w+") as said:
        run = Run.begin(command, said)
        while run.leader.poll() is None and _written(folder) < units:
            time.sleep(0.1)
        victim, others = _kill_one(run, seconds, generator)
        started = time.monotonic()
        if victim:
            summary.kills += 1
        _wait_for_all(run, victim, summary)
        ended = time.monotonic() - started
        said.seek(0)
        text = said.read()
    summary.slowest = max(summary.slowest, ended)
    # Those that torchrun started go on without it: what they make is the run's, whatever became of torchrun.
    code = run.leader.returncode
    done = code == 0 or (victim == "torchrun" and (folder / "run" / "results.json").is_file())
    if code and not done and (others or not victim) and not any(sentence in text for sentence in ENDED):
        summary.silent.append(f"{victim}: {text[-1500:]}")
    print(f"{victim or 'nobody'} killed, {_written(folder)} units, ended {ended:.1f} s later, "
          f"{'finished' if done else 'not finished'}", file=sys.stderr, flush=True)  # fmt: skip
    return done


def _kill_one(run: Run, seconds: float, generator: random.Random) -> tuple[str, int]:
    """Kills a process of the run after ``seconds``: what it was, and how many were left; nothing if all had ended."""
    try:
        run.leader.wait(seconds)
        return "", 0
    except subprocess.TimeoutExpired:
        group = run.processes()
        victim = generator.choice(sorted(group))
        os.kill(victim, signal.SIGKILL)
        return group[victim], len(group) - 1


def _wait_for_all(run: Run, victim: str, summary: Together) -> None:
    """Waits until no process is left: a minute, or as long as a whole run takes and a minute where the rest go on."""
    end = time.monotonic() + MINUTE + summary.alone
    while (left := run.processes()) and time.monotonic() < end:
        time.sleep(0.1)
    for process, name in left.items():
        summary.hung.append(f"{name} still ran {MINUTE + summary.alone:.0f} s after {victim} was killed")
        os.kill(process, signal.SIGKILL)
    run.leader.wait()


@dataclass(frozen=True)
class Run:
    """A command that starts processes, in sessions of their own too: all of them have a variable with ``mark``."""

    leader: subprocess.Popen
    mark: str

    @classmethod
    def begin(cls, command: list[str], said: IO[str]) -> Run:
        mark = uuid4().hex
        return cls(subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, MARK: mark}), mark)

    def processes(self) -> dict[int, str]:
        """Those that live, each with what it is."""
        self.leader.poll()
        numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return {number: name for number in numbers if (name := _name(number, self.mark))}


def _name(process: int, mark: str) -> str:
    """What a living process with the mark is; nothing for any other."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        words, variables = (Path(f"/proc/{process}/{file}").read_text().split("\0") for file in ("cmdline", "environ"))
    except OSError:
        return ""
    started = dict(word.partition("=")[::2] for word in variables)
    if started.get(MARK) != mark or state in "ZX":
        return ""
    return "torchrun" if "torch.distributed.run" in words else f"rank {started.get('LOCAL_RANK', '0')}"


def _differences(folder: Path, alone: Path) -> list[str]:
    """What a run has that one process's has not: units written twice or never, other figures."""
    written, expected = (sorted((place / "journal").read_text().split()) for place in (folder, alone))
    faults = [] if written == expected else [f"{folder.name}: units {written} for {expected}"]
    return faults + ([] if figures(folder) == figures(alone) else [f"{folder.name}: other figures"])


def figures(folder: Path) -> list[dict]:
    """The rows of a run's results without its times."""
    rows = json.loads((folder / "run" / "results.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name not in ("t_init", "t_opt")} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--pause", type=float, default=0.1, help="longest time of a unit, seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="store_true", help="the main job instead of units alone")
    parser.add_argument("--ddp", choices=["torchrun", "lightning"], help="the main job with processes of one launcher")
    parser.add_argument("--longest", type=float, default=60.0, help="a process of --ddp is killed before, seconds")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--main-job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        return work(options.work, options.units, options.pause)
    if options.main_job is not None:
        return main_job(options.main_job)
    with tempfile.TemporaryDirectory() as folder:
        if options.ddp:
            summary = of_ddp(
                Path(folder), options.ddp, options.processes, options.kills, options.longest, options.seed
            )  # fmt: skip
        elif options.command:
            summary = of_the_main_job(Path(folder), options.kills, options.processes, options.seed)
        else:
            summary = of_units(
                Path(folder), options.kills, options.processes, options.units, options.pause, options.seed
            )  # fmt: skip
    print(json.dumps(asdict(summary)))
    sys.exit(not summary.sound)


if __name__ == "__main__":
    main()
