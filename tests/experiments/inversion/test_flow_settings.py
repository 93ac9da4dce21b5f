"""Evaluations and costs of methods whose solver's evaluations are two of the network each; the seeds' norm."""

import pytest

import train
from experiments.inversion.report import summary
from tests.commands import composed


@pytest.mark.parametrize(("norms", "expected"), [([0.9, 1.0, 5.0], 1.0), ([0.9, 1.0, float("nan")], 1.0)])
def test_the_norm_of_a_row_is_a_median_that_a_lost_sample_does_not_move(norms, expected):
    first = {"start": None, "images": "real", "method": "ddim", "steps": 4, "guidance": 1.0, "nfe": None}
    first |= {"prompts": "right", "generated": False, "psnr": 1.0, "latent_mse": 1.0}
    assert summary([{**first, "norm": norm} for norm in norms], seed=0)["norm"] == expected


def prepared(folder, *overrides):
    config = composed(f"run_dir={folder}", "trainer.accelerator=cpu", "task.images=1", *overrides)
    return train.prepare(config)[0]


def test_a_method_of_other_models_is_left_out_with_its_reason(tmp_path):
    task = prepared(tmp_path, "experiment=reconstruction", "model=emoji_flow")
    assert list(task.left_out) == ["ledits"] and "noise alone" in task.left_out["ledits"]
    methods = {job.method for job in task.jobs}
    assert "ledits" not in methods and {"vae", "edict", "accelerated"} <= methods
    assert not prepared(tmp_path, "experiment=reconstruction").left_out


def test_where_no_method_fits_the_model_that_is_said(tmp_path):
    only = "task.settings=[{_target_: experiments.inversion.jobs.Setting, steps: 4, methods: [ledits]}]"
    with pytest.raises(ValueError, match=r"task\.methods\.ledits in a setting of 4 steps: LEDITS"):
        prepared(tmp_path, "experiment=reconstruction", "model=emoji_flow", only)


def test_too_few_steps_for_a_method_that_fits_are_said(tmp_path):
    few = "task.settings=[{_target_: experiments.inversion.jobs.Setting, steps: 2, methods: [aidi_adjusted]}]"
    with pytest.raises(
        ValueError, match=r"task\.methods\.aidi_adjusted in a setting of 2 steps: steps=2 must be fewer"
    ):
        prepared(tmp_path, "experiment=guidance", few)
