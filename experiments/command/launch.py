"""Several processes: what a launcher started is followed, and they wait for one another as long as it takes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from omegaconf import DictConfig

PATIENCE = timedelta(hours=1)
"""How long processes wait for one another where they meet: after loading, and between stages.

For units they wait by looking at the disk, as long as it takes.
"""
COUNTS = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Variables by which launchers tell a process how many they started."""


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
    if world == 1 or environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if "SLURM_STEP_ID" not in environment:
        raise ValueError(
            f"SLURM_NTASKS={world}, but srun did not start this process: put srun before the command, or ask Slurm for "
            "--ntasks=1."
        )
    nodes = int(environment.get("SLURM_NNODES", 1))
    if world % nodes:
        raise ValueError(f"SLURM_NTASKS={world} on SLURM_NNODES={nodes}: ask for --ntasks-per-node, as many on each.")
    return Launch("srun", world // nodes, nodes)


def follow_launcher(trainer: DictConfig) -> None:
    """Sets devices, nodes and strategy to the launcher's where the config leaves them at one process.

    Raises:
        ValueError: several processes were started, of which the config does not know, or each would start others.
    """
    found = launch()
    if (trainer.strategy, str(trainer.devices), trainer.num_nodes) != ("auto", "1", 1):
        if found is not None and re.search("spawn|fork|notebook", str(trainer.strategy)):
            raise ValueError(
                f"{found.launcher} started this process, and trainer.strategy={trainer.strategy} would start more: "
                "leave it out."
            )
        return
    if found is None:
        started = {name: os.environ[name] for name in COUNTS if os.environ.get(name, "1") not in ("", "1")}
        if started and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
            name, value = next(iter(started.items()))
            raise ValueError(
                f"{name}={value}, but each process would do all the work: start them by torchrun or srun, or one alone."
            )
        return
    trainer.devices, trainer.num_nodes, trainer.strategy = found.devices, found.nodes, "ddp"
    if found.launcher == "srun":
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(found.devices))  # without it Lightning refuses


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


def wait_long(units: bool = True) -> None:
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
