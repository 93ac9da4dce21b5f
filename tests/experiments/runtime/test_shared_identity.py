"""All processes of a run write to one folder, although each process resolves the time in the config itself."""

import os

import pytest
from omegaconf import OmegaConf
from torch.distributed import TCPStore

from experiments.config import run_dir as run_dir_module
from experiments.config.run_dir import START_TIME_ENV, fix_time
from experiments.config.run_settings import first_difference, run_settings
from experiments.runtime.distributed import ROOT_PID_ENV, WORLD_SIZE_VARS
from experiments.runtime.shared_identity import RUN_DIR_ENV, share_identity
from tests.experiments.runtime.test_distributed import SRUN, TORCHRUN

LAUNCHER_VARS = (*WORLD_SIZE_VARS, *TORCHRUN, *SRUN, "TORCHELASTIC_USE_AGENT_STORE", "WANDB_SWEEP_ID", ROOT_PID_ENV,
                 RUN_DIR_ENV, START_TIME_ENV)  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """Remove the variables of every launcher; each process gets another time."""
    for name in LAUNCHER_VARS:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it after the test
        monkeypatch.delenv(name)
    times = iter(f"2026-01-02T03:04:{second:02}" for second in range(60))

    class Clock(run_dir_module.datetime):
        @classmethod
        def now(cls):
            return cls.fromisoformat(next(times))

    monkeypatch.setattr(run_dir_module, "datetime", Clock)
    return monkeypatch


def process(run_dir: str = "runs/${now:%H-%M-%S}", **trainer) -> tuple[str, str]:
    """Return the run folder and the output of a process of the run."""
    fix_time()
    options = {"num_nodes": 1} | trainer
    config = OmegaConf.create({"run_dir": run_dir, "trainer": options, "task": {"output": "out/${now:%S}"}})
    assert config.run_dir and config.task.output  # resolved before the processes agree
    share_identity(config)
    return config.run_dir, config.task.output


def test_child_of_lightning_has_the_folder_and_time_of_its_parent(environment):
    parent = process()
    assert process() != parent  # another run, a second later
    parent = process()
    environment.setenv("LOCAL_RANK", "1")
    environment.setenv(ROOT_PID_ENV, str(os.getppid()))
    assert process() == parent
    assert process("runs/${oc.env:LOCAL_RANK}")[0] == parent[0]


def test_processes_of_torchrun_have_the_folder_and_time_of_rank_0(environment):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = TORCHRUN | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in (variables | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        environment.setenv(name, value)
    folders = []
    for rank in ("0", "1", "0"):  # torchrun may start the processes again
        environment.delenv(START_TIME_ENV, raising=False)
        environment.setenv("RANK", rank)
        folders.append(process())
    assert folders == [("runs/03-04-00", "out/00")] * 3


@pytest.mark.parametrize("variables", [SRUN, TORCHRUN])
def test_independent_processes_cannot_have_the_time_in_the_config(environment, variables):
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(ValueError, match=r"run_dir: must not depend on \$\{now:\.\.\.\}, because each process"):
        process()
    assert share(OmegaConf.create({"run_dir": "runs/a", "trainer": {"num_nodes": 1}})) == "runs/a"


def test_nodes_without_launcher_cannot_have_the_time_in_the_config(environment):
    with pytest.raises(ValueError, match="run_dir: must not depend on"):
        process(num_nodes=2)


def share(config) -> str:
    share_identity(config)
    return config.run_dir


def test_sweep_without_run_raises(environment):
    environment.setenv("WANDB_SWEEP_ID", "x")
    with pytest.raises(ValueError, match=r"WANDB_SWEEP_ID=x, but WANDB_RUN_ID is not set: start the run with `wandb"):
        process()


def test_settings_do_not_depend_on_folder_or_trainer():
    first = OmegaConf.create(
        {"run_dir": "a", "trainer": {"devices": 1}, "task": {"output": "${run_dir}/model", "lr": 1}}
    )
    second = OmegaConf.create(
        {"run_dir": "/b", "trainer": {"devices": 2}, "task": {"output": "${run_dir}/model", "lr": 2}}
    )
    assert first_difference(run_settings(first), run_settings(second)) == ("task.lr", 1, 2)
    second.task.lr = 1
    assert first_difference(run_settings(first), run_settings(second)) is None
    assert first_difference({"a": {}}, {"a": {"b": 1}}) == ("a.b", None, 1)
    assert first_difference({"a": [1], "c": 2}, {"a": [1]}) == ("c", 2, None)
