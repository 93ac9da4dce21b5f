"""Processes that a launcher started are followed, or said; none does all the work silently."""

import logging
from datetime import timedelta

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from omegaconf import OmegaConf
from wandb.sdk.lib.config_util import save_config_file_from_dict

from experiments.runtime.distributed import (
    COUNTS,
    PATIENCE,
    Launch,
    apply_launcher_topology,
    check_launch,
    environments,
    launch,
    set_process_group_timeout,
)
from experiments.runtime.loggers import check_account, resume, silence_tips

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "job",
        "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "12", "SLURM_STEP_NODELIST": "localhost,other",
        "SLURM_NODELIST": "n[1-3]"}  # fmt: skip
ONE_NODE = SRUN | {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_STEP_NODELIST": "n1"}
# As Slurm 22.05 sets it in the shells of `salloc -n2` (with and without use_interactive_step), of
# `srun -n2 --pty bash`, and in a step within them.
SALLOC = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "interactive", "SLURM_JOB_ID": "12"}
SALLOC_STEP = SALLOC | {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0", "SLURM_PTY_PORT": "36663"}
PTY = ONE_NODE | {"SLURM_JOB_NAME": "bash", "SLURM_PTY_PORT": "42471"}
IN_SALLOC = ONE_NODE | {"SLURM_JOB_NAME": "interactive"}
IN_SALLOC_STEP = IN_SALLOC | {"SLURM_PTY_PORT": "36663"}
PLACES = ("MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS_PER_NODE")


@pytest.fixture
def alone(monkeypatch):
    """No launcher's variables, whatever starts the tests."""
    for name in (*COUNTS, *TORCHRUN, *SRUN, *PLACES, "SLURM_PTY_PORT", "SLURM_TASK_PID"):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone after the test
        monkeypatch.delenv(name)
    return monkeypatch


def start(monkeypatch, environment) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def flags(**changes):
    return OmegaConf.create({"devices": 1, "num_nodes": 1, "strategy": "auto"} | changes)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, Launch("torchrun", 2, 2)),
        (TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, None),
        (SRUN, Launch("srun", 2, 2)),
        (SRUN | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, None),
        (SRUN | {"SLURM_JOB_NAME": "bash"}, Launch("srun", 2, 2)),  # srun bash script.sh
        (SALLOC, None),
        (SALLOC_STEP, None),
        (IN_SALLOC, Launch("srun", 2, 1)),
        (IN_SALLOC_STEP, Launch("srun", 2, 1)),
        (SRUN | TORCHRUN, Launch("torchrun", 2, 2)),  # torchrun inside a job
    ],
)
def test_launchers_are_known_by_their_variables(environment, expected):
    assert launch(environment) == expected


def test_a_shell_that_srun_opened_is_alone_and_a_step_within_it_is_not(monkeypatch):
    """Both have the shell's variables; the shell, process 7 here, has a terminal."""
    terminals = {"/proc/7/fd/0": "/dev/pts/3", "/proc/8/fd/0": "pipe:[123]"}
    monkeypatch.setattr("experiments.runtime.distributed.os.readlink", terminals.__getitem__)
    assert launch(PTY | {"SLURM_TASK_PID": "7"}) is None
    assert launch(PTY | {"SLURM_TASK_PID": "8", "SLURM_STEP_ID": "1"}) == Launch("srun", 2, 1)


@pytest.mark.parametrize(
    ("environment", "address"), [(ONE_NODE, "127.0.0.1"), (SRUN, "localhost"), (SRUN | {"MASTER_ADDR": "::1"}, "::1")]
)
def test_steps_of_a_job_meet_at_places_of_their_own(alone, environment, address):
    ports = set()
    for step in ("0", "1"):
        for name in PLACES:
            alone.delenv(name, raising=False)
        start(alone, environment | {"SLURM_STEP_ID": step})
        apply_launcher_topology(flags())
        (found,) = environments()
        assert isinstance(found, SLURMEnvironment) and found.main_address == address
        ports.add(found.main_port)
    assert len(ports) == 2


def test_a_first_node_without_an_address_is_said_at_once(alone):
    start(alone, SRUN | {"SLURM_STEP_NODELIST": "no-such-node.invalid,other"})
    with pytest.raises(
        ValueError, match=r"MASTER_ADDR=no-such-node\.invalid, the first node of .* has no address here"
    ):
        apply_launcher_topology(flags())


def test_lightning_follows_a_step_whatever_the_job_is_called_and_however_many_tasks_it_asked_for(alone):
    start(alone, ONE_NODE | {"SLURM_JOB_NAME": "interactive", "SLURM_NTASKS_PER_NODE": "8", "SLURM_PROCID": "1"})
    options = flags(accelerator="cpu", logger=False)
    apply_launcher_topology(options)
    set_process_group_timeout()
    trainer = Trainer(**options, plugins=environments())
    check_launch(trainer)
    found = trainer.strategy.cluster_environment
    found.validate_settings(trainer.num_devices, trainer.num_nodes)
    assert (trainer.world_size, found.global_rank(), found.auto_requeue) == (2, 1, False)


def test_lightning_starts_processes_itself_in_a_job_of_one_task(alone):
    start(alone, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "job"})
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, plugins=environments())
    assert not trainer.strategy.cluster_environment.creates_processes_externally
    assert trainer.world_size == 2


@pytest.mark.parametrize("environment", [{}, TORCHRUN, SRUN | TORCHRUN])
def test_elsewhere_lightning_chooses(alone, environment):
    start(alone, environment)
    assert environments() == []


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS=2, but srun did not start this process"),
        (SRUN | {"SLURM_NTASKS": "3"}, "SLURM_NTASKS=3 on SLURM_NNODES=2"),
    ],
)
def test_slurms_tasks_without_srun_are_said(environment, said):
    with pytest.raises(ValueError, match=said):
        launch(environment)


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_default_flags_follow_the_launcher(alone, environment):
    start(alone, environment)
    trainer = flags()
    apply_launcher_topology(trainer)
    assert dict(trainer) == {"devices": 2, "num_nodes": 2, "strategy": "ddp"}


def test_flags_that_are_given_stay(alone):
    start(alone, TORCHRUN)
    trainer = flags(devices=4, strategy="ddp")
    apply_launcher_topology(trainer)
    assert trainer == flags(devices=4, strategy="ddp")
    with pytest.raises(ValueError, match=r"torchrun started 2 processes on each of 2 nodes, but trainer\.devices=1"):
        check_launch(Trainer(accelerator="cpu", logger=False))
    with pytest.raises(ValueError, match=r"torchrun started this process, and trainer\.strategy=ddp_spawn"):
        apply_launcher_topology(flags(devices=2, strategy="ddp_spawn"))


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE"])
def test_processes_of_other_launchers_do_not_work_side_by_side(alone, name):
    alone.setenv(name, "2")
    with pytest.raises(ValueError, match=f"{name}=2, but each process would do all the work"):
        apply_launcher_topology(flags())
    apply_launcher_topology(flags(devices=2, strategy="ddp"))  # as a process that Lightning started sees it


def test_a_process_alone_stays_alone(alone):
    trainer = flags()
    apply_launcher_topology(trainer)
    assert trainer == flags()


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "auto"])
def test_processes_wait_for_one_another_longer_than_loading_can_be_uneven(alone, strategy, monkeypatch):
    set_process_group_timeout()
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
    assert isinstance(trainer.strategy, DDPStrategy)
    asked = {}
    monkeypatch.setattr(
        "lightning.pytorch.strategies.ddp._init_dist_connection", lambda *_, **given: asked.update(given)
    )
    monkeypatch.setattr(trainer.strategy, "set_world_ranks", lambda: None)
    trainer.strategy.setup_distributed()
    assert asked["timeout"] == PATIENCE >= timedelta(hours=1)  # for units they wait by looking at the disk
    assert trainer.strategy._get_process_group_backend() == "gloo"
    assert StrategyRegistry["ddp_spawn"]["init_params"]["start_method"] == "spawn"


def test_lightnings_advertisement_is_silenced_and_nothing_else(caplog):
    silence_tips()
    silence_tips()
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addHandler(caplog.handler)
        Trainer(accelerator="cpu", logger=False)
        rank_zero_info("a real warning")
    said = [record.getMessage() for record in caplog.records]
    assert "a real warning" in said and not any("Tip" in text for text in said)
    assert any("GPU available" in text for text in said)


WANDB = {"wandb": {"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": False}}


def test_an_account_is_asked_for_before_the_work(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    import wandb

    wandb.teardown()  # forgets the environment that it read
    with pytest.raises(ValueError, match=r"logger=wandb: there is no account on this machine: run `wandb login`, or"):
        check_account(OmegaConf.create(WANDB))


def test_no_account_is_needed_offline(monkeypatch):
    check_account(OmegaConf.create({"wandb": WANDB["wandb"] | {"offline": True}}))
    check_account(OmegaConf.create({}))
    check_account(None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb

    wandb.teardown()
    check_account(OmegaConf.create(WANDB))


def wandb_of(**changes):
    named = {"_target_": "lightning.pytorch.loggers.WandbLogger", "name": None, "job_type": None, "id": None}
    arms = {f"an_arm_of_a_long_name_{k}": {} for k in range(5)}
    given = {"name": "budget", "run_dir": "/nowhere", "logger": {"wandb": named}, "task": {"arms": arms}}
    config = OmegaConf.create(given | changes)
    resume(config)
    return config.logger.wandb


def test_a_run_is_named_by_its_experiment_and_in_a_sweep_by_its_values(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_SWEEP_PARAM_PATH", raising=False)
    assert wandb_of().name == "budget" and len(wandb_of().id) == 8
    values = tmp_path / "config-abc.yaml"
    save_config_file_from_dict(str(values), {"lam": {"value": 0.1}, "seed_init.typical": {"value": False}})  # agent's
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(values))
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert wandb_of().name == "lam=0.1,seed_init.typical=False" and wandb_of().id is None


def test_the_kind_of_a_run_is_its_arms_as_far_as_they_fit():
    assert wandb_of().job_type == "an_arm_of_a_long_name_0+an_arm_of_a_long_name_1+3 more"
    assert wandb_of(task={"arms": {"plain": {}, "nao": {}}}).job_type == "plain+nao"
    assert wandb_of(task={}).job_type == "budget"
