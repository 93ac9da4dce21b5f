"""Several processes: what a launcher started is followed, and they wait for one another as long as it takes."""

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

PATIENCE = timedelta(hours=1)
"""How long processes wait for one another where they meet: after loading, and between stages.

For units they wait by looking at the disk, as long as it takes.
"""
COUNTS = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Variables by which launchers tell a process how many they started."""
SHELLS = ("bash", "interactive")
"""What Slurm calls a job of ``salloc`` or of ``srun --pty bash``."""
LEAST_SPECIAL_STEP = 0xFFFFFFF0  # numbers from here on are Slurm's own, as that of salloc's shell
PORTS = range(15000, 32000)  # below those that a system gives away by itself


@dataclass(frozen=True)
class Launch:
    """Processes that a launcher started: ``devices`` on each of ``nodes``."""

    launcher: str
    devices: int
    nodes: int


def launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What torchrun or srun started this process among; None where it is alone or Lightning started it.

    Raises:
        ValueError: Slurm has several tasks, but srun has not started them; or not as many on each node.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        world, local = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        return Launch("torchrun", local, world // local) if world > 1 else None
    world = int(environment.get("SLURM_NTASKS", 1))
    if world == 1:
        return None
    if not _is_task(environment):
        if environment.get("SLURM_JOB_NAME") in SHELLS:
            return None
        raise ValueError(
            f"SLURM_NTASKS={world}, but srun did not start this process: put srun before the command, or ask Slurm for "
            "--ntasks=1."
        )
    nodes = int(environment.get("SLURM_NNODES", 1))
    if world % nodes:
        raise ValueError(f"SLURM_NTASKS={world} on SLURM_NNODES={nodes}: ask for --ntasks-per-node, as many on each.")
    return Launch("srun", world // nodes, nodes)


def _is_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process for the work, and not a shell in which somebody typed the command.

    The job's name does not tell: ``srun`` within ``salloc`` is of a job named ``interactive``, too.
    """
    step = environment.get("SLURM_STEP_ID")
    if step is None or int(step) >= LEAST_SPECIAL_STEP:
        return False
    # A step within such a shell inherits the shell's variables, but not its terminal.
    return "SLURM_PTY_PORT" not in environment or not _has_terminal(environment.get("SLURM_TASK_PID", "self"))


def _has_terminal(process: str) -> bool:
    try:
        return os.readlink(f"/proc/{process}/fd/0").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False


def apply_launcher_topology(trainer: DictConfig) -> None:
    """Sets devices, nodes and strategy to the launcher's where the config leaves them at one process.

    Raises:
        ValueError: several processes were started, of which the config does not know, or each would start others; or
            they could not find each other.
    """
    found = launch()
    if found is not None and found.launcher == "srun":
        set_rendezvous(found)
    if (trainer.strategy, str(trainer.devices), trainer.num_nodes) != ("auto", "1", 1):
        if found is not None and re.search("spawn|fork|notebook", str(trainer.strategy)):
            raise ValueError(
                f"{found.launcher} started this process, and trainer.strategy={trainer.strategy} would start more: "
                "leave it out."
            )
        return
    if found is None:
        started = {name: os.environ[name] for name in COUNTS if os.environ.get(name, "1") not in ("", "1")}
        if started and os.environ.get("SLURM_JOB_NAME") not in SHELLS:
            name, value = next(iter(started.items()))
            raise ValueError(
                f"{name}={value}, but each process would do all the work: start them by torchrun or srun, or one alone."
            )
        return
    trainer.devices, trainer.num_nodes, trainer.strategy = found.devices, found.nodes, "ddp"


def set_rendezvous(found: Launch) -> None:
    """Sets where srun's processes meet, unless the user did: Lightning takes the job's first node, and a port by job.

    A step may be on other nodes, two steps of a job would share that port, and one node need not know its own name.
    """
    os.environ["SLURM_NTASKS_PER_NODE"] = str(found.devices)  # the job's, if any; Lightning compares it
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])
    os.environ.setdefault("MASTER_PORT", str(PORTS[(job * 101 + step) % len(PORTS)]))
    listed = os.environ["SLURM_STEP_NODELIST"]
    first = "127.0.0.1" if found.nodes == 1 else SLURMEnvironment.resolve_root_node_address(listed)
    try:
        socket.getaddrinfo(os.environ.setdefault("MASTER_ADDR", first), None)
    except OSError as error:
        raise ValueError(
            f"MASTER_ADDR={os.environ['MASTER_ADDR']}, the first node of SLURM_STEP_NODELIST={listed} unless it was "
            "set, has no address here: set it to a name or an address of that node."
        ) from error


def environments() -> list[ClusterEnvironment]:
    """Lightning's plugin for a process in a Slurm job; none elsewhere, where its own choice is right.

    Lightning decides by the job's name and takes a job of one task for one process, whatever ``trainer.devices``. A job
    is queued again by ``install_watchdogs``: runs go on from what they have on disk, not from Lightning's own checkpoint.
    """
    if "SLURM_NTASKS" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return []
    if launch() is None:
        return [LightningEnvironment()]
    with warnings.catch_warnings():  # Lightning takes srun within salloc for no srun
        warnings.simplefilter("ignore")
        return [SLURMEnvironment(auto_requeue=False)]


def check_launch(trainer: Trainer) -> None:
    """ValueError where a launcher started another number of processes than the trainer counts on."""
    found = launch()
    if found is None:
        return
    if (trainer.num_devices, trainer.num_nodes) != (found.devices, found.nodes):
        raise ValueError(
            f"{found.launcher} started {found.devices} processes on each of {found.nodes} nodes, but "
            f"trainer.devices={trainer.num_devices} trainer.num_nodes={trainer.num_nodes}: leave both and "
            "trainer.strategy out, and they follow."
        )


def set_process_group_timeout(units: bool = True) -> None:
    """Lets the processes of every kind of DDP wait for one another for ``PATIENCE`` instead of half an hour.

    Those that share ``units`` speak by gloo, on GPUs too: they exchange no gradients, and where one has died the others
    hear of it at once, while NCCL's would wait.
    """
    for name in StrategyRegistry.available_strategies():
        known = StrategyRegistry[name]
        if known["strategy"] is DDPStrategy:
            options = {**known["init_params"], "timeout": PATIENCE}
            options["process_group_backend"] = "gloo" if units else None
            StrategyRegistry.register(name, DDPStrategy, known["description"], override=True, **options)
