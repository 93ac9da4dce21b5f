"""A LoRA and another scheduler on a loaded checkpoint equal those that diffusers sets."""

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from rnri import LatentDiffusion
from rnri.models import adapters
from tests.pipelines import LATENT_SHAPE, tiny_stable_diffusion

PROMPTS = ["a cat", "two dogs"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a checkpoint ``base`` and its ``lora``."""
    root = tmp_path_factory.mktemp("lora")
    pipe = tiny_stable_diffusion()
    pipe.save_pretrained(root / "base")
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    StableDiffusionPipeline.save_lora_weights(root / "lora", unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    (root / "empty").mkdir()
    return root


def load(folders, **options):
    return LatentDiffusion.from_pretrained(folders / "base", device="cpu", dtype="float32", **options)


def test_equals_diffusers(folders):
    pipe = StableDiffusionPipeline.from_pretrained(folders / "base", safety_checker=None)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(folders / "lora")
    expected = LatentDiffusion(pipe)
    model = load(folders, lora=folders / "lora", scheduler="LCMScheduler")
    assert model.schedule(2).timesteps.tolist() == expected.schedule(2).timesteps.tolist() == [999, 499]
    z = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    actual = model.predictor(PROMPTS)(z, 499)
    torch.testing.assert_close(actual, expected.predictor(PROMPTS)(z, 499), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(actual, load(folders).predictor(PROMPTS)(z, 499), atol=1e-3)
    assert model.fingerprint != load(folders).fingerprint


INVALID_OPTIONS = {
    "scheduler": (dict(scheduler="LCM"), "scheduler='LCM': must be a scheduler class of diffusers"),
    "no scheduler": (dict(scheduler="StableDiffusionPipeline"), "must be a scheduler class of diffusers"),
    "nowhere": (dict(lora="/nowhere/lora"), "lora '/nowhere/lora' could not be loaded"),
    "empty": (dict(lora="empty"), "could not be loaded"),
    "no lora": (dict(lora="base/unet"), "could not be loaded|fits no layer"),
}


@pytest.mark.parametrize(("options", "message"), INVALID_OPTIONS.values(), ids=INVALID_OPTIONS)
def test_invalid_options(folders, options, message):
    if "lora" in options and not options["lora"].startswith("/"):
        options = {"lora": folders / options["lora"]}
    with pytest.raises(ValueError, match=message) as error:
        load(folders, **options, local_files_only=True)
    assert "\n" not in str(error.value)


def test_lora_needs_peft(folders, monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install peft"):
        load(folders, lora=folders / "lora")
