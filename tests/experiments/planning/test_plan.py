"""With ``plan=true``, every experiment prints its cost and computes nothing. The cost is that of a real run."""

from pathlib import Path

import pytest
import torch

from experiments.data.concepts import EmojiConcepts
from experiments.editing import make_benchmark
from experiments.evaluation.classifier import load_classifier
from experiments.planning.cost import Cost, StagePlan, inversion_cost
from experiments.planning.plan import format_time_estimate, print_plan, seconds_per_image, table
from experiments.rare_concepts.arm import Arm
from experiments.runtime.setup import setup
from nao import centroid_seeds
from rnri import FixedPoint, ImplicitInverter, LatentDiffusion, RNRIPaper
from rnri.methods import NullText
from rnri.models.predictor import NoisePredictor
from seedselect import ClipFeatures, SeedSelect
from tests.commands import composed
from tests.experiments import tiny_configs as small
from tests.fakes import standin

EXPERIMENTS = sorted(path.stem for path in Path("configs/experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def loaded_once():
    """Load the embedded networks and concepts, which most experiments use, only once; write a small benchmark."""
    cached: dict[str, object] = {}

    def once(make):
        def load(*args, **options):
            key = repr((make.__qualname__, args, sorted(options.items())))
            if key not in cached:
                cached[key] = make(*args, **options)
            return cached[key]

        return load

    with pytest.MonkeyPatch.context() as patch:
        for owner in (LatentDiffusion, ClipFeatures):
            patch.setattr(owner, "from_pretrained", staticmethod(once(owner.from_pretrained)))
        patch.setattr("experiments.base.load_classifier", once(load_classifier))
        patch.setattr(EmojiConcepts, "concepts", once(EmojiConcepts.concepts))
        patch.setattr(make_benchmark, "COUNTS", dict.fromkeys(make_benchmark.COUNTS, 5))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.usefixtures("loaded_once")
def test_every_experiment_has_a_plan(experiment, tmp_path, capsys):
    options = [f"experiment={experiment}", f"run_dir={tmp_path}/run", "plan=counts", "trainer.accelerator=cpu"]
    config = composed(*options)
    task, trainer = setup(config)
    print_plan(config, task, trainer)
    output = capsys.readouterr().out
    total = next(line for line in output.splitlines() if line.startswith("| total |")).split("|")
    units, forward = (int(total[k].replace(",", "")) for k in (2, 4))
    assert units > 0 and forward > 0 and "nothing is computed" in output
    assert not (tmp_path / "run" / "units").exists()


GUIDE = Path("docs/guides/imagenet_on_a_cluster.md")
CLASSES = 2


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The stages of the guide's command for ``CLASSES`` classes, by number of steps."""
    folder = tmp_path_factory.mktemp("standin")
    standin(folder, CLASSES)
    command = GUIDE.read_text().replace("\\\n", " ").partition("train.py experiment=table3 model=sd model.path")[2]
    options = f"experiment=table3 model=sd model.path{command.splitlines()[0]}".replace("standin", str(folder)).split()
    options += [f"run_dir={folder}/run", "trainer.accelerator=cpu"]
    plans = {}
    for steps in (20, 4):
        task, trainer = setup(composed(*options, f"task.steps={steps}"))
        plans[steps] = task.plan(trainer)
    return plans


@pytest.mark.slow
def test_table_of_the_guide_equals_the_plan_of_its_command(planned):
    """The numbers are proportional to the number of classes, which is 1,000 in the guide."""
    lines = GUIDE.read_text().partition("| stage | forward, 20 steps")[2].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]
    documented = {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in cells}
    columns = ((20, "forward"), (20, "backward"), (4, "forward"), (4, "backward"), (20, "decodings"),
               (20, "decodings_backward"))  # fmt: skip
    expected = {
        stage.stage: [round(getattr(planned[steps][k].cost, name) * 1000 / CLASSES) for steps, name in columns]
        for k, stage in enumerate(planned[20])
    }
    expected["total"] = [sum(column) for column in zip(*expected.values(), strict=True)]
    assert documented == expected
    assert [stage.stage for stage in planned[4]] == [stage.stage for stage in planned[20]]
    arms = {stage.stage.partition(",")[0] for stage in planned[20]}
    assert len(arms) == 7 and "seven arms" in GUIDE.read_text()


def record_predictors(monkeypatch) -> list[NoisePredictor]:
    """Return a list to which every predictor that a model creates is appended."""
    predictors = []
    create = LatentDiffusion.predictor

    def predictor(self, *args, **options):
        predictors.append(create(self, *args, **options))
        return predictors[-1]

    monkeypatch.setattr(LatentDiffusion, "predictor", predictor)
    return predictors


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_planned_evaluations_equal_those_of_the_run(tmp_path, monkeypatch, checkpoint):
    """Guidance is off, so that a sample is one row of a batch; with patience 0 no seed stops early."""
    arm = Arm(1.0, ImplicitInverter(FixedPoint(2, tolerance=0.0)), centroid_seeds, SeedSelect(2, step_weights=(1.0,)),
              gradient_steps=2)  # fmt: skip
    task = small.rare_concepts(
        tmp_path, {"plain": Arm(1.0), "a": arm, "b": arm}, steps=3, gradient_checkpointing=checkpoint
    )
    trainer = small.trainer()
    task.prepare(trainer)
    planned = sum((stage.cost for stage in task.plan(trainer)), Cost())
    predictors = record_predictors(monkeypatch)
    task.compute(trainer)
    timed = 4 * len(task.prompts())  # the estimate before the run times four batches
    assert sum(p.forward_evaluations for p in predictors) - timed == planned.forward
    assert sum(p.backward_evaluations for p in predictors) == planned.backward
    done = task.plan(trainer)
    assert sum(stage.done for stage in done) == 9 and sum((stage.cost for stage in done), Cost()) == Cost()


def test_inversion_cost_is_counted_without_network():
    schedule = small.tiny().schedule(4)
    fixed = ImplicitInverter(FixedPoint(3, tolerance=0.0))
    assert inversion_cost(fixed, schedule, 1.0, 4) == Cost(12)
    assert inversion_cost(fixed, schedule, 3.0, 4) == Cost(24)  # guidance doubles the rows
    newton = inversion_cost(ImplicitInverter(RNRIPaper(3)), schedule, 1.0, 4)
    assert newton.forward == 12 and newton.backward == 8  # no derivative after the last iteration
    null = inversion_cost(NullText(5), schedule, 3.0, 4)
    assert null.backward > 0 and null.forward > 4 * 5


def test_only_used_operations_are_timed():
    model = small.tiny()
    stages = [StagePlan("a", 1, 0, Cost(10, 2, 5, 1))]
    times = seconds_per_image(model, ["a cat", "an owl"], stages)
    assert set(times) == {"forward", "backward", "decodings", "decodings_backward"} and times["forward"] > 0
    assert set(seconds_per_image(model, ["a cat"], [StagePlan("a", 1, 0, Cost(10))])) == {"forward"}
    text = format_time_estimate(stages, model, ["a cat"], 2)
    assert "1 device: about" in text and "2 devices: about" in text and "Peak memory" in text
    assert "| total | 1 | 0 | 10 | 5 | 2 | 1 |" in table(stages)
    assert torch.is_grad_enabled()
