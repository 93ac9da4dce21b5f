"""Whether a method can walk a schedule is asked before anything is computed, and answered as the method itself does."""

import pytest

from rnri import FixedPoint, ImplicitInverter, LatentDiffusion, PromptAware, check_schedule
from rnri.methods import EDICT, LEditsPP, RFSolver
from tests.pipelines import tiny_sd3, tiny_stable_diffusion

PLAIN = ImplicitInverter(FixedPoint(2))


@pytest.fixture(scope="module")
def models():
    return {"diffusion": LatentDiffusion(tiny_stable_diffusion()), "flow": LatentDiffusion(tiny_sd3(t5=False))}


@pytest.mark.parametrize(
    ("method", "kind", "steps"),
    [(PLAIN, "diffusion", 1), (PLAIN, "flow", 1), (PromptAware(PLAIN), "diffusion", 3), (RFSolver(), "flow", 2)],
)
def test_a_schedule_that_can_be_walked(models, method, kind, steps):
    assert check_schedule(method, models[kind].schedule(steps)) is None


@pytest.mark.parametrize(
    ("method", "kind", "said"),
    [
        (PromptAware(PLAIN), "diffusion", "steps=2 must be fewer than the schedule's 2"),
        (PromptAware(EDICT()), "diffusion", "EDICT cannot start in mid-schedule"),
        (PromptAware(RFSolver(), reuse=False), "diffusion", "needs a flow-matching model"),
        (LEditsPP(), "flow", "begins with noise alone"),
        (RFSolver(), "diffusion", "needs a flow-matching model"),
    ],
)
def test_one_that_cannot_is_refused_as_by_the_inversion(models, method, kind, said):
    model = models[kind]
    schedule, predictor = model.schedule(2), model.predictor(["a cat"])
    for attempt in (
        lambda: check_schedule(method, schedule),
        lambda: method.invert(model.noise(["cat"], seed=0), predictor, schedule),
    ):
        with pytest.raises(ValueError, match=said):
            attempt()
    assert predictor.calls == 0
