"""A LoRA and another scheduler on a loaded checkpoint equal those that diffusers sets."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from rnri import LatentDiffusion
from rnri.models import adapters
from rnri.models.adapters import set_scheduler
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
    "no lora": (dict(lora="base/unet"), "could not be loaded"),
}


@pytest.mark.parametrize(("options", "message"), INVALID_OPTIONS.values(), ids=INVALID_OPTIONS)
def test_invalid_options(folders, options, message):
    if "lora" in options and not options["lora"].startswith("/"):
        options = {"lora": folders / options["lora"]}
    with pytest.raises(ValueError, match=message) as error:
        load(folders, **options, local_files_only=True)
    assert "\n" not in str(error.value)


@dataclass
class Pipeline:
    """A pipeline that only has a scheduler."""

    scheduler: SchedulerMixin


FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
EULER = "FlowMatchEulerDiscreteScheduler"


@pytest.mark.parametrize(
    ("scheduler", "names"),
    [
        (DPMSolverMultistepScheduler(flow_shift=3.0, **FLOW_SIGMAS), [EULER]),
        (DPMSolverMultistepScheduler(**FLOW_SIGMAS), [EULER]),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), ["UniPCMultistepScheduler"]),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), ["FlowMatchHeunDiscreteScheduler", "DEISMultistepScheduler"]),
        (DPMSolverMultistepScheduler(flow_shift=3.0, **FLOW_SIGMAS), [EULER, "DPMSolverSinglestepScheduler", EULER]),
    ],
)
def test_shift_keeps_its_value(scheduler, names):
    expected = scheduler.config.get("shift", scheduler.config.get("flow_shift"))
    pipe = Pipeline(scheduler)
    for name in names:
        set_scheduler(pipe, name)
        assert type(pipe.scheduler).__name__ == name
        assert pipe.scheduler.config["shift" if name.startswith("FlowMatch") else "flow_shift"] == expected


def test_euler_scheduler_keeps_the_noise_levels_of_sanas_scheduler():
    original = DPMSolverMultistepScheduler(flow_shift=3.0, **FLOW_SIGMAS)
    pipe = Pipeline(original)
    set_scheduler(pipe, EULER)
    pipe.scheduler.set_timesteps(20)
    expected = FlowMatchEulerDiscreteScheduler(shift=3.0)
    expected.set_timesteps(20)
    assert torch.equal(pipe.scheduler.sigmas, expected.sigmas)
    # Both schedulers shift the noise levels in the same way. Only their noise levels before the shift differ.
    original.set_timesteps(20)
    before_shift = np.linspace(0, 1 - 1 / 1000, 21)[:0:-1]
    pipe.scheduler.set_timesteps(sigmas=before_shift)
    torch.testing.assert_close(pipe.scheduler.sigmas, original.sigmas, rtol=0, atol=1e-6)


def test_multistep_scheduler_keeps_the_noise_levels_of_flow_matching():
    original = DPMSolverMultistepScheduler(flow_shift=3.0, **FLOW_SIGMAS)
    original.set_timesteps(20)
    pipe = Pipeline(FlowMatchEulerDiscreteScheduler(shift=3.0))
    set_scheduler(pipe, "DPMSolverMultistepScheduler")
    pipe.scheduler.set_timesteps(20)
    assert torch.equal(pipe.scheduler.sigmas, original.sigmas)
    assert pipe.scheduler.config.prediction_type == "flow_prediction"


def test_scheduler_without_zero_terminal_snr_is_refused():
    pipe = Pipeline(DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    with pytest.raises(ValueError, match=r"scheduler='PNDMScheduler': .* \(rescale_betas_zero_snr\)"):
        set_scheduler(pipe, "PNDMScheduler")
    set_scheduler(pipe, "EulerDiscreteScheduler")
    assert pipe.scheduler.config.rescale_betas_zero_snr


def test_lora_needs_peft(folders, monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install peft"):
        load(folders, lora=folders / "lora")


@pytest.fixture
def lora(folders, tmp_path):
    """Return a function that writes a changed copy of the LoRA and returns the path of the file."""

    def write(change):
        path = tmp_path / "lora.safetensors"
        save_file(change(load_file(folders / "lora" / "pytorch_lora_weights.safetensors")), path)
        return path

    return write


def renamed(old, new):
    return lambda state: {name.replace(old, new): weight for name, weight in state.items()}


def kohya(state):
    """The same LoRA in the format of kohya's sd-scripts."""
    result = {}
    for name, weight in state.items():
        layer, _, kind = name.removeprefix("unet.").rpartition(".lora_")
        kind = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[kind]
        result[f"lora_unet_{layer.replace('.', '_')}.{kind}"] = weight
    return result


def old_diffusers(state):
    """The same LoRA in diffusers' first format."""
    result = {}
    for name, weight in state.items():
        layer, _, kind = name.rpartition(".lora_")
        attention, _, projection = layer.rpartition(".")
        kind = {"A.weight": "down.weight", "B.weight": "up.weight"}[kind]
        result[f"{attention}.processor.{projection}_lora.{kind}"] = weight
    return result


def text_encoder(prefix):
    layer = f"{prefix}.text_model.encoder.layers.0.self_attn.q_proj"
    weights = {f"{layer}.lora_A.weight": torch.ones(2, 32), f"{layer}.lora_B.weight": torch.ones(32, 2)}
    return lambda state: state | weights


@pytest.mark.slow
@pytest.mark.parametrize("change", [kohya, old_diffusers])
def test_other_formats(folders, lora, change):
    expected = load(folders, lora=folders / "lora").fingerprint
    assert load(folders, lora=lora(change)).fingerprint == expected


def test_lora_of_the_text_encoder(folders, lora):
    model = load(folders, lora=lora(text_encoder("text_encoder")))
    layers = [dict(m.pipeline.text_encoder.named_parameters()) for m in (model, load(folders))]
    changed = [name for name in layers[0] if not torch.equal(layers[0][name], layers[1][name])]
    assert len(changed) == 1 and changed[0].endswith("layers.0.self_attn.q_proj.weight")


PARTIAL = {
    "some layers": (renamed("down_blocks.1", "down_blocks.7"), "such as unet.down_blocks.7.attentions"),
    "all layers": (renamed("attn", "other"), "such as unet."),
    "other component": (renamed("unet.", "transformer."), "such as transformer."),
    "second text encoder": (text_encoder("text_encoder_2"), "1 of its .* layers, such as text_encoder_2.encoder"),
    "layer of a text encoder": (
        lambda state: {n.replace("layers.0", "layers.9"): w for n, w in text_encoder("text_encoder")(state).items()},
        "such as text_encoder.encoder.layers.9",
    ),
}


@pytest.mark.parametrize(("change", "message"), PARTIAL.values(), ids=PARTIAL)
def test_lora_that_fits_in_part(folders, lora, change, message):
    with pytest.raises(ValueError, match=rf"lora .* does not fit this checkpoint: .*{message}") as error:
        load(folders, lora=lora(change))
    assert "\n" not in str(error.value)


def test_dora_of_kohya_is_rejected(folders, lora):
    """diffusers drops ``dora_scale`` and would add the rest as a LoRA."""

    def dora(state):
        scales = {name.replace("lora_up.weight", "dora_scale"): torch.ones(len(w), 1) for name, w in state.items()}
        return state | {name: scale for name, scale in scales.items() if "dora_scale" in name}

    with pytest.raises(
        ValueError, match=r"weights that diffusers ignores, such as lora_unet_.*dora_scale \(it is a DoRA"
    ):
        load(folders, lora=lora(lambda state: dora(kohya(state))))


def test_dora_of_peft_is_fused(folders, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(folders / "base", safety_checker=None)
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False, use_dora=True)
    pipe.unet.add_adapter(config)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    z = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    expected = LatentDiffusion(pipe).predictor(PROMPTS)(z, 499)
    torch.testing.assert_close(load(folders, lora=tmp_path).predictor(PROMPTS)(z, 499), expected, rtol=1e-4, atol=1e-4)
