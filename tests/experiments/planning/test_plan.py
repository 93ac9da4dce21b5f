"""``plan``: every experiment says what it would take and computes nothing; the counts are those of a run."""

from pathlib import Path

import pytest
import torch

import train
from experiments.data.concepts import EmojiConcepts
from experiments.evaluation import load_classifier
from experiments.planning.cost import Cost, Planned, inversion_cost
from experiments.planning.plan import batch_times, hours, print_plan, table
from experiments.rare_concepts import Arm
from nao import centroid_seeds
from rnri import FixedPoint, ImplicitInverter, LatentDiffusion, RNRIPaper
from rnri.methods import NullText
from rnri.models.predictor import NoisePredictor
from seedselect import ClipFeatures, SeedSelect
from tests.commands import composed
from tests.experiments import tiny_configs as small

EXPERIMENTS = sorted(path.stem for path in Path("configs/experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def loaded_once():
    """The embedded networks and concepts are those of most experiments: they are loaded once for all of them."""
    kept: dict[str, object] = {}

    def once(make):
        def made(*args, **options):
            key = repr((make.__qualname__, args, sorted(options.items())))
            if key not in kept:
                kept[key] = make(*args, **options)
            return kept[key]

        return made

    with pytest.MonkeyPatch.context() as patch:
        for owner in (LatentDiffusion, ClipFeatures):
            patch.setattr(owner, "from_pretrained", staticmethod(once(owner.from_pretrained)))
        patch.setattr("experiments.base.load_classifier", once(load_classifier))
        patch.setattr(EmojiConcepts, "concepts", once(EmojiConcepts.concepts))
        yield


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.usefixtures("loaded_once")
def test_every_experiment_has_a_plan(experiment, tmp_path, capsys):
    options = [f"experiment={experiment}", f"run_dir={tmp_path}/run", "plan=counts", "trainer.accelerator=cpu"]
    config = composed(*options)
    task, trainer = train.prepare(config)
    print_plan(config, task, trainer)
    said = capsys.readouterr().out
    total = next(line for line in said.splitlines() if line.startswith("| total |")).split("|")
    units, forward = (int(total[k].replace(",", "")) for k in (2, 4))
    assert units > 0 and forward > 0 and "nothing is computed" in said
    assert not (tmp_path / "run" / "units").exists()


def counted(monkeypatch) -> list[NoisePredictor]:
    """Every predictor that a model makes from now on."""
    made, make = [], LatentDiffusion.predictor

    def predictor(self, *args, **options):
        made.append(make(self, *args, **options))
        return made[-1]

    monkeypatch.setattr(LatentDiffusion, "predictor", predictor)
    return made


@pytest.mark.parametrize("checkpoint", [False, True])
def test_planned_evaluations_are_those_of_the_run(tmp_path, monkeypatch, checkpoint):
    """With guidance off, where a sample is a row; patience 0, so that none stops early."""
    arm = Arm(1.0, ImplicitInverter(FixedPoint(2, tolerance=0.0)), centroid_seeds, SeedSelect(2, step_weights=(1.0,)),
              gradient_steps=2)  # fmt: skip
    task = small.rare_concepts(tmp_path, {"plain": Arm(1.0), "a": arm, "b": arm}, steps=3, checkpoint=checkpoint)
    trainer = small.trainer()
    task.prepare(trainer)
    planned = sum((stage.cost for stage in task.plan()), Cost())
    made = counted(monkeypatch)
    task.make_images(trainer)
    calls = 4  # of the announcement, each of a batch, are no part of the run
    announced = calls * len(task.prompts())
    assert sum(p.forward_evaluations for p in made) - announced == planned.forward
    assert sum(p.backward_evaluations for p in made) == planned.backward
    done = task.plan()
    assert sum(stage.done for stage in done) == 9 and sum((stage.cost for stage in done), Cost()) == Cost()


def test_inversions_are_counted_without_the_network():
    schedule = small.tiny().schedule(4)
    fixed = ImplicitInverter(FixedPoint(3, tolerance=0.0))
    assert inversion_cost(fixed, schedule, 1.0, 4) == Cost(12)
    assert inversion_cost(fixed, schedule, 3.0, 4) == Cost(24)  # guidance has a row of its own
    newton = inversion_cost(ImplicitInverter(RNRIPaper(3)), schedule, 1.0, 4)
    assert newton.forward == 12 and newton.backward == 8  # none after the last
    null = inversion_cost(NullText(5), schedule, 3.0, 4)
    assert null.backward > 0 and null.forward > 4 * 5


def test_times_are_of_what_the_stages_use():
    model = small.tiny()
    stages = [Planned("a", 1, 0, Cost(10, 2, 5, 1))]
    times = batch_times(model, ["a cat", "an owl"], stages)
    assert set(times) == {"forward", "backward", "decodings", "decodings_backward"} and times["forward"] > 0
    assert set(batch_times(model, ["a cat"], [Planned("a", 1, 0, Cost(10))])) == {"forward"}
    said = hours(stages, model, ["a cat"], 2)
    assert "1 device: about" in said and "2 devices: about" in said and "Peak memory" in said
    assert "| total | 1 | 0 | 10 | 5 | 2 | 1 |" in table(stages)
    assert torch.is_grad_enabled()
