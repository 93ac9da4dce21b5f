"""Agreement of all processes of a run on the folder of the run.

Each process composes the config independently of the other processes. A folder whose name depends on the time, such as
``run_dir=runs/${now:%H-%M-%S}``, could therefore be different in each process.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch.distributed import DistError, TCPStore

from experiments.config.run_dir import START_TIME_ENV, fix_time, run_folder
from experiments.runtime.distributed import detect_launcher, is_child_of_lightning
from experiments.runtime.unit_queue import PEER_DIED_MESSAGE

RUN_DIR_ENV = "RUN_DIR_OF_THE_RUN"
"""Environment variable through which Lightning's child processes know the folder of the run."""
STORE_KEY = "identity_of_the_run"
STORE_TIMEOUT = timedelta(hours=1)


def share_identity(config: DictConfig) -> None:
    """Replace ``config.run_dir`` by the folder of this run, which is the same in all processes of the run.

    Processes that Lightning starts read the folder of rank 0 from an environment variable. Processes that torchrun
    starts or restarts read the folder and the start time of rank 0 from torchrun's rendezvous store.

    Raises:
        ValueError: the folder depends on the time, and the processes cannot agree on the time, because they are started
            independently of each other.
    """
    folder = run_folder(config.run_dir)
    if is_child_of_lightning():
        folder = os.environ[RUN_DIR_ENV]
    elif detect_launcher() is not None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        folder, started = _from_rank_0([folder, os.environ.get(START_TIME_ENV, "")])
        fix_time(started)
        OmegaConf.clear_cache(config)
    elif detect_launcher() is not None or config.trainer.num_nodes > 1:
        _check_no_time(config)
    config.run_dir = os.environ[RUN_DIR_ENV] = folder


def _from_rank_0(value: list[str]) -> list[str]:
    """Return the ``value`` of the process with rank 0, read from torchrun's rendezvous store."""
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=STORE_TIMEOUT
        )
        if os.environ["RANK"] == "0":
            store.compare_set(STORE_KEY, "", json.dumps(value))
        return json.loads(store.get(STORE_KEY))
    except DistError as error:
        raise ValueError(PEER_DIED_MESSAGE) from error


def _check_no_time(config: DictConfig) -> None:
    """Raise ValueError if a value of the config contains the time, which differs between independent processes."""
    text = OmegaConf.to_yaml(config)
    if HydraConfig.initialized():
        text += " ".join(HydraConfig.get().overrides.hydra)
    if "${now:" in text:
        raise ValueError(
            "run_dir: must not depend on ${now:...}, because each process would resolve it to another time; set "
            "run_dir to one name for all processes, for example run_dir='runs/${oc.env:SLURM_JOB_ID}'."
        )
