"""Edits of UNet pipelines: the processors do what the paper's matrices do, and leave the pipeline as it was."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, IPAdapterAttnProcessor2_0
from torch import Tensor

import rnri
from rnri.editing import Prompt, PromptToPrompt, align, edit
from rnri.editing.edit import attn_processor
from rnri.models.attention.blend import blend_latents, layer_size
from tests.pipelines import IMAGE_SIZE, LATENT_SHAPE, tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.rnri.models.attention.explicit import ExplicitProcessor

STEPS = 4


@dataclass
class Seeds:
    """What ``edit`` reads of an inversion, of random seeds."""

    prompts: tuple[str, ...]
    latents: Tensor
    guidance: float = 1.0
    steps: int = STEPS
    image_size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)
    negative_prompts: tuple[str, ...] = ()

    @property
    def call(self) -> dict[str, object]:
        return {
            "prompt": list(self.prompts), "latents": self.latents, "num_inference_steps": self.steps,
            "guidance_scale": self.guidance, "height": self.image_size[0], "width": self.image_size[1],
        } | ({"negative_prompt": list(self.negative_prompts)} if self.negative_prompts else {})  # fmt: skip


def seeds(*prompts: str, size: tuple[int, int] = LATENT_SHAPE[1:], dtype=torch.float32, **options) -> Seeds:
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(len(prompts), LATENT_SHAPE[0], *size, generator=random, dtype=dtype)
    return Seeds(prompts, latents, image_size=(2 * size[0], 2 * size[1]), **options)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return quiet(tiny_stable_diffusion())


@pytest.fixture(scope="module")
def exact() -> StableDiffusionPipeline:
    return quiet(tiny_stable_diffusion()).to(torch.float64)


def quiet(pipe):
    """Without a bar of progress, under the scheduler that edits are under, so that plain calls compare."""
    pipe.scheduler = rnri.scheduler_for(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, inversion, prompt, edit_config=None, **options) -> tuple[Tensor, Tensor]:
    """Edits and reconstructions ``[B,4,h,w]``."""
    found = edit(pipe, inversion, prompt, edit_config, output_type="latent", **options)
    return found.images, found.reconstructions


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("size", [LATENT_SHAPE[1:], (4, 12)], ids=str)
@pytest.mark.parametrize(
    "edit_config",
    [
        PromptToPrompt(cross=1.0, self_attention=0.0),
        PromptToPrompt(cross=0.5, self_attention=0.5, substitutes=False),
        PromptToPrompt(cross=0.0, self_attention=1.0, weights={"dog": 3.0}),
        PromptToPrompt(cross=1.0, self_attention=0.3, weights={"x": -1.0}, schedules={"dog": 0.5}),
    ],
    ids=["replace", "refine", "reweight", "schedule"],
)
def test_edits_equal_those_of_explicit_matrices(exact, edit_config, size, guidance):
    source, targets = "a cat x", ["a dog x", "a big dog x"]
    inversion = seeds(source, size=size, dtype=torch.float64, guidance=guidance)
    found, again = latents(exact, inversion, targets, edit_config)
    expected = by_matrices(exact, inversion, source, targets, edit_config)
    torch.testing.assert_close(torch.cat([again, found]), expected, rtol=1e-9, atol=1e-10)
    assert (found[0] - again[0]).abs().max() > 1e-4


def by_matrices(pipe, inversion: Seeds, source: str, targets: list[str], edit_config: PromptToPrompt) -> Tensor:
    """The same by explicit matrices, with a processor made anew at every step."""
    alignments = [read_alignment(pipe, source, target, edit_config) for target in targets]

    def install(step: int) -> None:
        edits = {}
        for row, (target, (transfer, inherited)) in enumerate(zip(targets, alignments, strict=True), start=1):
            words = Prompt.tokenize(target, pipe.tokenizer)
            weights, shares = torch.ones_like(inherited), torch.full_like(inherited, edit_config.cross)
            for word, weight in edit_config.weights.items():
                weights[words.tokens(word)] = weight
            for word, share in edit_config.schedules.items():
                shares[words.tokens(word)] = share
            edits[row] = 0, transfer, inherited * (step / STEPS < shares), weights
        processor = ExplicitProcessor(1 + len(targets), edits, step / STEPS < edit_config.self_attention)
        pipe.unet.set_attn_processor(processor)

    def at_end(pipe, step, timestep, tensors):
        install(step + 1)
        return {}

    found = pipe.unet.attn_processors
    try:
        install(0)
        rows = inversion.latents.expand(1 + len(targets), -1, -1, -1)
        call = inversion.call | {"prompt": [source, *targets], "latents": rows}
        return pipe(**call, output_type="latent", callback_on_step_end=at_end).images
    finally:
        pipe.unet.set_attn_processor(found)


def read_alignment(pipe, source: str, target: str, edit_config: PromptToPrompt) -> tuple[Tensor, Tensor]:
    prompts = (Prompt.tokenize(text, pipe.tokenizer) for text in (source, target))
    alignment = align(*prompts, substitutes=edit_config.substitutes)
    return alignment.transfer, alignment.inherited


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_source_is_the_same_to_the_bit(pipe, guidance):
    inversion = seeds("a cat x", guidance=guidance)
    edit_config = PromptToPrompt(self_attention=0.5, weights={"dog": 2.0}, blend=["cat", "dog"])
    _, again = latents(pipe, inversion, "a dog x", edit_config)
    call = inversion.call | {"prompt": ["a cat x", "a dog x"], "latents": inversion.latents.expand(2, -1, -1, -1)}
    assert torch.equal(again, pipe(**call, output_type="latent").images[:1])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_no_edit_is_the_reconstruction(pipe, guidance):
    inversion = seeds("a cat x", guidance=guidance)
    found, again = latents(pipe, inversion, "a cat x", PromptToPrompt(cross=0.7, self_attention=0.6))
    torch.testing.assert_close(found, again)
    plain = pipe(**inversion.call, output_type="latent").images
    torch.testing.assert_close(again, plain)


def test_shares_of_nought_only_swap_the_prompt(pipe):
    inversion = seeds("a cat x")
    found, _ = latents(pipe, inversion, "a dog x", PromptToPrompt(cross=0.0, self_attention=0.0))
    torch.testing.assert_close(found, pipe(**inversion.call | {"prompt": ["a dog x"]}, output_type="latent").images)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_edits_and_images_of_a_batch_are_independent(pipe, guidance):
    edit_config = PromptToPrompt(cross=0.7, self_attention=0.6, blend=["cat", "dog", "b"])
    both = seeds("a cat x", "b x", guidance=guidance, negative_prompts=("m", "n"))
    found, again = latents(pipe, both, [["a dog x", "cat"], "b y"], edit_config)
    assert len(found) == 3 and len(again) == 2
    single = [
        Seeds((prompt,), both.latents[k : k + 1], guidance, negative_prompts=(both.negative_prompts[k],))
        for k, prompt in enumerate(both.prompts)
    ]
    alone = [
        latents(pipe, single[k], text, replace(edit_config, blend=blend))[0]
        for k, text, blend in ((0, "a dog x", ["cat", "dog"]), (0, "cat", ["cat"]), (1, "b y", ["b"]))
    ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", ["xl", "lcm", "turbo"])
def test_other_unets(what):
    pipe, guidance = quiet(tiny_stable_diffusion_xl()), 3.0
    if what == "lcm":
        distilled = tiny_stable_diffusion(unet={"time_cond_proj_dim": 8})
        parts = distilled.components | {"requires_safety_checker": False}
        pipe = quiet(LatentConsistencyModelPipeline(**parts | {"scheduler": LCMScheduler()}))  # which adds noise
    if what == "turbo":
        pipe, guidance = quiet(tiny_stable_diffusion(timestep_spacing="trailing")), 0.0
    inversion = seeds("a cat x", guidance=guidance, steps=1 if what == "turbo" else STEPS)
    edit_config = PromptToPrompt(blend=["cat", "dog"])
    found, again = latents(pipe, inversion, ["a dog x", "a cat x"], edit_config)
    torch.testing.assert_close(again, pipe(**inversion.call, output_type="latent").images, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1:], again, rtol=1e-4, atol=1e-4)
    assert (found[0] - again[0]).abs().max() > 1e-3


def test_an_image_is_inverted_and_edited_and_the_pipeline_left_as_found():
    pipe = tiny_stable_diffusion()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    scheduler = pipe.scheduler
    pipe.unet.train()
    picture = torch.rand(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    inversion = rnri.invert(pipe, picture, "a cat", steps=STEPS)
    found, again = latents(pipe, inversion, "a dog")
    assert (found - again).abs().max() > 1e-4
    assert pipe.scheduler is scheduler and pipe.unet.training and all(w.requires_grad for w in pipe.unet.parameters())
    plain = quiet(pipe)(**inversion.call, output_type="latent").images
    torch.testing.assert_close(again, plain, rtol=1e-3, atol=1e-3)


def test_processors_are_restored_and_so_after_an_exception(pipe):
    scheduler = pipe.scheduler
    found = pipe.unet.attn_processors
    mixed = found | {next(iter(found)): AttnProcessor()}
    try:
        pipe.unet.set_attn_processor(dict(mixed))

        def fail(*_):
            raise RuntimeError("from the callback")

        with pytest.raises(RuntimeError, match="from the callback"):
            edit(pipe, seeds("a cat"), "a dog", callback_on_step_end=fail)
        assert pipe.unet.attn_processors == mixed and pipe.scheduler is scheduler
        edit(pipe, seeds("a cat"), "a dog", output_type="latent")
        assert pipe.unet.attn_processors == mixed
    finally:
        pipe.unet.set_attn_processor(found)


class Mine(AttnProcessor2_0):
    """A processor of the user's own."""


@pytest.mark.parametrize("make", [Mine, lambda: IPAdapterAttnProcessor2_0(32, 32)], ids=["own", "ip_adapter"])
def test_other_processors_are_refused(pipe, make):
    found, other = pipe.unet.attn_processors, make()
    try:
        pipe.unet.set_attn_processor(found | {list(found)[-1]: other})
        with pytest.raises(ValueError, match=f"the network has attention processors of {type(other).__name__}, which"):
            edit(pipe, seeds("a cat"), "a dog")
    finally:
        pipe.unet.set_attn_processor(found)


def test_the_user_s_callback_sees_every_step(pipe):
    seen = []

    def note(pipe, step, timestep, tensors):
        seen.append((step, set(tensors), tensors["latents"].shape[0]))

    options = {"callback_on_step_end": note, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    edit(pipe, seeds("a cat"), ["a dog", "a cow"], **options)
    assert seen == [(k, {"latents", "prompt_embeds"}, 3) for k in range(STEPS)]


def test_pictures_come_as_the_pipeline_gives_them(pipe):
    found = edit(pipe, seeds("a cat"), ["a dog", "a cow"])
    assert [image.size for image in found.images] == [(IMAGE_SIZE, IMAGE_SIZE)] * 2
    assert len(found.reconstructions) == 1
    array = edit(pipe, seeds("a cat"), ["a dog", "a cow"], output_type="np").images
    np.testing.assert_allclose(np.stack([np.asarray(image) / 255 for image in found.images]), array, atol=3e-3)


def test_outside_of_the_blended_region_latents_are_the_source_s(pipe):
    inversion = seeds("a cat x")
    edit_config = PromptToPrompt(
        cross=0.0, self_attention=0.0, blend=["cat", "dog"], blend_threshold=0.97, blend_from=0.5
    )
    found, again = latents(pipe, inversion, "a dog x", edit_config)
    same = (found == again).all(1)[0]
    assert same.any() and not same.all()


def test_blend_takes_the_region_of_either():
    z = torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 2).contiguous()
    region = torch.zeros(3, 2, 2, dtype=torch.bool)
    region[0, 0, 0] = region[2, 1, 1] = True
    found = blend_latents(z, region, torch.tensor([2]), torch.tensor([0]))
    assert found[2, 0].tolist() == [[2, 0], [0, 2]] and torch.equal(found[:2], z[:2])


def test_a_layer_s_grid_is_found_by_its_pixels():
    assert layer_size(4 * 3, (15, 12)) == (4, 3) and layer_size(15 * 12, (15, 12)) == (15, 12)
    with pytest.raises(ValueError, match="a layer with 7 pixels is no halving of latents 15 x 12"):
        layer_size(7, (15, 12))


@pytest.mark.parametrize(
    "edit_config, said",
    [
        ({"weights": {"cow": 2.0}}, "weights names 'cow', which stands in none of 'a dog': name words that do."),
        ({"weights": {"cat": 2.0}}, "weights names 'cat', which stands in none of 'a dog'"),
        ({"schedules": {"cow": 0.5}}, "schedules names 'cow'"),
        ({"blend": ["cat", "cow"]}, "blend names 'cow', which stands in none of 'a cat', 'a dog'"),
    ],
    ids=["weights", "source's", "schedules", "blend"],
)
def test_absent_words_are_said(pipe, edit_config, said):
    with pytest.raises(ValueError) as error:
        edit(pipe, seeds("a cat"), "a dog", PromptToPrompt(**edit_config))
    assert str(error.value).startswith(said)


def test_an_edit_without_a_region_is_said(pipe):
    with pytest.raises(ValueError, match=r"neither 'a cat' nor 'a dog' has one of blend=\['cow'\]"):
        edit(pipe, seeds("a cat"), ["a dog", "a cow"], PromptToPrompt(blend=["cow"]))


@pytest.mark.parametrize(
    "prompt, options, said",
    [
        ([], {}, "must give each image an edited prompt"),
        (3, {}, "must give each image an edited prompt"),
        ("a dog", {"latents": 1}, "latents is what `inversion` says"),
        ("a dog", {"num_images_per_prompt": 2}, "num_images_per_prompt would change the rows"),
    ],
)
def test_bad_arguments_are_one_sentence(pipe, prompt, options, said):
    with pytest.raises(ValueError, match=said):
        edit(pipe, seeds("a cat"), prompt, **options)


def test_several_images_need_a_prompt_each(pipe):
    with pytest.raises(ValueError, match="for each of 2 images"):
        edit(pipe, seeds("a cat", "a dog"), ["a cow"])


def test_a_network_called_with_other_rows_is_said(pipe):
    from rnri.models.attention.prompt_to_prompt import PromptToPromptProcessor
    from rnri.models.attention.state import EditState

    processor = PromptToPromptProcessor(EditState([0, 0], lambda: 1), None, 1.0, None)
    with attn_processor(pipe.unet, processor), pytest.raises(ValueError, match="called with 3 rows for 2 prompts"):
        pipe.unet(torch.zeros(3, *LATENT_SHAPE), 1, torch.zeros(3, 16, 32))
