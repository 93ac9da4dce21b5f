"""Run ``python train.py`` in this process, or in a forked process, in which all modules are imported already."""

import copy
import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from experiments.runtime.loggers import finish_loggers, log_config
from experiments.runtime.setup import setup

PROJECT = Path(__file__).resolve().parents[1]
CONFIGS = str(PROJECT / "configs")
ENVIRONMENT = {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
TIMEOUT_S = 600.0
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["train", "experiments.runtime.setup", "experiments.inversion.task", "experiments.rare_concepts", "rnri.api"]
)


def start(*overrides: str, folder: Path = PROJECT) -> Callable[[], subprocess.CompletedProcess]:
    """Start the command in a forked process, which saves its imports; calling the result waits for its end.

    Args:
        folder: working directory, whose modules can be imported.
    """
    output = tempfile.TemporaryDirectory()
    files = [f"{output.name}/{name}" for name in ("stdout", "stderr")]
    process = FORKSERVER.Process(target=_run, args=(overrides, folder, *files))
    process.start()

    def wait() -> subprocess.CompletedProcess:
        with output:
            process.join(TIMEOUT_S)
            process.kill()  # has no effect on a process that has ended
            process.join()
            return subprocess.CompletedProcess(overrides, process.exitcode, *(Path(file).read_text() for file in files))

    return wait


def forked(*overrides: str, folder: Path = PROJECT) -> subprocess.CompletedProcess:
    """Run the command in a forked process and wait for its end."""
    return start(*overrides, folder=folder)()


def _run(overrides: tuple[str, ...], folder: Path, *files: str) -> None:
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(ENVIRONMENT)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    program = str(PROJECT / "train.py")
    sys.argv = [program, *overrides]
    runpy.run_path(program, run_name="__main__")


def composed(*overrides: str) -> DictConfig:
    """Compose the command's config; equal choices of config groups are composed once in a process."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [override for override in parsed if _is_value(override)]
    config = copy.deepcopy(_composed(*(override.input_line for override in parsed if override not in values)))
    ConfigLoaderImpl._apply_overrides_to_config(values, config)  # the last step of Hydra's composition
    return config


def _is_value(override: Override) -> bool:
    """Whether an override sets the value of a key, and neither chooses an option of a config group nor sweeps."""
    is_group = Path(CONFIGS, override.key_or_group).is_dir() or override.key_or_group.startswith("hydra")
    return not (override.is_sweep_override() or is_group) or isinstance(override.value(), dict)


@functools.cache
def _composed(*overrides: str) -> DictConfig:
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
