"""Distributed runs: the trainer's topology follows the launcher (torchrun, srun)."""

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
"""How long ranks wait for each other in collective operations: after loading, and between stages.

For units they wait without a limit, by polling the disk.
"""
WORLD_SIZE_VARS = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Environment variables in which launchers store the number of processes."""
INTERACTIVE_JOB_NAMES = ("bash", "interactive")
"""Slurm's names of the jobs of ``salloc`` and of ``srun --pty bash``."""
FIRST_RESERVED_STEP = 0xFFFFFFF0  # Slurm reserves step ids from here on, for example for the shell of salloc
PORTS = range(15000, 32000)  # below the ephemeral ports
CHILD_PROCESS_STRATEGIES = "spawn|fork|notebook"


@dataclass(frozen=True)
class Launcher:
    """Processes that a launcher started: ``devices`` on each of ``nodes``."""

    name: str
    devices: int
    nodes: int


def detect_launcher(environment: Mapping[str, str] = os.environ) -> Launcher | None:
    """Return the launcher that started this process together with others, or None.

    Raises:
        ValueError: Slurm has several tasks but srun did not start them, or their number differs between nodes.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        world_size = int(environment["WORLD_SIZE"])
        devices = int(environment["LOCAL_WORLD_SIZE"])
        return Launcher("torchrun", devices, world_size // devices) if world_size > 1 else None
    world_size = int(environment.get("SLURM_NTASKS", 1))
    if world_size == 1:
        return None
    if not _is_srun_task(environment):
        if environment.get("SLURM_JOB_NAME") in INTERACTIVE_JOB_NAMES:
            return None
        raise ValueError(
            f"SLURM_NTASKS={world_size}, but srun did not start this process: put srun before the command, or request "
            "--ntasks=1."
        )
    nodes = int(environment.get("SLURM_NNODES", 1))
    if world_size % nodes:
        raise ValueError(
            f"SLURM_NTASKS={world_size} is not divisible by SLURM_NNODES={nodes}: request --ntasks-per-node."
        )
    return Launcher("srun", world_size // nodes, nodes)


def _is_srun_task(environment: Mapping[str, str]) -> bool:
    """Return whether srun started this process, as opposed to a command in an interactive shell.

    The job's name is not sufficient: ``srun`` within ``salloc`` also belongs to a job named ``interactive``.
    """
    step = environment.get("SLURM_STEP_ID")
    if step is None or int(step) >= FIRST_RESERVED_STEP:
        return False
    # A step within such a shell inherits the shell's variables, but not its terminal.
    return "SLURM_PTY_PORT" not in environment or not _has_terminal(environment.get("SLURM_TASK_PID", "self"))


def _has_terminal(process: str) -> bool:
    try:
        return os.readlink(f"/proc/{process}/fd/0").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False


def apply_launcher_topology(trainer: DictConfig) -> None:
    """Set devices, nodes and strategy to the launcher's if the config has the defaults (one process).

    Raises:
        ValueError: several processes were started that the config does not account for, or each would start others, or
            they cannot connect.
    """
    launcher = detect_launcher()
    if launcher is not None and launcher.name == "srun":
        set_rendezvous(launcher)
    if (trainer.strategy, str(trainer.devices), trainer.num_nodes) != ("auto", "1", 1):
        if launcher is not None and re.search(CHILD_PROCESS_STRATEGIES, str(trainer.strategy)):
            raise ValueError(
                f"trainer.strategy={trainer.strategy} would start processes, but {launcher.name} has already started "
                "them: omit it."
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
            f"{name}={value}, but each process would compute everything: start them with torchrun or srun, or start "
            "one process."
        )


def set_rendezvous(launcher: Launcher) -> None:
    """Set address and port at which srun's processes connect, unless the user set them.

    Lightning would use the first node of the job and a port that depends on the job. A step may run on other nodes, two
    steps of a job would share the port, and a single node may be unable to resolve its own name.
    """
    os.environ["SLURM_NTASKS_PER_NODE"] = str(launcher.devices)  # Lightning compares it; it may be that of the job
    job = int(os.environ["SLURM_JOB_ID"])
    step = int(os.environ["SLURM_STEP_ID"])
    os.environ.setdefault("MASTER_PORT", str(PORTS[(job * 101 + step) % len(PORTS)]))
    nodes = os.environ["SLURM_STEP_NODELIST"]
    root = "127.0.0.1" if launcher.nodes == 1 else SLURMEnvironment.resolve_root_node_address(nodes)
    try:
        socket.getaddrinfo(os.environ.setdefault("MASTER_ADDR", root), None)
    except OSError as error:
        raise ValueError(
            f"MASTER_ADDR={os.environ['MASTER_ADDR']} cannot be resolved (by default the first node of "
            f"SLURM_STEP_NODELIST={nodes}): set it to a name or address of that node."
        ) from error


def cluster_environments() -> list[ClusterEnvironment]:
    """Return Lightning's plugin for a process in a Slurm job; an empty list elsewhere.

    Lightning decides by the name of the job and treats a job with one task as one process, regardless of
    ``trainer.devices``. Lightning's requeueing is off: ``install_watchdogs`` requeues, and runs resume from disk.
    """
    if "SLURM_NTASKS" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return []
    if detect_launcher() is None:
        return [LightningEnvironment()]
    with warnings.catch_warnings():  # Lightning does not recognize srun within salloc
        warnings.simplefilter("ignore")
        return [SLURMEnvironment(auto_requeue=False)]


def check_topology(trainer: Trainer, strategy: str) -> None:
    """Raise ValueError if the trainer's processes contradict the launcher or Hydra's multirun.

    Args:
        strategy: the config's ``trainer.strategy``.
    """
    launcher = detect_launcher()
    if launcher is not None and (trainer.num_devices, trainer.num_nodes) != (launcher.devices, launcher.nodes):
        raise ValueError(
            f"{launcher.name} started {launcher.devices} processes on each of {launcher.nodes} nodes, but "
            f"trainer.devices={trainer.num_devices} trainer.num_nodes={trainer.num_nodes}: omit both and "
            "trainer.strategy; they are set automatically."
        )
    if multirun() and trainer.world_size > 1 and launcher is None and not re.search(CHILD_PROCESS_STRATEGIES, strategy):
        raise ValueError(
            "Hydra's multirun (-m) cannot be combined with trainer.strategy=ddp, because each process would repeat the "
            "sweep: use one device, trainer.strategy=ddp_spawn, or a W&B sweep."
        )


def set_process_group_timeout(units: bool = True) -> None:
    """Set the timeout of DDP process groups to ``PROCESS_GROUP_TIMEOUT`` instead of half an hour.

    Processes that share ``units`` use gloo, also on GPUs. They exchange no gradients, and gloo reports a dead peer at
    once, while NCCL would wait.
    """
    for name in StrategyRegistry.available_strategies():
        entry = StrategyRegistry[name]
        if entry["strategy"] is DDPStrategy:
            options = {**entry["init_params"], "timeout": PROCESS_GROUP_TIMEOUT}
            options["process_group_backend"] = "gloo" if units else None
            StrategyRegistry.register(name, DDPStrategy, entry["description"], override=True, **options)
