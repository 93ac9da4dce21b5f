"""Invalid values in a checkpoint's configs are rejected before the weights are read."""

import pytest

from rnri import LatentDiffusion
from rnri.models import checkpoint as checkpoint_module
from tests.pipelines import tiny_flux, tiny_stable_diffusion
from tests.rnri.models.checkpoints import assert_rejected, load, update_json

VALUES = [
    ("vae", "scaling_factor", 0),
    ("vae", "scaling_factor", float("nan")),
    ("vae", "scaling_factor", None),
    ("vae", "shift_factor", float("nan")),
    ("vae", "shift_factor", "0.1"),
    ("vae", "latents_std", [1.0, 0.0, 1.0, 1.0]),
    ("vae", "latents_mean", [float("inf")] * 4),
    ("scheduler", "prediction_type", "noise"),
    ("scheduler", "num_train_timesteps", 0),
    ("scheduler", "num_train_timesteps", 1000.5),
    ("scheduler", "beta_schedule", "quadratic"),
    ("scheduler", "beta_end", 2),
    ("scheduler", "beta_start", float("nan")),
    ("scheduler", "timestep_spacing", "leadings"),
    ("unet", "sample_size", 0),
    ("unet", "sample_size", [8]),
]


@pytest.mark.parametrize(("component", "key", "value"), VALUES)
def test_value_in_a_folder(checkpoint_copy, monkeypatch, component, key, value):
    file = checkpoint_copy / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
    update_json(file, **{key: value})
    monkeypatch.setattr(checkpoint_module, "_load_networks", lambda *_: pytest.fail("weights were read"))
    assert_rejected(lambda: load(checkpoint_copy), f"{key}={value!r} in {file}: must be", "restore")


def test_values_of_a_loaded_pipeline():
    pipe = tiny_stable_diffusion()
    pipe.vae.register_to_config(scaling_factor=0)
    assert_rejected(lambda: LatentDiffusion(pipe), "scaling_factor=0 in the config.json of the vae: must be")
    pipe = tiny_stable_diffusion()
    pipe.scheduler.register_to_config(prediction_type="noise")
    assert_rejected(lambda: LatentDiffusion(pipe), "prediction_type='noise' in scheduler_config.json: must be one of")
    pipe = tiny_flux()
    pipe.scheduler.register_to_config(shift=0.0)
    assert_rejected(lambda: LatentDiffusion(pipe), "shift=0.0 in scheduler_config.json: must be a finite number > 0")
