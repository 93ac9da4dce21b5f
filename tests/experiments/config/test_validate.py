"""Bad values of the command line: one sentence each, which names the key as one types it, before any work."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import OmegaConf

import train
from experiments.config.errors import failed_composition
from experiments.config.paths import locate
from experiments.config.validate import check, parameter_hints
from tests.commands import composed

CONFIGS = Path("configs").resolve()
SETTING = "{_target_:experiments.inversion.jobs.Setting,steps:3%s}"


def refusal(tmp_path, overrides: str) -> str:
    """What ``train.py`` says against the words of ``overrides``."""
    words = overrides.split("|")
    if not any("run_dir" in word for word in words):
        words.append(f"run_dir={tmp_path}/run")
    try:
        config = composed(*words, "trainer.accelerator=cpu")
    except HydraException as error:
        return failed_composition(error)
    with pytest.raises(ValueError) as caught:
        train.prepare(config)
    return train.explain(caught.value)


VALUES = [  # overrides, and how the sentence begins
    ("task.samples=0", "task.samples=0: give a whole number of at least 1."),
    ("task.samples=-1", "task.samples=-1"),
    ("task.samples=2.5", "task.samples=2.5"),
    ("task.samples=two", "task.samples='two'"),
    ("task.samples=null", "task.samples=null"),
    ("task.samples='4'", "task.samples='4'"),
    ("task.samples=true", "task.samples=true"),
    ("task.references=0", "task.references=0"),
    ("task.steps=0", "task.steps=0"),
    ("task.steps=nan", "task.steps=nan"),
    ("task.concepts_per_batch=0", "task.concepts_per_batch=0"),
    ("task.gradient_checkpointing=maybe", "task.gradient_checkpointing='maybe': give true or false."),
    ("task.arms.plain.guidance=nan", "task.arms.plain.guidance=nan: give a number of at least 1, which is off"),
    ("task.arms.plain.guidance=inf", "task.arms.plain.guidance=inf"),
    ("task.arms.plain.guidance=0.5", "task.arms.plain.guidance=0.5"),
    ("model.default_guidance=nan", "model.default_guidance=nan"),
    ("task.arms.plain=3", "task.arms.plain=3: give Arm."),
    ("task.arms=3", "task.arms=3"),
    ("|".join(f"~task.arms.{name}" for name in (
        "plain", "seedselect_ddim", "seedselect_rnri", "seedselect_ours", "best_of_ours",
     )), "task.arms={}"),
    ("~task.samples", "task.samples has no value"),
    ("+task.sample=3", "task.sample is no setting of RareConcepts; nearest: samples"),
    ("select.iterations=2.5", "select.iterations=2.5: give a whole number of at least 1."),
    ("select.iterations=0", "select.iterations=0"),
    ("select.semantic_weight=nan", "select.semantic_weight=nan: give a number of at least 0."),
    ("select.semantic_weight=-10", "select.semantic_weight=-10"),
    ("select.appearance_weight=heavy", "select.appearance_weight='heavy'"),
    ("select.patience=-1", "select.patience=-1"),
    ("select.improvement=inf", "select.improvement=inf"),
    ("select.step_weights=[]", "select.step_weights=[]"),
    ("select.step_weights=[0.5,nan]", "select.step_weights=[0.5, nan]"),
    ("select.norm=typical", "select.norm='typical': give free or keep."),
    ("+select.iteration=3", "select.iteration is no setting of SeedSelect; nearest: iterations"),
    ("select=3", "select=3"),
    ("gradient_steps=0", "gradient_steps=0: give a whole number of at least 1 or null."),
    ("select.optimizer.lr=nan", "select.optimizer.lr=nan: give a number."),
    ("select.optimizer.lr=-0.1", "select.optimizer: Invalid learning rate: -0.1"),
    ("select.optimizer.lr=fast", "select.optimizer.lr='fast'"),
    ("optimizer@select.optimizer=sgd|select.optimizer.momentum=-1", "select.optimizer: Invalid momentum value: -1"),
    ("rate@select.schedule=drop|select.schedule.gamma=x", "select.schedule.gamma='x'"),
    ("select.optimizer._target_=torch.optim.LBFGS|~select.optimizer.weight_decay", "select.optimizer=LBFGS"),
    ("select.optimizer._target_=torch.optim.Adagradd", "select.optimizer._target_=torch.optim.Adagradd cannot be"),
    ("seed_init.num_points=1", "seed_init.num_points=1: give a whole number of at least 2."),
    ("seed_init.normalize=3", "seed_init.normalize=3"),
    ("+seed_init.pionts=3", "seed_init.pionts is no setting of centroid_seeds; nearest: points"),
    ("data.concepts=null", "data.concepts=null: give a number of concepts a bucket, all, or a list of names"),
    ("data.concepts=0", "data.concepts=0"),
    ("data.concepts=2.5", "data.concepts=2.5"),
    ("data.concepts=[]", "data.concepts=[]"),
    ("data.concepts=[camel,camel]", "data.concepts=['camel', 'camel']"),
    ("data.concepts=[1,2]", "data.concepts names '1'"),
    ("data.concepts=[zebra]", "data.concepts names 'zebra'"),
    ("data.buckets=[]", "data.buckets=[]: give a list of some of head, medium, tail"),
    ("data.buckets=tail", "data.buckets='tail': give a list of some of head, medium, tail, as [tail]"),
    ("data.buckets=[tail,tail]", "data.buckets=['tail', 'tail']"),
    ("data.buckets=null", "data.buckets=null"),
    ("data.source.head=many", "data.source.head='many'"),
    ("data.source.bucket_by=size", "data.source.bucket_by='size': give threshold or rank."),
    ("data.source.ranks=[1,2.5]", "data.source.ranks=[1, 2.5]"),
    ("data.source.background=plaid", "data.source.background='plaid' is unknown"),
    ("data.source.prompt='a {nom}'", "data.source.prompt='a {nom}' is no template"),
    ("data.folder=/nowhere", "/nowhere/drawings-reference.parquet does not exist"),
    ("data.classifier=/nowhere", "/nowhere"),
    ("data.classifier=3", "data.classifier=3"),
    ("data.clip=/nowhere", "/nowhere"),
    ("model.path=/nowhere", "checkpoint folder '/nowhere' does not exist"),
    ("model.path=null", "model.path=null"),
    ("model.dtype=float8", "model.dtype='float8': give float16, bfloat16, float32, float64 or auto."),
    ("model.variant=16", "model.variant=16"),
    ("model.local_files_only=3", "model.local_files_only=3"),
    ("data=folder", "data.references and data.real and data.counts and data.classifier have no value"),
    ("seed=abc", "seed='abc': give a whole number of at least 0"),
    ("seed=-1", "seed=-1"),
    ("seed=4294967296", "seed=4294967296"),
    ("seed=null", "seed=null"),
    ("run_dir=5", "run_dir=5: give a non-empty text."),
    ("run_dir=''", "run_dir=''"),
    ("run_dir=pyproject.toml", "run_dir=pyproject.toml: pyproject.toml is a file"),
    ("run_dir=pyproject.toml/x", "run_dir=pyproject.toml/x"),
    ("trainer.devices=2.5", "trainer.devices=2.5"),
    ("trainer.devices=0", "trainer"),
    ("trainer.num_nodes=two", "trainer.num_nodes='two'"),
    ("trainer.precision=17", "trainer.precision=17: give 64, 32, 16"),
    ("trainer.strategy=dpp", "trainer: You selected an invalid strategy name: `strategy='dpp'`"),
    ("+trainer.device=2", "trainer.device is no setting of Trainer; nearest: devices"),
    ("logger=wandb|logger.wandb.offline=maybe", "logger.wandb.offline='maybe': give true or false."),
    ("experiment=nosuch", "experiment=nosuch is unknown: choose from augmentation, budget"),
    ("model=nosuch", "model=nosuch is unknown: choose from "),
    ("method@task.arms.seedselect_rnri.inverter=nosuch", "method=nosuch is unknown: choose from anderson_inverter"),
    ("task.no_such=1", "there is no key task.no_such: choose from source"),
    ("selct.iterations=1", "there is no key selct: choose from select"),
    ("data.concepts=[camel", "data.concepts=[camel cannot be read"),
    ("method@task.arms.seedselect_rnri.inverter=edict", "task.arms.seedselect_rnri.inverter: EDICT needs more"),
    ("seed_init=references|task.samples=5", "task.steps=10 task.references=3 task.samples=5 in the arm"),
    ("task.references=9", "task.references=9, but"),
    ("task.steps=2000", "steps=2000"),
    ("experiment=interpolation|task.references=1", "task.steps=20 task.references=1 task.samples=5 in the arm"),
    ("experiment=centroids|task.samples=2", "task.steps=20 task.references=3 task.samples=2 in the arm 'ddim, mean'"),
    ("experiment=centroids|method@task.inversions.aidi=bdia", "task.inversions.aidi: BDIA needs more than the seed"),
    ("experiment=centroids|task.operations=null", "task.operations=null"),
    ("experiment=lam|lam=nan", "lam=nan: give a number of at least 0."),
    ("experiment=lam|lam=-0.1", "lam=-0.1"),
    ("experiment=guidance|task.methods.aidi.solver.tolerance=nan", "task.methods.aidi.solver.tolerance=nan"),
    ("experiment=guidance|task.methods.aidi.initial_guess=last", "task.methods.aidi.initial_guess='last'"),
    ("experiment=guidance|+task.methods.aidi.solver.memory=2", "task.methods.aidi.solver.memory is no setting of"),
    ("experiment=lam|task.settings=[]", "task.settings=[]"),
    ("experiment=lam|task.settings=[%s]" % (SETTING % ",guidance:inf"), "task.settings.0.guidance=inf"),
    ("experiment=lam|task.settings=[%s]" % (SETTING % ",nfe:[]"), "task.settings.0.nfe=[]"),
    ("experiment=lam|task.settings=[%s]" % (SETTING % ",step:3"), "task.settings.0.step is no setting of Setting"),
    ("experiment=lam|task.images=0", "task.images=0"),
    ("experiment=lam|task.batch_size=0", "task.batch_size=0"),
    ("experiment=lam|~task.methods.rnri", "task.methods={}"),
    ("experiment=editing|task.kinds=[change mood]", "task.kinds=['change mood']"),
    ("experiment=editing|task.steps=0", "task.steps=0"),
    ("experiment=augmentation|task.trainings=0", "task.trainings=0"),
    ("experiment=augmentation|task.few_shot.learning_rate=nan", "task.few_shot.learning_rate=nan"),
    ("experiment=augmentation|task.few_shot=3", "task.few_shot=3"),
    ("experiment=pretrain_denoiser|task.lr=nan", "task.lr=nan"),
    ("experiment=pretrain_clip|trainer.max_steps=2.5", "trainer.max_steps=2.5"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "said"), VALUES, ids=[overrides for overrides, _ in VALUES])
def test_a_bad_value_is_one_sentence_that_names_its_key(overrides, said, tmp_path):
    sentence = refusal(tmp_path, overrides)
    assert sentence.startswith(said) or said in sentence.partition(":")[0]
    assert "\n" not in sentence and "Traceback" not in sentence and "full_key" not in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml")))
def test_the_experiments_own_values_are_good(experiment):
    check(composed(f"experiment={experiment}"))


@pytest.mark.parametrize("group", ["method", "seed_init", "optimizer", "lr_schedule"])
def test_the_options_own_values_are_good(group):
    places = {"method": "task.arms.seedselect_rnri.inverter", "seed_init": "seed_init",
              "optimizer": "select.optimizer", "lr_schedule": "select.schedule"}  # fmt: skip
    for option in sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")):
        where = group if group == places[group] else f"{group}@{places[group]}"
        check(composed(f"{where}={option}"))


def test_keys_are_those_that_decide():
    config = composed()
    for key, expected in {
        "task.arms.seedselect_rnri.select.patience": "select.patience",
        "task.arms.plain.guidance": "model.default_guidance",
        "task.source.folder": "data.folder",
        "task.clip.local_files_only": "model.local_files_only",
        "task.steps": "task.steps",
    }.items():
        assert locate(config, key)[0] == expected


def is_bare(hint: object) -> bool:
    """Whether a hint is, or holds, a number without bounds."""
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        return is_bare(base) and not (base in (int, float) and any(isinstance(x, Ge | Gt | Le | Lt) for x in limits))
    return hint in (int, float) or (get_origin(hint) is not Callable and any(map(is_bare, get_args(hint))))


def ours() -> list[str]:
    """Every class and function of ours that a config names."""
    text = "\n".join(path.read_text() for path in CONFIGS.rglob("*.yaml"))
    return sorted(set(re.findall(r"_target_: ?((?:rnri|nao|seedselect|experiments)\.[\w.]+)", text)))


@pytest.mark.parametrize("target", ours())
def test_what_a_config_names_bounds_its_numbers(target):
    """The type hints are the check: a bare ``int`` or ``float`` would let anything through."""
    bare = [name for name, hint in parameter_hints(get_object(target)).items() if is_bare(hint)]
    assert not bare


def test_values_are_looked_at_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "instantiate", lambda *_, **__: pytest.fail("something was made"))
    with pytest.raises(ValueError, match=r"select\.iterations=2\.5"):
        train.prepare(composed("select.iterations=2.5", f"run_dir={tmp_path}/run"))


def test_what_hydra_would_add_is_refused_where_nothing_takes_it():
    config = composed()
    OmegaConf.set_struct(config, False)
    config.task.extra = 1
    with pytest.raises(ValueError, match=r"task\.extra is no setting"):
        check(config)
