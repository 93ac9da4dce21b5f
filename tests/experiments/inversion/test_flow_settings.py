"""Methods and settings that the model does not support are skipped or reported."""

import pytest

from experiments.runtime.setup import setup
from tests.commands import composed


def setting(steps: int, method: str) -> str:
    fields = f"_target_: experiments.inversion.jobs.Setting, steps: {steps}, methods: [{method}]"
    return f"task.settings=[{{{fields}}}]"


def prepared(folder, *overrides):
    config = composed(f"run_dir={folder}", "trainer.accelerator=cpu", "task.images=1", *overrides)
    return setup(config)[0]


@pytest.mark.slow
def test_method_of_another_model_family_is_skipped_with_a_reason(tmp_path):
    task = prepared(tmp_path, "experiment=reconstruction", "model=emoji_flow")
    assert list(task.skipped) == ["ledits"]
    assert "pure noise" in task.skipped["ledits"]
    methods = {job.method for job in task.jobs}
    assert "ledits" not in methods and {"vae", "edict", "accelerated"} <= methods
    assert not prepared(tmp_path, "experiment=reconstruction").skipped


@pytest.mark.slow
def test_rejects_a_run_without_any_supported_method(tmp_path):
    with pytest.raises(ValueError, match=r"task\.methods\.ledits with 4 sampling steps: LEDITS"):
        prepared(tmp_path, "experiment=reconstruction", "model=emoji_flow", setting(4, "ledits"))


@pytest.mark.slow
def test_rejects_too_few_steps_for_a_supported_method(tmp_path):
    message = (
        r"task\.methods\.aidi_adjusted with 2 sampling steps: "
        r"steps: must be less than the number of schedule steps \(2\)"
    )
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, "experiment=guidance", setting(2, "aidi_adjusted"))


def test_settings_of_a_budget_have_equal_numbers_of_evaluations():
    settings = composed("experiment=equal_evaluations").task.settings
    solvers = [each for each in settings if "nfe" in each]
    totals = {bool(each.get("edit")): set() for each in solvers}
    for each in solvers:
        totals[bool(each.get("edit"))].add(each.steps * (each.nfe + 1))
    assert totals == {False: {164, 165}, True: {74, 75}}
    others = {each.methods[0]: each.steps for each in settings if "nfe" not in each}
    assert others == {"uni_inv": 82, "fireflow": 81, "rf_solver": 41}
    assert (2 * others["uni_inv"] + 1, 2 * (others["fireflow"] + 1), 4 * others["rf_solver"]) == (165, 164, 164)
