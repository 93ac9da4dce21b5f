"""Edits within any method's reconstruction are those of a call of the pipeline, and leave the network as it was."""

import pytest
import torch

import rnri
from rnri.editing import Injection, PromptToPrompt, edit, edit_config_class, edit_latents
from rnri.methods import EDICT, DirectInversion, EditFriendly
from tests.pipelines import tiny_sd3, tiny_stable_diffusion
from tests.rnri.editing.test_edit import STEPS, Seeds

MAKERS = {"sd": tiny_stable_diffusion, "sd3": tiny_sd3}
HOW = {"sd": PromptToPrompt(cross=0.5, self_attention=0.5), "sd3": Injection(share=0.5)}


@pytest.fixture(scope="module")
def models():
    found = {name: rnri.LatentDiffusion(make()) for name, make in MAKERS.items()}
    for model in found.values():
        model.pipeline.set_progress_bar_config(disable=True)
    return found


def inverted(model, method, guidance=1.0):
    z0, schedule = model.noise(range(2), 0), model.schedule(STEPS)
    return method.invert(z0, model.predictor(["a cat", "a owl"], guidance), schedule), schedule, z0


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_of_a_seed_it_is_the_edit_of_the_pipeline(models, name, guidance):
    model, method = models[name], rnri.ImplicitInverter(rnri.FixedPoint(1))
    inversion, schedule, _ = inverted(model, method, guidance)
    again, edited = edit_latents(
        model, method, inversion, ["a cat", "a owl"], ["a dog", "a hat"], schedule, HOW[name], guidance
    )
    seeds = Seeds(("a cat", "a owl"), inversion.seed.float(), guidance, STEPS, model.image_size)
    theirs = edit(model.pipeline, seeds, ["a dog", "a hat"], HOW[name], output_type="latent")
    torch.testing.assert_close(edited.float(), theirs.images, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(again.float(), theirs.reconstructions, atol=2e-4, rtol=2e-4)
    plain = method.reconstruct(inversion, model.predictor(["a dog", "a hat"], guidance), schedule)
    assert (edited - plain).abs().max() > 1e-3  # attention was taken over


@pytest.mark.parametrize("method", [EDICT(), DirectInversion(), EditFriendly(keep_last_map=True)], ids=str)
def test_methods_that_keep_more_than_a_seed_edit_beside_an_exact_source(models, method):
    model = models["sd"]
    found = model.pipeline.unet.attn_processors
    inversion, schedule, z0 = inverted(model, method)
    again, edited = edit_latents(model, method, inversion, ["a cat", "a owl"], ["a dog", "a hat"], schedule)
    torch.testing.assert_close(again, z0.double(), atol=1e-4, rtol=1e-4)
    assert (edited - again).flatten(1).abs().amax(1).min() > 1e-3
    _, same = edit_latents(model, method, inversion, ["a cat", "a owl"], ["a cat", "a owl"], schedule)
    torch.testing.assert_close(same, again, atol=1e-5, rtol=1e-5)
    assert model.pipeline.unet.attn_processors == found


def test_what_edits_by_attention_is_the_family_s(models):
    assert edit_config_class(models["sd"]) is PromptToPrompt and edit_config_class(models["sd3"]) is Injection


def test_what_cannot_be_is_refused(models):
    model, method = models["sd"], rnri.ImplicitInverter(rnri.FixedPoint(1))
    inversion, schedule, _ = inverted(model, method)
    with pytest.raises(ValueError, match="1 prompts and 2 edits of 2 images: give as many"):
        edit_latents(model, method, inversion, ["a cat"], ["a dog", "a hat"], schedule)
    with pytest.raises(ValueError, match=r"blend=.* acts on the latents after every step"):
        edit_config = PromptToPrompt(blend=["cat"])
        edit_latents(model, method, inversion, ["a cat", "a owl"], ["a dog", "a hat"], schedule, edit_config)
