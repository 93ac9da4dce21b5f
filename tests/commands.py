"""``python train.py``: as users start it, in a process that has imported everything already, and in this process."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import train

CONFIGS = str(Path("configs").resolve())
ENVIRONMENT = {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
LONGEST = 600.0  # seconds
IMPORTED = multiprocessing.get_context("forkserver")
IMPORTED.set_forkserver_preload(["train"])


def command(*overrides: str) -> subprocess.CompletedProcess:
    """The command, as it is typed."""
    return subprocess.run(
        [sys.executable, "train.py", *overrides], capture_output=True, text=True, env=os.environ | ENVIRONMENT,
        check=False,
    )  # fmt: skip


def begun(*overrides: str) -> Callable[[], subprocess.CompletedProcess]:
    """Starts the command in a process of its own that is spared the ten seconds of imports; a call awaits its end."""
    folder = tempfile.TemporaryDirectory()
    files = [f"{folder.name}/{name}" for name in ("stdout", "stderr")]
    process = IMPORTED.Process(target=_begin, args=(overrides, *files))
    process.start()

    def finished() -> subprocess.CompletedProcess:
        with folder:
            process.join(LONGEST)
            process.kill()  # does nothing to one that has ended
            process.join()
            return subprocess.CompletedProcess(overrides, process.exitcode, *(Path(file).read_text() for file in files))

    return finished


def forked(*overrides: str) -> subprocess.CompletedProcess:
    """The command as :func:`begun`, to its end."""
    return begun(*overrides)()


def _begin(overrides: tuple[str, ...], *files: str) -> None:
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(ENVIRONMENT)
    sys.argv = ["train.py", *overrides]
    runpy.run_path("train.py", run_name="__main__")


def composed(*overrides: str) -> DictConfig:
    """The command's configuration."""
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("train", list(overrides))


def carried_out(*overrides: str) -> None:
    """The same in this process."""
    config = composed(*overrides)
    task, trainer = train.prepare(config)
    train.note(trainer.loggers, config)
    try:
        task.run(trainer)
    finally:
        train.close(trainer.loggers)
