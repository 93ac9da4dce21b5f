"""Distributed runs: settings that the trainer takes from the launcher of its processes (torchrun or srun)."""

from __future__ import annotations

import os
import re
import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from omegaconf import DictConfig

from experiments.config.run_dir import multirun

PROCESS_GROUP_TIMEOUT = timedelta(hours=1)
"""Timeout of collective operations of PyTorch, in which ranks wait for each other.

A rank that waits for results of other ranks does not use collective operations, but polls the disk without a timeout.
"""
WORLD_SIZE_VARS = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Environment variables in which launchers set the number of processes."""
TORCHRUN_VARS = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets for each process."""
ROOT_PID_ENV = "ROOT_PID_OF_THE_RUN"
"""Environment variable through which Lightning's child processes know the id of the process that started the run."""
INTERACTIVE_JOB_NAMES = ("bash", "interactive")
"""Slurm job names of interactive shells, which ``salloc`` and ``srun --pty bash`` start."""
FIRST_RESERVED_STEP = 0xFFFFFFF0  # Slurm reserves job step ids from this value on, for example for the shell of salloc
PORTS = range(15000, 32000)  # ports at which processes connect, below the ports that Linux assigns automatically
CHILD_PROCESS_STRATEGIES = "spawn|fork|notebook"
"""Pattern in the names of those Lightning strategies that start child processes of the main process."""


@dataclass(frozen=True)
class Launcher:
    """The launcher that started the processes of this run.

    Attributes:
        name: name of the launcher.
        devices: number of processes on each node.
        nodes: number of nodes.
    """

    name: str
    devices: int
    nodes: int


def detect_launcher(environment: Mapping[str, str] = os.environ) -> Launcher | None:
    """Return the launcher that started several processes of this run, or None if there is only this process.

    Raises:
        ValueError: an environment variable of the launcher is missing or invalid, the Slurm job has several tasks that
            srun did not start, or the number of tasks differs between nodes.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        if missing := [name for name in TORCHRUN_VARS if not environment.get(name)]:
            raise ValueError(
                f"{missing[0]} is not set, but TORCHELASTIC_RUN_ID={environment['TORCHELASTIC_RUN_ID']}: start the "
                "processes with torchrun, or unset TORCHELASTIC_RUN_ID."
            )
        for name in ("RANK", "LOCAL_RANK"):
            _integer(environment, name, 0)
        world_size = _integer(environment, "WORLD_SIZE")
        devices = _integer(environment, "LOCAL_WORLD_SIZE")
        return Launcher("torchrun", devices, world_size // devices) if world_size > 1 else None
    world_size = _integer(environment, "SLURM_NTASKS")
    if world_size == 1:
        return None
    if not _is_srun_task(environment):
        if environment.get("SLURM_JOB_NAME") in INTERACTIVE_JOB_NAMES:
            return None
        raise ValueError(
            f"SLURM_NTASKS={world_size}, but srun did not start this process: put srun before the command, or request "
            "--ntasks=1."
        )
    nodes = _integer(environment, "SLURM_NNODES")
    if world_size % nodes:
        raise ValueError(
            f"SLURM_NTASKS={world_size} is not divisible by SLURM_NNODES={nodes}: request --ntasks-per-node."
        )
    return Launcher("srun", world_size // nodes, nodes)


def _integer(environment: Mapping[str, str], name: str, minimum: int = 1) -> int:
    """Return the environment variable ``name`` as an integer, or 1 if the variable is not set.

    Raises:
        ValueError: the variable is not an integer, or is less than ``minimum``.
    """
    value = environment.get(name, "1")
    if not value.isdecimal() or int(value) < minimum:
        raise ValueError(f"{name}={value}: must be an integer >= {minimum}; correct or unset this variable.")
    return int(value)


def is_child_of_lightning() -> bool:
    """Return whether this process is a child process that Lightning has started for another device."""
    return "LOCAL_RANK" in os.environ and os.environ.get(ROOT_PID_ENV) == str(os.getppid())


def _is_srun_task(environment: Mapping[str, str]) -> bool:
    """Return whether srun started this process, rather than a user in an interactive shell.

    The function does not read the name of the Slurm job, because srun can also start processes in a job that is named
    ``interactive``.
    """
    if "SLURM_STEP_ID" not in environment or _integer(environment, "SLURM_STEP_ID", 0) >= FIRST_RESERVED_STEP:
        return False
    # A process that srun starts from an interactive shell inherits the shell's variables, but not its terminal.
    return "SLURM_PTY_PORT" not in environment or not _has_terminal(environment.get("SLURM_TASK_PID", "self"))


def _has_terminal(process: str) -> bool:
    try:
        return os.readlink(f"/proc/{process}/fd/0").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False


def apply_launcher_topology(trainer: DictConfig) -> None:
    """Configure the trainer for the processes that torchrun or srun started: number of devices and nodes, and DDP.

    The config is not modified if the user has set ``trainer.strategy``, ``trainer.devices`` or ``trainer.num_nodes``.
    The config is not modified either if there is only one process.

    Args:
        trainer: the section ``trainer`` of the config, which is modified in place.

    Raises:
        ValueError: a launcher other than torchrun and srun started several processes, ``trainer.strategy`` would start
            additional processes, or the address at which the processes connect cannot be resolved.
    """
    launcher = detect_launcher()
    if launcher is not None and launcher.name == "srun":
        set_rendezvous(launcher)
    if (trainer.strategy, str(trainer.devices), trainer.num_nodes) != ("auto", "1", 1):
        if launcher is not None and re.search(CHILD_PROCESS_STRATEGIES, str(trainer.strategy)):
            raise ValueError(
                f"trainer.strategy={trainer.strategy} would start processes, but {launcher.name} has already started "
                "the processes: omit trainer.strategy."
            )
        return
    if launcher is None:
        _check_no_unknown_launcher()
        return
    trainer.devices = launcher.devices
    trainer.num_nodes = launcher.nodes
    trainer.strategy = "ddp"


def _check_no_unknown_launcher() -> None:
    sizes = {name: os.environ[name] for name in WORLD_SIZE_VARS if os.environ.get(name, "1") not in ("", "1")}
    if sizes and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE_JOB_NAMES:
        name, value = next(iter(sizes.items()))
        raise ValueError(
            f"{name}={value}, but each process would compute the full run, because the launcher of the processes is "
            "unknown: start the processes with torchrun or srun, or start only one process."
        )


def set_rendezvous(launcher: Launcher) -> None:
    """Set MASTER_ADDR and MASTER_PORT, at which the processes of srun connect, if these variables are not set.

    By default, Lightning connects to the first node of the Slurm job, at a port that depends only on the job. The
    default of Lightning fails if the job step does not run on the first node, or if a node cannot resolve its own name.
    The default also fails if two steps of the job run at the same time.
    """
    # Lightning requires that SLURM_NTASKS_PER_NODE is equal to trainer.devices. Slurm may have set the variable to the
    # value of the whole job, which can differ from the value of this job step.
    os.environ["SLURM_NTASKS_PER_NODE"] = str(launcher.devices)
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"):
        if not os.environ.get(name):
            raise ValueError(f"{name} is not set, but SLURM_NTASKS is: start the processes with srun.")
    job = _integer(os.environ, "SLURM_JOB_ID", 0)
    step = _integer(os.environ, "SLURM_STEP_ID", 0)
    os.environ.setdefault("MASTER_PORT", str(PORTS[(job * 101 + step) % len(PORTS)]))
    nodes = os.environ["SLURM_STEP_NODELIST"]
    root = "127.0.0.1" if launcher.nodes == 1 else SLURMEnvironment.resolve_root_node_address(nodes)
    try:
        socket.getaddrinfo(os.environ.setdefault("MASTER_ADDR", root), None)
    except OSError as error:
        raise ValueError(
            f"MASTER_ADDR={os.environ['MASTER_ADDR']} cannot be resolved (by default the first node of "
            f"SLURM_STEP_NODELIST={nodes}): set MASTER_ADDR to a name or address of that node."
        ) from error


def cluster_environments() -> list[ClusterEnvironment]:
    """Return Lightning's cluster plugin for a process in a Slurm job, or an empty list outside of Slurm.

    Without this plugin, Lightning would choose its cluster plugin by the name of the Slurm job. Lightning would also
    run a Slurm job with one task in one process, even if ``trainer.devices`` is larger than 1. The option
    ``auto_requeue`` of Lightning is off, because ``install_watchdogs`` requeues the Slurm job.
    """
    if "SLURM_NTASKS" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return []
    if detect_launcher() is None:
        return [LightningEnvironment()]
    with warnings.catch_warnings():  # if srun runs within salloc, Lightning wrongly warns that srun is not used
        warnings.simplefilter("ignore")
        return [SLURMEnvironment(auto_requeue=False)]


def check_topology(trainer: Trainer, strategy: str) -> None:
    """Raise ValueError if the number of processes of the trainer contradicts the launcher or Hydra's multirun.

    Args:
        trainer: the trainer.
        strategy: value of the config key ``trainer.strategy``.
    """
    launcher = detect_launcher()
    if launcher is not None and (trainer.num_devices, trainer.num_nodes) != (launcher.devices, launcher.nodes):
        raise ValueError(
            f"{launcher.name} started {launcher.devices} processes on each of {launcher.nodes} nodes, but "
            f"trainer.devices={trainer.num_devices} trainer.num_nodes={trainer.num_nodes}: omit trainer.devices, "
            "trainer.num_nodes and trainer.strategy, which are set automatically."
        )
    if multirun() and trainer.world_size > 1 and launcher is None and not re.search(CHILD_PROCESS_STRATEGIES, strategy):
        raise ValueError(
            "Hydra's multirun (-m) cannot be combined with trainer.strategy=ddp, because each process would repeat the "
            "sweep: use one device, trainer.strategy=ddp_spawn, or a W&B sweep."
        )


def set_process_group_timeout(units: bool = True) -> None:
    """Set the timeout of DDP process groups to ``PROCESS_GROUP_TIMEOUT``, and choose their communication backend.

    PyTorch's default timeout is half an hour.

    Args:
        units: False for a training; True for a run that trains no network, whose processes exchange no gradients. If
            ``units`` is True, the backend is gloo, also on GPUs. Gloo reports a dead process at once, whereas NCCL
            waits for the dead process.
    """
    for name in StrategyRegistry.available_strategies():
        entry = StrategyRegistry[name]
        if entry["strategy"] is DDPStrategy:
            options = {**entry["init_params"], "timeout": PROCESS_GROUP_TIMEOUT}
            options["process_group_backend"] = "gloo" if units else None
            StrategyRegistry.register(name, DDPStrategy, entry["description"], override=True, **options)
