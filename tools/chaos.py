"""Kill random processes of a run and check the results: ``python -m tools.chaos --kills 20 --processes 3``.

There are three tests:

- By default, several processes divide units of work among themselves, and random processes are repeatedly killed with
  SIGKILL and replaced. A unit of work consists of writing a small file.
- ``--command`` runs the default test with the experiment rare_concepts on a tiny random model.
- ``--ddp torchrun`` and ``--ddp lightning`` run ``train.py`` with the experiment rare_concepts and several ranks. When
  one process is killed, the other processes have to exit with an error message. The same command is then run again.

The printed summary contains the number of killed processes, of missing units of work and of units of work that were
written twice. The summary also contains whether the results are equal to the results of a run in a single process. The
exit status is 0 if the results are equal, no unit of work is missing, and no unit of work was written twice.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from experiments.rare_concepts.task import RareConceptsExperiment

HEARTBEAT_S = 0.2  # interval in seconds at which a process writes a heartbeat file, to show that it is alive
LEASE_TIMEOUT_S = 2.0  # time in seconds without a heartbeat after which a process counts as dead
EXIT_TIMEOUT_S = 60.0  # timeout in seconds for the exit of the other processes, in addition to the time of a run
RUN_ID_ENV = "CHAOS_RUN_ID"  # environment variable that identifies the processes of a run
EXIT_MESSAGES = (
    "error: another process of this run has died",  # printed by this project
    "Signal 9 (SIGKILL) received by PID",  # printed by torchrun
    "error: stopped by SIGTERM",  # printed by this project
)
"""Error messages, one of which a run must print if it ends because a process was killed."""


@dataclass
class Summary:
    """Result of a test with several independent processes.

    Attributes:
        kills: number of processes that were killed.
        processes: number of processes that ran at the same time.
        seconds: duration of the test in seconds.
        units: number of units of work.
        missing: number of units of work that no process has written.
        duplicates: number of units of work that were written more than once.
        results_equal: whether the results are equal to the results of a run in a single process.
    """

    kills: int
    processes: int
    seconds: float
    units: int
    missing: int
    duplicates: int
    results_equal: bool

    @property
    def passed(self) -> bool:
        return not self.missing and not self.duplicates and self.results_equal


def unit_content(name: str) -> str:
    """Return the correct content of the file that the unit of work ``name`` writes."""
    return hashlib.sha256(name.encode()).hexdigest()


def run_worker(folder: Path, units: int, pause: float) -> None:
    """Acquire leases (exclusive rights) on files and write the files, until all files exist.

    The name of each written file is appended to a journal file. This function does not import PyTorch, so that a
    process starts quickly.

    Args:
        folder: folder of the files, the leases and the journal.
        units: number of files.
        pause: maximum waiting time before a file is written, in seconds.
    """
    from experiments.cache.atomic import atomic_write
    from experiments.runtime.leases import LeaseManager

    leases = LeaseManager(folder / "leases", HEARTBEAT_S, LEASE_TIMEOUT_S)
    missing = [f"unit{k}" for k in range(units)]
    generator = random.Random(os.getpid())
    while missing:
        for name in missing:
            path = folder / "units" / name
            if path.is_file() or not leases.acquire(name) or path.is_file():
                continue
            time.sleep(pause * generator.random())
            atomic_write(path, lambda temporary, name=name: temporary.write_text(unit_content(name)))
            append_to_journal(folder, name)
        missing = [name for name in missing if not (folder / "units" / name).is_file()]
        time.sleep(0.02)
    leases.close()


def append_to_journal(folder: Path, name: str) -> None:
    """Append ``name`` as a line to the journal file. The operating system writes such a short line atomically."""
    with open(folder / "journal", "a", buffering=1) as journal:
        journal.write(f"{name}\n")


def run_main_job(folder: Path) -> None:
    """Run the experiment rare_concepts with images of colored squares, including the report."""
    from tests.experiments import tiny_configs

    tiny_configs.run_to_end(squares(str(folder / "run")))


def squares(run_dir: str) -> RareConceptsExperiment:
    """Create the experiment of ``tests/configs/experiment/squares.yaml``.

    The experiment appends the names of written results to the journal file.
    """
    import torch

    from tests.experiments import tiny_configs

    torch.set_num_threads(1)
    folder = Path(run_dir).parent
    _journal_units(folder)
    arms = {"plain": tiny_configs.PLAIN, "select": tiny_configs.SELECT}
    return tiny_configs.rare_concepts(folder, arms, concepts_per_batch=1, run_dir=run_dir)


def _journal_units(folder: Path) -> None:
    """Patch ``UnitStore.write`` to append the name of each written result to the journal file in ``folder``."""
    from experiments.cache.store import UnitStore

    write = UnitStore.write

    def write_and_journal(self, unit, *rest):
        write(self, unit, *rest)
        append_to_journal(folder, self.lease_name(unit))

    UnitStore.write = write_and_journal


def kill_and_replace(
    command: list[str],
    kills: int,
    processes: int,
    *,
    wait: tuple[float, float],
    seed: int,
    is_due: Callable[[int], bool] = lambda _: True,
) -> float:
    """Run ``command`` in several processes, and kill and replace a random process ``kills`` times.

    Args:
        command: command line of each process.
        kills: number of processes that are killed.
        processes: number of processes that run at the same time.
        wait: minimum and maximum time between two kills, in seconds.
        seed: random seed of the times of the kills and of the choice of the killed processes.
        is_due: function that returns whether the waiting time before the next kill may begin. The argument of the
            function is the number of processes that have been killed.

    Returns:
        The duration in seconds until all processes have finished.

    Raises:
        RuntimeError: a process that was not killed exited with an error.
    """
    generator = random.Random(seed)
    started = time.monotonic()

    def start_process() -> subprocess.Popen:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    running = [start_process() for _ in range(processes)]
    killed = 0
    while killed < kills:
        while not is_due(killed) and any(process.poll() is None for process in running):
            time.sleep(0.005)
        time.sleep(generator.uniform(*wait))
        victim = generator.randrange(processes)
        if running[victim].poll() is None:
            running[victim].send_signal(signal.SIGKILL)
            killed += 1
        running[victim].wait()
        running[victim] = start_process()
    for process in running:
        _, errors = process.communicate(timeout=600)
        if process.returncode:
            raise RuntimeError(f"a process that was not killed exited with an error:\n{errors[-2000:]}")
    return time.monotonic() - started


def stress_units(folder: Path, kills: int, processes: int, *, units: int, pause: float, seed: int) -> Summary:
    """Run the default test, in which processes that write small files are killed and replaced.

    The kills are distributed over the units of work, so that processes are killed while they still have work.
    """
    (folder / "units").mkdir(parents=True)

    def is_due(killed: int) -> bool:
        return len(_contents(folder / "units")) >= units * (killed + 1) // (kills + 2)

    command = [sys.executable, "-m", "tools.chaos", "--work", str(folder), "--units", str(units), "--pause", str(pause)]
    seconds = kill_and_replace(command, kills, processes, wait=(0, pause), seed=seed, is_due=is_due)
    journal = _journal(folder)
    contents = _contents(folder / "units")
    expected = {f"unit{k}": unit_content(f"unit{k}") for k in range(units)}
    return Summary(
        kills,
        processes,
        seconds,
        units,
        missing=len(expected.keys() - contents.keys()),
        duplicates=len(journal) - len(set(journal)),
        results_equal=contents == expected,
    )


def stress_main_job(folder: Path, kills: int, processes: int, *, seed: int) -> Summary:
    """Run the test of ``--command``, in which processes of the experiment rare_concepts are killed and replaced.

    The results are compared with the results of a single process that runs the experiment in another folder.
    """
    single = folder / "single"
    killed = folder / "killed"
    for each in (single, killed):
        each.mkdir(parents=True)
    command = [sys.executable, "-m", "tools.chaos", "--main-job"]
    subprocess.run([*command, str(single)], check=True, capture_output=True)
    seconds = kill_and_replace([*command, str(killed)], kills, processes, wait=(4.0, 16.0), seed=seed)
    journal = _journal(killed)
    expected = set(_journal(single))
    return Summary(
        kills,
        processes,
        seconds,
        len(expected),
        missing=len(expected - set(journal)),
        duplicates=len(journal) - len(set(journal)),
        results_equal=result_rows(single) == result_rows(killed),
    )


@dataclass
class DdpSummary:
    """Result of a test with several ranks that one launcher started.

    Attributes:
        launcher: ``torchrun`` or ``lightning``.
        processes: number of ranks.
        kills: number of processes that were killed.
        finished: number of runs that finished.
        single_process_seconds: duration of the same run in a single process, in seconds.
        slowest_exit: maximum time in seconds from a kill to the exit of the last process of the run.
        hanging: descriptions of the processes that did not exit after another process was killed.
        silent: outputs of runs that exited without an error message.
        different: descriptions of the differences from the results of a run in a single process.
    """

    launcher: str
    processes: int
    kills: int = 0
    finished: int = 0
    single_process_seconds: float = 0.0
    slowest_exit: float = 0.0
    hanging: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.hanging and not self.silent and not self.different


def train_command(folder: Path, launcher: str, processes: int) -> list[str]:
    """Return the command that runs ``train.py`` on images of colored squares.

    Args:
        folder: parent folder of the run's folder.
        launcher: ``torchrun`` or ``lightning`` for several ranks; an empty string for a single process.
        processes: number of ranks.
    """
    job = ["train.py", "--config-dir", "tests/configs", "experiment=squares", f"run_dir={folder / 'run'}"]
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *job]
    if launcher == "lightning":
        job += [f"trainer.devices={processes}", "trainer.strategy=ddp"]
    return [sys.executable, *job]


def stress_ddp(folder: Path, launcher: str, processes: int, *, kills: int, max_wait: float, seed: int) -> DdpSummary:
    """Run the test of ``--ddp``, which repeatedly kills one process of a run with several ranks and restarts the run.

    Every second time, a process is killed at a random time of at most ``max_wait`` seconds after the start, when most
    processes are still loading modules and networks. The other times, a process is killed while results are being
    computed. When a run has finished, its results are compared with the results of a run in a single process, and the
    next run starts in a new folder.
    """
    generator = random.Random(seed)
    summary = DdpSummary(launcher, processes)
    started = time.monotonic()
    subprocess.run(train_command(folder / "single", "", 1), check=True, capture_output=True)
    summary.single_process_seconds = time.monotonic() - started
    while summary.kills < kills or not summary.finished:
        run_folder = folder / f"run{summary.finished}"
        seconds = generator.uniform(1, max_wait)
        units = 0
        if summary.kills >= kills:
            seconds = 600.0  # the run finishes before this time, so that no process is killed
        elif summary.kills % 2:
            seconds = generator.uniform(0, 2)
            units = len(_journal(run_folder)) + generator.randrange(1, 4)
        with tempfile.TemporaryFile("w+") as output:
            tree = ProcessTree.start(train_command(run_folder, launcher, processes), run_folder, output)
            finished = _kill_one(tree, seconds, units, generator=generator, summary=summary)
        if finished:
            summary.finished += 1
            summary.different += _differences(run_folder, folder / "single")
    return summary


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.startswith(".")}


def _journal(folder: Path) -> list[str]:
    journal = folder / "journal"
    return journal.read_text().split() if journal.is_file() else []


def _kill_one(tree: ProcessTree, seconds: float, units: int, *, generator: random.Random, summary: DdpSummary) -> bool:
    """Wait until ``units`` results are written, wait ``seconds`` seconds, and kill a random process.

    The function adds the time until all processes have exited, and the errors of processes, to ``summary``.

    Returns:
        Whether the run has finished.
    """
    while tree.root.poll() is None and len(_journal(tree.folder)) < units:
        time.sleep(0.1)
    victim, num_others = _kill_random_process(tree, seconds, generator)
    killed_at = time.monotonic()
    summary.kills += bool(victim)
    _wait_for_exit(tree, victim, summary)
    exit_seconds = time.monotonic() - killed_at
    summary.slowest_exit = max(summary.slowest_exit, exit_seconds)
    output = tree.read_output()
    status = tree.root.returncode
    # If torchrun itself was killed, its ranks continue and may finish the run.
    finished = status == 0 or (victim == "torchrun" and (tree.folder / "run" / "results.json").is_file())
    should_report = num_others or not victim
    if not finished and should_report and not any(message in output for message in EXIT_MESSAGES):
        summary.silent.append(f"{victim}: {output[-1500:]}")
    print(
        f"killed {victim or 'nothing'}, {len(_journal(tree.folder))} units, exit after {exit_seconds:.1f} s, "
        f"{'finished' if finished else 'not finished'}",
        file=sys.stderr,
        flush=True,
    )
    return finished


def _kill_random_process(tree: ProcessTree, seconds: float, generator: random.Random) -> tuple[str, int]:
    """Kill a random process after ``seconds`` seconds.

    Returns:
        The role of the killed process, and the number of the other processes. If the run ended before ``seconds``
        seconds, the result is ``("", 0)``.
    """
    try:
        tree.root.wait(seconds)
        return "", 0
    except subprocess.TimeoutExpired:
        processes = tree.processes()
        victim = generator.choice(sorted(processes))
        os.kill(victim, signal.SIGKILL)
        return processes[victim], len(processes) - 1


def _wait_for_exit(tree: ProcessTree, victim: str, summary: DdpSummary) -> None:
    """Wait until all processes of the run have exited, and kill the processes that still run at the timeout.

    The timeout includes the duration of a full run, because the surviving ranks may finish the run.
    """
    timeout = EXIT_TIMEOUT_S + summary.single_process_seconds
    deadline = time.monotonic() + timeout
    while (remaining := tree.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid, role in remaining.items():
        summary.hanging.append(f"{role} was still running {timeout:.0f} s after {victim} was killed")
        os.kill(pid, signal.SIGKILL)
    tree.root.wait()


@dataclass(frozen=True)
class ProcessTree:
    """The process of a command, and all processes that the command starts.

    The processes are identified by an environment variable that they inherit from the process of the command.

    Attributes:
        root: process of the command.
        run_id: value of the environment variable ``RUN_ID_ENV`` in all processes of the command.
        folder: parent folder of the run's folder, which contains the journal file.
        output: file with the standard output and the standard error of the command.
    """

    root: subprocess.Popen
    run_id: str
    folder: Path
    output: IO[str]

    @classmethod
    def start(cls, command: list[str], folder: Path, output: IO[str]) -> ProcessTree:
        run_id = uuid4().hex
        environment = {**os.environ, RUN_ID_ENV: run_id}
        root = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        return cls(root, run_id, folder, output)

    def processes(self) -> dict[int, str]:
        """Return the role (``torchrun`` or ``rank N``) of each running process of the command, by process id."""
        self.root.poll()
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return {pid: role for pid in pids if (role := _role(pid, self.run_id))}

    def read_output(self) -> str:
        self.output.seek(0)
        return self.output.read()


def _role(pid: int, run_id: str) -> str:
    """Return the role of a process, which is ``torchrun`` or ``rank N``.

    The role is an empty string if the process is not running or does not belong to the run with the id ``run_id``.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return ""
    environment = dict(variable.partition("=")[::2] for variable in variables)
    if environment.get(RUN_ID_ENV) != run_id or state in "ZX":
        return ""
    return "torchrun" if "torch.distributed.run" in arguments else f"rank {environment.get('LOCAL_RANK', '0')}"


def _differences(folder: Path, single: Path) -> list[str]:
    """Return descriptions of the differences between a run and a run in a single process.

    A difference is a missing unit of work, a unit of work that was written twice, or a different result.

    Args:
        folder: parent folder of the run's folder.
        single: parent folder of the folder of the run in a single process.
    """
    units = sorted(_journal(folder))
    expected = sorted(_journal(single))
    differences = [] if units == expected else [f"{folder.name}: units are {units}, expected {expected}"]
    return differences + ([] if result_rows(folder) == result_rows(single) else [f"{folder.name}: results differ"])


def result_rows(folder: Path) -> list[dict]:
    """Return the rows of the ``results.json`` of a run, without measured durations."""
    rows = json.loads((folder / "run" / "results.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name not in ("t_init", "t_opt")} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="number of processes to kill")
    parser.add_argument("--processes", type=int, default=3, help="number of processes that run at the same time")
    parser.add_argument("--units", type=int, default=200, help="number of units of work in the default test")
    parser.add_argument("--pause", type=float, default=0.1, help="maximum seconds per unit of work in the default test")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--command", action="store_true", help="test independent processes of rare_concepts")
    parser.add_argument("--ddp", choices=["torchrun", "lightning"], help="test ranks that this launcher starts")
    parser.add_argument("--longest", type=float, default=60.0, help="with --ddp: maximum seconds before a kill")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--main-job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        return run_worker(options.work, options.units, options.pause)
    if options.main_job is not None:
        return run_main_job(options.main_job)
    with tempfile.TemporaryDirectory() as folder:
        summary = _run_test(Path(folder), options)
    print(json.dumps(asdict(summary)))
    sys.exit(not summary.passed)


def _run_test(folder: Path, options: argparse.Namespace) -> Summary | DdpSummary:
    kills = options.kills
    processes = options.processes
    seed = options.seed
    if options.ddp:
        return stress_ddp(folder, options.ddp, processes, kills=kills, max_wait=options.longest, seed=seed)
    if options.command:
        return stress_main_job(folder, kills, processes, seed=seed)
    return stress_units(folder, kills, processes, units=options.units, pause=options.pause, seed=seed)


if __name__ == "__main__":
    main()
