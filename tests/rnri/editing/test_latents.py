"""Edits inside a method's reconstruction equal edits by the pipeline, and do not modify the network."""

import pytest
import torch

import rnri
from rnri.editing import Injection, PromptToPrompt, edit, edit_config_class, edit_latents
from rnri.methods import EDICT, DirectInversion, EditFriendly
from tests.pipelines import tiny_sd3, tiny_stable_diffusion
from tests.rnri.editing.test_edit import STEPS, Seeds

PIPELINES = {"sd": tiny_stable_diffusion, "sd3": tiny_sd3}
EDIT_CONFIGS = {"sd": PromptToPrompt(cross=0.5, self_attention=0.5), "sd3": Injection(share=0.5)}


@pytest.fixture(scope="module")
def models():
    result = {name: rnri.LatentDiffusion(make_pipeline()) for name, make_pipeline in PIPELINES.items()}
    for model in result.values():
        model.pipeline.set_progress_bar_config(disable=True)
    return result


def invert(model, method, guidance=1.0):
    z0 = model.noise(range(2), 0)
    schedule = model.schedule(STEPS)
    return method.invert(z0, model.predictor(["a cat", "a owl"], guidance), schedule), schedule, z0


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_edit_of_a_seed_equals_pipeline(models, name, guidance):
    model = models[name]
    method = rnri.ImplicitInverter(rnri.FixedPoint(1))
    inversion, schedule, _ = invert(model, method, guidance)
    reconstructions, edited = edit_latents(
        model,
        method,
        inversion,
        schedule,
        prompts=["a cat", "a owl"],
        edited=["a dog", "a hat"],
        edit_config=EDIT_CONFIGS[name],
        guidance=guidance,
    )
    seeds = Seeds(("a cat", "a owl"), inversion.seed.float(), guidance, STEPS, model.image_size)
    expected = edit(model.pipeline, seeds, ["a dog", "a hat"], EDIT_CONFIGS[name], output_type="latent")
    torch.testing.assert_close(edited.float(), expected.images, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(reconstructions.float(), expected.reconstructions, atol=2e-4, rtol=2e-4)
    without_attention = method.reconstruct(inversion, model.predictor(["a dog", "a hat"], guidance), schedule)
    assert (edited - without_attention).abs().max() > 1e-3


@pytest.mark.parametrize("method", [EDICT(), DirectInversion(), EditFriendly(keep_last_map=True)], ids=str)
def test_methods_that_store_more_than_a_seed(models, method):
    model = models["sd"]
    processors = model.pipeline.unet.attn_processors
    inversion, schedule, z0 = invert(model, method)
    reconstructions, edited = edit_latents(
        model, method, inversion, schedule, prompts=["a cat", "a owl"], edited=["a dog", "a hat"]
    )
    torch.testing.assert_close(reconstructions, z0.double(), atol=1e-4, rtol=1e-4)
    assert (edited - reconstructions).flatten(1).abs().amax(1).min() > 1e-3
    _, unchanged = edit_latents(
        model, method, inversion, schedule, prompts=["a cat", "a owl"], edited=["a cat", "a owl"]
    )
    torch.testing.assert_close(unchanged, reconstructions, atol=1e-5, rtol=1e-5)
    assert model.pipeline.unet.attn_processors == processors


def test_edit_config_class_of_families(models):
    assert edit_config_class(models["sd"]) is PromptToPrompt and edit_config_class(models["sd3"]) is Injection


def test_invalid_input(models):
    model = models["sd"]
    method = rnri.ImplicitInverter(rnri.FixedPoint(1))
    inversion, schedule, _ = invert(model, method)
    with pytest.raises(ValueError, match="1 prompts and 2 edited prompts for 2 images"):
        edit_latents(model, method, inversion, schedule, prompts=["a cat"], edited=["a dog", "a hat"])
    edit_config = PromptToPrompt(blend=["cat"])
    with pytest.raises(ValueError, match=r"blend=.* needs the latents after every step"):
        edit_latents(
            model,
            method,
            inversion,
            schedule,
            prompts=["a cat", "a owl"],
            edited=["a dog", "a hat"],
            edit_config=edit_config,
        )
