"""The trainer follows the processes of a launcher; other combinations raise an error."""

from datetime import timedelta

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from omegaconf import OmegaConf
from wandb.sdk.lib.config_util import save_config_file_from_dict

from experiments.runtime.distributed import (
    PROCESS_GROUP_TIMEOUT,
    WORLD_SIZE_VARS,
    Launcher,
    apply_launcher_topology,
    check_topology,
    cluster_environments,
    detect_launcher,
    set_process_group_timeout,
)
from experiments.runtime.loggers import check_account, set_wandb_identity

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0",
            "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # fmt: skip
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
RENDEZVOUS_VARS = ("MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS_PER_NODE")


@pytest.fixture
def alone(monkeypatch):
    """Remove the variables of every launcher."""
    for name in (*WORLD_SIZE_VARS, *TORCHRUN, *SRUN, *RENDEZVOUS_VARS, "SLURM_PTY_PORT", "SLURM_TASK_PID"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it after the test
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
        (TORCHRUN, Launcher("torchrun", 2, 2)),
        (TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, None),
        (SRUN, Launcher("srun", 2, 2)),
        (SRUN | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, None),
        (SRUN | {"SLURM_JOB_NAME": "bash"}, Launcher("srun", 2, 2)),  # srun bash script.sh
        (SALLOC, None),
        (SALLOC_STEP, None),
        (IN_SALLOC, Launcher("srun", 2, 1)),
        (IN_SALLOC_STEP, Launcher("srun", 2, 1)),
        (SRUN | TORCHRUN, Launcher("torchrun", 2, 2)),  # torchrun inside a job
    ],
)
def test_launcher_is_detected_by_its_variables(environment, expected):
    assert detect_launcher(environment) == expected


def test_shell_of_srun_is_one_process_but_its_steps_are_not(monkeypatch):
    """Both have the variables of the shell; only the shell, process 7 here, has a terminal."""
    terminals = {"/proc/7/fd/0": "/dev/pts/3", "/proc/8/fd/0": "pipe:[123]"}
    monkeypatch.setattr("experiments.runtime.distributed.os.readlink", terminals.__getitem__)
    assert detect_launcher(PTY | {"SLURM_TASK_PID": "7"}) is None
    assert detect_launcher(PTY | {"SLURM_TASK_PID": "8", "SLURM_STEP_ID": "1"}) == Launcher("srun", 2, 1)


@pytest.mark.parametrize(
    ("environment", "address"), [(ONE_NODE, "127.0.0.1"), (SRUN, "localhost"), (SRUN | {"MASTER_ADDR": "::1"}, "::1")]
)
def test_steps_of_a_job_have_different_rendezvous(alone, environment, address):
    ports = set()
    for step in ("0", "1"):
        for name in RENDEZVOUS_VARS:
            alone.delenv(name, raising=False)
        start(alone, environment | {"SLURM_STEP_ID": step})
        apply_launcher_topology(flags())
        (cluster,) = cluster_environments()
        assert isinstance(cluster, SLURMEnvironment) and cluster.main_address == address
        ports.add(cluster.main_port)
    assert len(ports) == 2


@pytest.mark.parametrize("missing", ["SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"])
def test_missing_variable_of_a_job_step_raises(alone, missing):
    start(alone, {name: value for name, value in SRUN.items() if name != missing})
    with pytest.raises(ValueError, match=f"{missing} is not set, but SLURM_NTASKS is"):
        apply_launcher_topology(flags())


def test_unresolvable_first_node_raises(alone):
    start(alone, SRUN | {"SLURM_STEP_NODELIST": "no-such-node.invalid,other"})
    with pytest.raises(
        ValueError, match=r"MASTER_ADDR=no-such-node\.invalid cannot be resolved \(by default the first node of"
    ):
        apply_launcher_topology(flags())


def test_lightning_follows_srun_step_in_any_job(alone):
    start(alone, ONE_NODE | {"SLURM_JOB_NAME": "interactive", "SLURM_NTASKS_PER_NODE": "8", "SLURM_PROCID": "1"})
    options = flags(accelerator="cpu", logger=False)
    apply_launcher_topology(options)
    set_process_group_timeout()
    trainer = Trainer(**options, plugins=cluster_environments())
    check_topology(trainer, "auto")
    cluster = trainer.strategy.cluster_environment
    cluster.validate_settings(trainer.num_devices, trainer.num_nodes)
    assert (trainer.world_size, cluster.global_rank(), cluster.auto_requeue) == (2, 1, False)


def test_lightning_starts_processes_in_job_of_one_task(alone):
    start(alone, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "job"})
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, plugins=cluster_environments())
    assert not trainer.strategy.cluster_environment.creates_processes_externally
    assert trainer.world_size == 2


@pytest.mark.parametrize("environment", [{}, TORCHRUN, SRUN | TORCHRUN])
def test_without_slurm_lightning_chooses_the_environment(alone, environment):
    start(alone, environment)
    assert cluster_environments() == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS=2, but srun did not start this process"),
        (SRUN | {"SLURM_NTASKS": "3"}, "SLURM_NTASKS=3 is not divisible by SLURM_NNODES=2"),
        (SRUN | {"SLURM_NTASKS": "x"}, "SLURM_NTASKS=x: must be an integer >= 1"),
        (SRUN | {"SLURM_STEP_ID": "x"}, "SLURM_STEP_ID=x: must be an integer >= 0"),
        *(
            (
                {name: value for name, value in TORCHRUN.items() if name != missing},
                f"{missing} is not set, but TORCHELASTIC_RUN_ID=x: start the processes with torchrun",
            )
            for missing in TORCHRUN
            if missing != "TORCHELASTIC_RUN_ID"
        ),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be an integer >= 1"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0: must be an integer >= 1"),
    ],
)
def test_incomplete_variables_of_a_launcher_raise(environment, message):
    with pytest.raises(ValueError, match=message):
        detect_launcher(environment)


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_default_flags_follow_the_launcher(alone, environment):
    start(alone, environment)
    trainer = flags()
    apply_launcher_topology(trainer)
    assert dict(trainer) == {"devices": 2, "num_nodes": 2, "strategy": "ddp"}


def test_explicit_flags_are_preserved(alone):
    start(alone, TORCHRUN)
    trainer = flags(devices=4, strategy="ddp")
    apply_launcher_topology(trainer)
    assert trainer == flags(devices=4, strategy="ddp")
    with pytest.raises(ValueError, match=r"torchrun started 2 processes on each of 2 nodes, but trainer\.devices=1"):
        check_topology(Trainer(accelerator="cpu", logger=False), "auto")
    with pytest.raises(ValueError, match=r"ddp_spawn would start processes, but torchrun has already"):
        apply_launcher_topology(flags(devices=2, strategy="ddp_spawn"))


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE"])
def test_unsupported_launchers_raise(alone, name):
    alone.setenv(name, "2")
    with pytest.raises(ValueError, match=f"{name}=2, but each process would compute the full run"):
        apply_launcher_topology(flags())
    apply_launcher_topology(flags(devices=2, strategy="ddp"))  # as in a process that Lightning started


def test_single_process_keeps_default_flags(alone):
    trainer = flags()
    apply_launcher_topology(trainer)
    assert trainer == flags()


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "auto"])
def test_process_group_timeout_is_an_hour_for_every_strategy(alone, strategy, monkeypatch):
    set_process_group_timeout()
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
    assert isinstance(trainer.strategy, DDPStrategy)
    arguments = {}
    monkeypatch.setattr(
        "lightning.pytorch.strategies.ddp._init_dist_connection", lambda *_, **kwargs: arguments.update(kwargs)
    )
    monkeypatch.setattr(trainer.strategy, "set_world_ranks", lambda: None)
    trainer.strategy.setup_distributed()
    assert arguments["timeout"] == PROCESS_GROUP_TIMEOUT >= timedelta(hours=1)
    assert trainer.strategy._get_process_group_backend() == "gloo"
    assert StrategyRegistry["ddp_spawn"]["init_params"]["start_method"] == "spawn"


WANDB = {"wandb": {"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": False}}


def test_missing_wandb_account_raises(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    import wandb

    wandb.teardown()  # W&B has read the environment already
    with pytest.raises(ValueError, match=r"logger=wandb: no account is configured on this machine; run `wandb"):
        check_account(OmegaConf.create(WANDB))


def test_offline_wandb_needs_no_account(monkeypatch):
    check_account(OmegaConf.create({"wandb": WANDB["wandb"] | {"offline": True}}))
    check_account(OmegaConf.create({}))
    check_account(None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb

    wandb.teardown()
    check_account(OmegaConf.create(WANDB))


def wandb_config(**changes):
    logger = {"_target_": "lightning.pytorch.loggers.WandbLogger", "name": None, "job_type": None, "id": None}
    arms = {f"an_arm_of_a_long_name_{k}": {} for k in range(5)}
    default = {"name": "budget", "run_dir": "/nowhere", "logger": {"wandb": logger}, "task": {"arms": arms}}
    config = OmegaConf.create(default | changes)
    set_wandb_identity(config)
    return config.logger.wandb


def test_wandb_name_is_the_experiment_or_the_sweep_values(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_SWEEP_PARAM_PATH", raising=False)
    assert wandb_config().name == "budget" and len(wandb_config().id) == 17
    values = tmp_path / "config-abc.yaml"
    save_config_file_from_dict(str(values), {"lam": {"value": 0.1}, "seed_init.normalize": {"value": False}})
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(values))
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert wandb_config().name == "lam_0.1-normalize_False" and wandb_config().id is None


def test_wandb_id_depends_on_the_settings(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    first = wandb_config(run_dir=str(tmp_path)).id
    (tmp_path / "wandb_id").write_text(f"{first}\n")
    assert wandb_config(run_dir=str(tmp_path)).id == first
    assert wandb_config(run_dir=str(tmp_path), trainer={"devices": 2}).id == first  # has no effect on results
    assert wandb_config(run_dir=str(tmp_path), seed=7).id != first
    assert wandb_config(run_dir=str(tmp_path), task={"arms": {"plain": {}}}).id != first
    (tmp_path / "wandb_id").write_text("376a9d2c\n")  # of an earlier version
    assert wandb_config(run_dir=str(tmp_path)).id != "376a9d2c"


def test_wandb_job_type_lists_the_arms():
    assert wandb_config().job_type == "an_arm_of_a_long_name_0+an_arm_of_a_long_name_1+3 more"
    assert wandb_config(task={"arms": {"plain": {}, "nao": {}}}).job_type == "plain+nao"
    assert wandb_config(task={}).job_type == "budget"
