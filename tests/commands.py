"""Run ``python train.py`` in a new process, in a forked process that has imported everything, or in this process."""

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

from experiments.runtime.loggers import finish_loggers, log_config
from experiments.runtime.setup import setup

CONFIGS = str(Path("configs").resolve())
ENVIRONMENT = {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
TIMEOUT_S = 600.0
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["train", "experiments.runtime.setup", "experiments.inversion.task", "experiments.rare_concepts", "rnri.api"]
)


def command(*overrides: str) -> subprocess.CompletedProcess:
    """Run the command in a new process."""
    return subprocess.run(
        [sys.executable, "train.py", *overrides],
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
        check=False,
    )


def start(*overrides: str) -> Callable[[], subprocess.CompletedProcess]:
    """Start the command in a forked process, which saves its imports; calling the result waits for its end."""
    folder = tempfile.TemporaryDirectory()
    files = [f"{folder.name}/{name}" for name in ("stdout", "stderr")]
    process = FORKSERVER.Process(target=_run, args=(overrides, *files))
    process.start()

    def wait() -> subprocess.CompletedProcess:
        with folder:
            process.join(TIMEOUT_S)
            process.kill()  # has no effect on a process that has ended
            process.join()
            return subprocess.CompletedProcess(overrides, process.exitcode, *(Path(file).read_text() for file in files))

    return wait


def forked(*overrides: str) -> subprocess.CompletedProcess:
    """Run the command in a forked process and wait for its end."""
    return start(*overrides)()


def _run(overrides: tuple[str, ...], *files: str) -> None:
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(ENVIRONMENT)
    sys.argv = ["train.py", *overrides]
    runpy.run_path("train.py", run_name="__main__")


def composed(*overrides: str) -> DictConfig:
    """Compose the command's config."""
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("train", list(overrides))


def run_in_process(*overrides: str) -> None:
    """Run the command in this process."""
    config = composed(*overrides)
    task, trainer = setup(config)
    log_config(trainer.loggers, config)
    try:
        task.run(trainer)
    finally:
        finish_loggers(trainer.loggers)
