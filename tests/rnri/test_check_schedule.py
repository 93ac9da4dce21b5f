"""``check_schedule`` rejects unsupported schedules with the error of ``invert``, before any network evaluation."""

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
def test_supported_schedules_are_accepted(models, method, kind, steps):
    assert check_schedule(method, models[kind].schedule(steps)) is None


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        (PromptAware(PLAIN), "diffusion", "steps"),
        (PromptAware(EDICT()), "diffusion", "EDICT"),
        (PromptAware(RFSolver(), reuse=False), "diffusion", "flow-matching model"),
        (LEditsPP(), "flow", "noise"),
        (RFSolver(), "diffusion", "flow-matching model"),
    ],
)
def test_unsupported_schedules_raise_as_invert_does(models, method, kind, message):
    model = models[kind]
    schedule = model.schedule(2)
    predictor = model.predictor(["a cat"])
    with pytest.raises(ValueError, match=message) as checked:
        check_schedule(method, schedule)
    with pytest.raises(ValueError, match=message) as inverted:
        method.invert(model.noise(["cat"], seed=0), predictor, schedule)
    assert str(checked.value) == str(inverted.value)
    assert predictor.calls == 0
