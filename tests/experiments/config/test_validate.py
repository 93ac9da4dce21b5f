"""Invalid values on the command line are reported in one line with their key, before any work."""

# one entry per line

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config.errors import composition_error, group_error, one_line
from experiments.config.paths import resolve
from experiments.config.signatures import parameter_hints
from experiments.config.validate import check, check_before_imports, interpolation_error
from experiments.runtime import setup as runtime_setup
from experiments.runtime.setup import setup
from tests.commands import composed

CONFIGS = Path("configs").resolve()


def error_message(tmp_path, overrides: str) -> str:
    """Return the error message of ``train.py`` for overrides that are separated by ``|``."""
    words = overrides.split("|")
    if not any("run_dir" in word for word in words):
        words.append(f"run_dir={tmp_path}/run")
    try:
        config = composed(*words, "trainer.accelerator=cpu")
    except HydraException as error:
        return composition_error(error)
    with pytest.raises(ValueError) as caught:
        setup(config)
    return one_line(caught.value)


VALUES = [  # overrides, and the start of the error message
    ("task.samples=0", "task.samples: Input should be greater than 0"),
    ("task.samples=-1", "task.samples: Input should be greater than 0"),
    ("task.samples=2.5", "task.samples: Input should be a valid integer"),
    ("task.samples=two", "task.samples: Input should be a valid integer"),
    ("task.samples=null", "task.samples: Input should be a valid integer"),
    ("task.samples='4'", "task.samples: Input should be a valid integer"),
    ("task.samples=true", "task.samples: Input should be a valid integer"),
    ("task.references=0", "task.references: Input should be greater than 0"),
    ("task.steps=0", "task.steps: Input should be greater than 0"),
    ("task.steps=nan", "task.steps: Input should be a valid integer"),
    ("task.concepts_per_batch=0", "task.concepts_per_batch: Input should be greater than 0"),
    ("task.gradient_checkpointing=maybe", "task.gradient_checkpointing: Input should be a valid boolean"),
    ("task.arms.plain.guidance=nan", "task.arms.plain.guidance: Input should be a finite number"),
    ("task.arms.plain.guidance=inf", "task.arms.plain.guidance: Input should be a finite number"),
    ("task.arms.plain.guidance=0.5", "task.arms.plain.guidance: Input should be greater than or equal to 1"),
    ("model.default_guidance=nan", "model.default_guidance: Input should be a finite number"),
    ("task.arms.plain=3", "task.arms.plain: Input should be an instance of Arm"),
    ("task.arms=3", "task.arms: Input should be an object"),
    (
        "~task.arms.plain|~task.arms.seedselect_ddim|~task.arms.seedselect_rnri|~task.arms.seedselect_ours|~task.arms.between_ours",
        "task.arms: Dictionary should have at least 1 item after validation, not 0",
    ),
    ("~task.samples", "task.samples: has no value;"),
    ("+task.sample=3", "task.sample: unknown key of RareConceptsExperiment;"),
    ("select.iterations=2.5", "select.iterations: Input should be a valid integer"),
    ("select.iterations=0", "select.iterations: Input should be greater than 0"),
    ("select.semantic_weight=nan", "select.semantic_weight: Input should be a finite number"),
    ("select.semantic_weight=-10", "select.semantic_weight: Input should be greater than or equal to 0"),
    ("select.appearance_weight=heavy", "select.appearance_weight: Input should be a valid number"),
    ("select.patience=-1", "select.patience: Input should be greater than or equal to 0"),
    ("select.improvement=inf", "select.improvement: Input should be a finite number"),
    ("select.step_weights=[]", "select.step_weights: Value should have at least 1 item after validation, not 0"),
    ("select.step_weights=[0.5,nan]", "select.step_weights: Input should be a finite number"),
    ("select.norm=typical", "select.norm: Input should be 'free' or 'keep'"),
    ("+select.iteration=3", "select.iteration: unknown key of SeedSelect;"),
    ("experiment=flow|+task.methods.ddim.solver.iterations=5", "task.methods.ddim.solver: unknown key of ddim; no ke"),
    ("experiment=flow|+task.methods.ddim.iterations=5", "task.methods.ddim.iterations: unknown key of ddim; no keys"),
    (
        "experiment=flow|+task.methods.accelerated_plus_one.nfe_per_step=5",
        "task.methods.accelerated_plus_one.nfe_per_step: unknown key of accelerated_plus_one; choose from tolerance, p",
    ),
    ("select=3", "select: Input should be an object"),
    ("gradient_steps=0", "gradient_steps: Input should be greater than 0"),
    ("select.optimizer.lr=nan", "select.optimizer.lr: Input should be a finite number"),
    ("select.optimizer.lr=-0.1", "select.optimizer: Invalid learning rate: -0.1"),
    ("select.optimizer.lr=fast", "select.optimizer.lr: Input should be a valid number"),
    ("optimizer@select.optimizer=sgd|select.optimizer.momentum=-1", "select.optimizer: Invalid momentum value: -1"),
    (
        "lr_schedule@select.schedule=drop|select.schedule.gamma=x",
        "select.schedule.gamma: Input should be a valid number",
    ),
    (
        "select.optimizer._target_=torch.optim.LBFGS|~select.optimizer.weight_decay",
        "select.optimizer: LBFGS couples all samples of a batch",
    ),
    (
        "select.optimizer._target_=torch.optim.Adagradd",
        "select.optimizer._target_: torch.optim.Adagradd cannot be imported (module 'torch.optim' h",
    ),
    ("seed_init.num_points=1", "seed_init.num_points: Input should be greater than or equal to 2"),
    ("seed_init.normalize=3", "seed_init.normalize: Input should be a valid boolean"),
    ("+seed_init.pionts=3", "seed_init.pionts: unknown key of centroid_seeds;"),
    (
        "data.concepts=null",
        "data.concepts: Input should be a valid integer, or Input should be a valid string, or Inpu",
    ),
    ("data.concepts=0", "data.concepts: Input should be greater than 0, or Input should be a valid string, or Input"),
    ("data.concepts=2.5", "data.concepts: Input should be a valid integer, or Input should be a valid string, or Inpu"),
    ("data.concepts=[]", "data.concepts: Input should be a valid integer, or Input should be a valid string, or Valu"),
    (
        "data.concepts=[camel,camel]",
        "data.concepts: Input should be a valid integer, or Input should be a valid string, or must",
    ),
    ("data.concepts=[1,2]", "data.concepts contains '1', which is not in the data;"),
    ("data.concepts=[zebra]", "data.concepts contains 'zebra', which is not in the data;"),
    ("data.buckets=[]", "data.buckets: Value should have at least 1 item after validation, not 0"),
    ("data.buckets=tail", "data.buckets: Input should be a valid array"),
    ("data.buckets=[tail,tail]", "data.buckets: must not contain duplicates"),
    ("data.buckets=null", "data.buckets: Input should be a valid array"),
    ("data.source.head=many", "data.source.head: Input should be a valid integer"),
    ("data.source.bucket_by=size", "data.source.bucket_by: Input should be 'threshold' or 'rank'"),
    ("data.source.ranks=[1,2.5]", "data.source.ranks: Input should be a valid integer"),
    ("data.source.background=plaid", "data.source.background: 'plaid' is unknown"),
    (
        "data.source.prompt='a {nom}'",
        "data.source.prompt='a {nom}' is not a prompt template: it must contain {phrase}, may conta",
    ),
    ("data.folder=/nowhere", "/nowhere/drawings-reference.parquet does not exist"),
    ("data.classifier=/nowhere", "/nowhere has no config.json"),
    ("data.classifier=3", "data.classifier: Input should be a valid string"),
    ("data.clip=/nowhere", "/nowhere has no CLIP model (config.json is missing)"),
    ("model.path=/nowhere", "checkpoint folder '/nowhere' does not exist"),
    ("model.path=null", "model.path: Input should be a valid string"),
    (
        "model.dtype=float8",
        "model.dtype: Input should be 'float16', 'bfloat16', 'float32' or 'float64', or Input shoul",
    ),
    ("model.variant=16", "model.variant: Input should be a valid string"),
    ("model.local_files_only=3", "model.local_files_only: Input should be a valid boolean"),
    ("data=folder", "data.references: has no value;"),
    ("seed=abc", "seed: Input should be a valid integer"),
    ("seed=-1", "seed: Input should be greater than or equal to 0"),
    ("seed=4294967296", "seed: Input should be less than 4294967296"),
    ("seed=null", "seed: Input should be a valid integer"),
    ("run_dir=5", "run_dir: Input should be a valid string"),
    ("run_dir=''", "run_dir: String should have at least 1 character"),
    ("run_dir=pyproject.toml", "run_dir=pyproject.toml: pyproject.toml is a file"),
    ("run_dir=pyproject.toml/x", "run_dir=pyproject.toml/x: "),
    (
        "trainer.devices=2.5",
        "trainer.devices: Input should be a valid array, or Input should be a valid string, or Inpu",
    ),
    ("trainer.devices=0", "trainer: `Trainer(devices=0)` value is not a valid input using cpu accelerator."),
    ("trainer.num_nodes=two", "trainer.num_nodes: Input should be a valid integer"),
    (
        "trainer.precision=17",
        "trainer.precision: Input should be 64, 32 or 16, or Input should be 'transformer-engine', ",
    ),
    (
        "trainer.strategy=dpp",
        "trainer: You selected an invalid strategy name: `strategy='dpp'`. It must be either a stri",
    ),
    ("+trainer.device=2", "trainer.device: unknown key of Trainer;"),
    (
        "trainer.precision=bf16-true",
        "trainer.precision: must be 32-true, 16-mixed or bf16-mixed, because the netw",
    ),
    ("trainer.precision=16-true", "trainer.precision: must be 32-true, 16-mixed or bf16-mixed, because the netw"),
    ("trainer.precision=64-true", "trainer.precision: must be 32-true, 16-mixed or bf16-mixed, because the netw"),
    ("trainer.precision=transformer-engine", "trainer.precision: must be 32-true, 16-mixed or bf16-mixed, because th"),
    (
        "+trainer.plugins=[{_target_:lightning.pytorch.plugins.HalfPrecision,precision:bf16-true}]|trainer.precision=null",
        "trainer.precision: must be 32-true, 16-mixed or bf16-mixed, because the networks have the dtype model.dtype",
    ),
    ("trainer.inference_mode=true", "trainer.inference_mode: Input should be False, got True"),
    ("trainer.use_distributed_sampler=true", "trainer.use_distributed_sampler: Input should be False, got True"),
    ("+trainer.val_check_interval=0", "trainer.val_check_interval: must not be set in an experiment that trains no "),
    ("+trainer.limit_predict_batches=1", "trainer.limit_predict_batches: must not be set in an experiment that trains"),
    ("+trainer.limit_predict_batches=0.5", "trainer.limit_predict_batches: must not be set in an experiment that trai"),
    ("+trainer.overfit_batches=1", "trainer.overfit_batches: must not be set in an experiment that trains no network"),
    ("+trainer.fast_dev_run=true", "trainer.fast_dev_run: must not be set in an experiment that trains no network, "),
    ("+trainer.max_time=00:00:01:00", "trainer.max_time: must not be set in an experiment that trains no network, "),
    ("+trainer.max_steps=1", "trainer.max_steps: must not be set in an experiment that trains no network, got 1; "),
    ("experiment=pretrain_clip|trainer.val_check_interval=0", "trainer.val_check_interval: Input should be greater th"),
    ("experiment=pretrain_clip|trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch: Input should be "),
    ("experiment=pretrain_clip|trainer.max_steps=0", "trainer.max_steps: Input should be greater than 0"),
    ("experiment=pretrain_clip|trainer.max_steps=-1", "trainer.max_steps: Input should be greater than 0"),
    ("experiment=pretrain_clip|+trainer.fast_dev_run=true", "trainer.fast_dev_run: Input should be False, got True"),
    ("experiment=pretrain_clip|+trainer.limit_train_batches=0", "trainer.limit_train_batches: Input should be greater"),
    (
        "experiment=pretrain_clip|task.width=7",
        "task.architecture=tf_efficientnet_lite1 task.image_size=128 task.width=7: cannot build this network ",
    ),
    (
        "experiment=pretrain_clip|task.architecture=lite",
        "task.architecture=lite task.image_size=128 task.width=192: cannot build this network (Unknown model",
    ),
    ("experiment=pretrain_autoencoder|task.channels=[7]", "task.channels=[7]: cannot build this network"),
    (
        "experiment=pretrain_denoiser|task.text_width=7",
        "task.channels=[64, 128, 128] task.text_width=7 task.tex",
    ),
    (
        "experiment=pretrain_flow|task.width=6|task.heads=3",
        "task.width=6 must be a multiple of task.heads=3 and of 4",
    ),
    ("experiment=augmentation|task.few_shot.network.model_name=foo", "task.few_shot.network: cannot classify images o"),
    ("experiment=augmentation|task.few_shot.network.model_name=vit_tiny_patch16_224", "task.few_shot.network: cannot "),
    ("logger.csv=5", "logger.csv: must be a logger with the key _target_, got 5"),
    ("logger.csv=null", "logger.csv: must be a logger with the key _target_, got None"),
    ("+logger.csv.flush_logs_every_n_steps=0", "logger.csv.flush_logs_every_n_steps: Input should be greater than 0"),
    ("logger=wandb|logger.wandb.offline=true|logger.wandb.project=a/b", "logger.wandb.project: Invalid project name '"),
    ("logger=wandb|logger.wandb.offline=true|logger.wandb.id=a/b", "logger.wandb.id: Run ID cannot contain the chara"),
    ("logger=wandb|logger.wandb.offline=true|+logger.wandb.mode=on", "logger.wandb.mode: Input should be 'online', '"),
    ("logger=wandb|logger.wandb.offline=true|+logger.wandb.tag=[a]", "logger.wandb.tag: unknown option of W&B; neares"),
    ("logger=wandb|logger.wandb.offline=true|+logger.wandb.tags=5", "logger.wandb.tags: 'int' object is not iterable"),
    ("logger=wandb|logger.wandb.offline=maybe", "logger.wandb.offline: Input should be a valid boolean"),
    ("experiment=nosuch", "experiment=nosuch does not exist"),
    ("model=nosuch", "model=nosuch does not exist"),
    ("method@task.arms.seedselect_rnri.inverter=nosuch", "method=nosuch does not exist"),
    ("task.no_such=1", "task.no_such: unknown key"),
    ("selct.iterations=1", "selct: unknown key;"),
    (
        "data.concepts=[camel",
        "data.concepts=[camel cannot be parsed: no viable alternative at input '[camel' See https:/",
    ),
    (
        "method@task.arms.seedselect_rnri.inverter=edict",
        "task.arms.seedselect_rnri.inverter: EDICT cannot reconstruct an image from the seed alone",
    ),
    (
        "seed_init=references|task.samples=5",
        "task.steps=10 task.references=3 task.samples=5 in the arm 'seedselect_ddim': 5 initial seeds n",
    ),
    ("task.references=9", "task.references=9, but 'mosque' has 3 reference images: add images or reduce"),
    ("task.steps=2000", "steps=2000: must be an integer from 1 to 1000, the scheduler's maximum."),
    (
        "experiment=interpolation|task.references=1",
        "task.steps=20 task.references=1 task.samples=5 in the arm 'ddim, lerp': a path needs at least two s",
    ),
    (
        "experiment=centroids|task.samples=2",
        "task.steps=20 task.references=3 task.samples=2 in the arm 'ddim, mean': count=2: must be 1",
    ),
    (
        "experiment=centroids|method@task.inversions.aidi=bdia",
        "task.inversions.aidi: BDIA cannot reconstruct an image from the seed alone, but NAO and S",
    ),
    ("experiment=centroids|task.operations=null", "task.operations: Input should be an object"),
    ("experiment=lam|lam=nan", "lam: Input should be a finite number"),
    ("experiment=lam|lam=-0.1", "lam: Input should be greater than or equal to 0"),
    (
        "experiment=guidance|task.methods.aidi.solver.tolerance=nan",
        "task.methods.aidi.solver.tolerance: Input should be a finite number",
    ),
    (
        "experiment=guidance|task.methods.aidi.initial_guess=last",
        "task.methods.aidi.initial_guess: Input should be 'plain', 'scaled', 'extrapolated' or 'fitted'",
    ),
    (
        "experiment=guidance|+task.methods.aidi.solver.memory=2",
        "task.methods.aidi.solver.memory: unknown key of FixedPoint",
    ),
    ("experiment=lam|task.settings=[]", "task.settings: Value should have at least 1 item after validation, not 0"),
    (
        "experiment=lam|task.settings=[{_target_:experiments.inversion.jobs.Setting,steps:3,guidance:inf}]",
        "task.settings.0.guidance: Input should be a finite number",
    ),
    (
        "experiment=lam|task.settings=[{_target_:experiments.inversion.jobs.Setting,steps:3,nfe:[]}]",
        "task.settings.0.nfe: Input should be a valid integer, or Value should have at least 1 item",
    ),
    (
        "experiment=lam|task.settings=[{_target_:experiments.inversion.jobs.Setting,steps:3,step:3}]",
        "task.settings.0.step: unknown key of Setting;",
    ),
    ("experiment=lam|task.images=0", "task.images: Input should be greater than 0"),
    ("experiment=lam|task.batch_size=0", "task.batch_size: Input should be greater than 0"),
    (
        "experiment=lam|~task.methods.rnri",
        "task.methods: Dictionary should have at least 1 item after validation, not 0",
    ),
    (
        "experiment=editing|task.kinds=[change mood]",
        "task.kinds: Input should be 'random', 'change object', 'add object', 'delete object', 'cha",
    ),
    ("experiment=editing|task.steps=0", "task.steps: Input should be greater than 0, or Input should be an object"),
    ("experiment=augmentation|task.trainings=0", "task.trainings: Input should be greater than 0"),
    (
        "experiment=augmentation|task.few_shot.learning_rate=nan",
        "task.few_shot.learning_rate: Input should be a finite number",
    ),
    ("experiment=augmentation|task.few_shot=3", "task.few_shot: Input should be an object"),
    ("experiment=pretrain_denoiser|task.lr=nan", "task.lr: Input should be a finite number"),
    ("experiment=pretrain_clip|trainer.max_steps=2.5", "trainer.max_steps: Input should be a valid integer"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "message"), VALUES, ids=[overrides for overrides, _ in VALUES])
def test_invalid_value_is_reported_with_its_key(overrides, message, tmp_path):
    error = error_message(tmp_path, overrides)
    assert error.startswith(message)
    assert "Traceback" not in error and "full_key" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml")))
def test_values_of_experiment_configs_are_valid(experiment):
    config = composed(f"experiment={experiment}")
    check_before_imports(config)
    check(config)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["method", "seed_init", "optimizer", "lr_schedule"])
def test_values_of_group_options_are_valid(group):
    options = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    where = {
        "seed_init": "seed_init",
        "optimizer": "optimizer@select.optimizer",
        "lr_schedule": "lr_schedule@select.schedule",
    }
    if group == "method":  # one config with every method
        configs = [composed("experiment=convergence", *(f"+method@task.methods.new_{name}={name}" for name in options))]
    else:
        configs = [composed(f"{where[group]}={option}") for option in options]
    for config in configs:
        check_before_imports(config)
        check(config)


def test_keys_follow_interpolations():
    config = composed()
    for key, expected in {
        "task.arms.seedselect_rnri.select.patience": "select.patience",
        "task.arms.plain.guidance": "model.default_guidance",
        "task.source.folder": "data.folder",
        "task.clip.local_files_only": "model.local_files_only",
        "task.steps": "task.steps",
    }.items():
        assert resolve(config, key)[0] == expected


def is_bare(hint: object) -> bool:
    """Return whether a hint is, or contains, a number without bounds."""
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        return is_bare(base) and not (base in (int, float) and any(isinstance(x, Ge | Gt | Le | Lt) for x in limits))
    return hint in (int, float) or (get_origin(hint) is not Callable and any(map(is_bare, get_args(hint))))


def project_targets() -> list[str]:
    """Return every class and function of this project that a config names."""
    text = "\n".join(path.read_text() for path in CONFIGS.rglob("*.yaml"))
    return sorted(set(re.findall(r"_target_: ?((?:rnri|nao|seedselect|experiments)\.[\w.]+)", text)))


@pytest.mark.parametrize("target", project_targets())
def test_type_hints_bound_every_number(target):
    """The type hints are the validation: a bare ``int`` or ``float`` would accept any number."""
    bare = [name for name, hint in parameter_hints(get_object(target)).items() if is_bare(hint)]
    assert not bare


def test_values_are_validated_before_instantiation(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime_setup, "instantiate", lambda *_, **__: pytest.fail("an object was created"))
    with pytest.raises(ValueError, match=r"select\.iterations: Input should be a valid integer"):
        setup(composed("select.iterations=2.5", f"run_dir={tmp_path}/run"))


def test_added_key_must_be_an_argument():
    config = composed()
    OmegaConf.set_struct(config, False)
    config.task.extra = 1
    with pytest.raises(ValueError, match=r"task\.extra: unknown key of RareConceptsExperiment"):
        check(config)


CYCLES = [
    ("run_dir=${run_dir}", "run_dir: depends on itself, got ${run_dir}"),
    ("run_dir=runs/${run_dir}", "run_dir: depends on itself, got runs/${run_dir}"),
    ("name=${run_dir}", "name: depends on itself, got ${run_dir}"),
    ("seed=${task.seed}", "seed: depends on itself, got ${task.seed}"),
    ("select=${task}", "select: depends on itself, got ${task}"),
]


@pytest.mark.parametrize(("override", "message"), CYCLES)
def test_interpolation_that_refers_to_itself_is_reported_with_its_key(override, message):
    config = composed(override)
    with pytest.raises((ValueError, OmegaConfBaseException, RecursionError)):
        check_before_imports(config)
    assert interpolation_error(config).startswith(message)


def test_config_without_cycles_has_no_interpolation_error():
    assert interpolation_error(composed()) is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=null", "data=null: must be the name of a config; choose from captions, emoji, folder, imagenet."),
        (
            "logger=true",
            "logger=true: must be the name of a config; choose from csv, mlflow, none, tensorboard, wandb.",
        ),
        ("experiment=5", "experiment=5: must be the name of a config; choose from augmentation, budget, "),
        ("method@task.arms.seedselect_rnri.inverter=null", "method@task.arms.seedselect_rnri.inverter=null: must be "),
    ],
)
def test_group_needs_the_name_of_a_config(override, message):
    with pytest.raises(ValueError, match="Config group override") as caught:
        composed(override)
    assert group_error(caught.value, ["seed=1", "task.steps=5", override]).startswith(message)
    assert group_error(ValueError("another error"), [override]) is None


FAST = [
    "data=null",
    "run_dir=${run_dir}",
    "logger.csv=5",
    "trainer.precision=bf16-true",
    "task.samples=0",
    "task.steps=abc",
    "+task.sample=3",
    "select.norm=typical",
    "model.dtype=float8",
]


REPORT_ERRORS = """
import sys, train
from hydra.core.global_hydra import GlobalHydra
for override in list(sys.argv[1:]):
    GlobalHydra.instance().clear()
    sys.argv[1:] = [override]
    try:
        train.command()
    except SystemExit as end:
        assert str(end.code).startswith("error: "), override
    else:
        raise AssertionError(override)
assert "torch" not in sys.modules
"""


def test_invalid_values_are_reported_without_importing_torch():
    finished = subprocess.run([sys.executable, "-c", REPORT_ERRORS, *FAST], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["experiment=lam", "--help"], ["experiment=typo"]])
def test_help_and_composition_errors_do_not_import_torch(arguments):
    code = "import sys, train\ntry: train.command()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
