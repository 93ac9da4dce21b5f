"""Edits of UNet pipelines equal the paper's operations on attention maps, and do not modify the pipeline."""

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
from tests.rnri.models.attention.reference import ReferenceProcessor

STEPS = 4


@dataclass
class Seeds:
    """An inversion with random seeds, as far as ``edit`` reads it."""

    prompts: tuple[str, ...]
    latents: Tensor
    guidance: float = 1.0
    steps: int = STEPS
    image_size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)
    negative_prompts: tuple[str, ...] = ()

    @property
    def pipe_kwargs(self) -> dict[str, object]:
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
    """Disable the progress bar and set the scheduler of edits, so that plain calls of the pipeline are comparable."""
    pipe.scheduler = rnri.scheduler_for(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, inversion, prompt, edit_config=None, **options) -> tuple[Tensor, Tensor]:
    """Return edits and reconstructions, ``[B,4,h,w]`` each."""
    result = edit(pipe, inversion, prompt, edit_config, output_type="latent", **options)
    return result.images, result.reconstructions


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
def test_edits_equal_reference(exact, edit_config, size, guidance):
    source = "a cat x"
    targets = ["a dog x", "a big dog x"]
    inversion = seeds(source, size=size, dtype=torch.float64, guidance=guidance)
    edits, reconstructions = latents(exact, inversion, targets, edit_config)
    expected = edit_by_reference(exact, inversion, source, targets, edit_config)
    torch.testing.assert_close(torch.cat([reconstructions, edits]), expected, rtol=1e-9, atol=1e-10)
    assert (edits[0] - reconstructions[0]).abs().max() > 1e-4


def edit_by_reference(pipe, inversion: Seeds, source: str, targets: list[str], edit_config: PromptToPrompt) -> Tensor:
    """Return reconstruction and edits of the reference, with a new processor in every step."""
    alignments = [alignment_tables(pipe, source, target, edit_config) for target in targets]

    def install(step: int) -> None:
        edits = {}
        for row, (target, (transfer, inherited)) in enumerate(zip(targets, alignments, strict=True), start=1):
            prompt = Prompt.tokenize(target, pipe.tokenizer)
            weights = torch.ones_like(inherited)
            shares = torch.full_like(inherited, edit_config.cross)
            for word, weight in edit_config.weights.items():
                weights[prompt.tokens(word)] = weight
            for word, share in edit_config.schedules.items():
                shares[prompt.tokens(word)] = share
            edits[row] = 0, transfer, inherited * (step / STEPS < shares), weights
        processor = ReferenceProcessor(1 + len(targets), edits, step / STEPS < edit_config.self_attention)
        pipe.unet.set_attn_processor(processor)

    def on_step_end(pipe, step, timestep, tensors):
        install(step + 1)
        return {}

    processors = pipe.unet.attn_processors
    try:
        install(0)
        rows = inversion.latents.expand(1 + len(targets), -1, -1, -1)
        call_kwargs = inversion.pipe_kwargs | {"prompt": [source, *targets], "latents": rows}
        return pipe(**call_kwargs, output_type="latent", callback_on_step_end=on_step_end).images
    finally:
        pipe.unet.set_attn_processor(processors)


def alignment_tables(pipe, source: str, target: str, edit_config: PromptToPrompt) -> tuple[Tensor, Tensor]:
    prompts = (Prompt.tokenize(text, pipe.tokenizer) for text in (source, target))
    alignment = align(*prompts, substitutes=edit_config.substitutes)
    return alignment.transfer, alignment.inherited


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_source_is_bit_identical(pipe, guidance):
    inversion = seeds("a cat x", guidance=guidance)
    edit_config = PromptToPrompt(self_attention=0.5, weights={"dog": 2.0}, blend=["cat", "dog"])
    _, reconstructions = latents(pipe, inversion, "a dog x", edit_config)
    call_kwargs = inversion.pipe_kwargs | {
        "prompt": ["a cat x", "a dog x"],
        "latents": inversion.latents.expand(2, -1, -1, -1),
    }
    assert torch.equal(reconstructions, pipe(**call_kwargs, output_type="latent").images[:1])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_equal_prompts_give_the_reconstruction(pipe, guidance):
    inversion = seeds("a cat x", guidance=guidance)
    edits, reconstructions = latents(pipe, inversion, "a cat x", PromptToPrompt(cross=0.7, self_attention=0.6))
    torch.testing.assert_close(edits, reconstructions)
    expected = pipe(**inversion.pipe_kwargs, output_type="latent").images
    torch.testing.assert_close(reconstructions, expected)


def test_zero_shares_only_change_the_prompt(pipe):
    inversion = seeds("a cat x")
    edits, _ = latents(pipe, inversion, "a dog x", PromptToPrompt(cross=0.0, self_attention=0.0))
    torch.testing.assert_close(
        edits, pipe(**inversion.pipe_kwargs | {"prompt": ["a dog x"]}, output_type="latent").images
    )


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_edits_and_images_of_a_batch_are_independent(pipe, guidance):
    edit_config = PromptToPrompt(cross=0.7, self_attention=0.6, blend=["cat", "dog", "b"])
    both = seeds("a cat x", "b x", guidance=guidance, negative_prompts=("m", "n"))
    edits, reconstructions = latents(pipe, both, [["a dog x", "cat"], "b y"], edit_config)
    assert len(edits) == 3 and len(reconstructions) == 2
    single = [
        Seeds((prompt,), both.latents[k : k + 1], guidance, negative_prompts=(both.negative_prompts[k],))
        for k, prompt in enumerate(both.prompts)
    ]
    single_edits = [
        latents(pipe, single[k], text, replace(edit_config, blend=blend))[0]
        for k, text, blend in ((0, "a dog x", ["cat", "dog"]), (0, "cat", ["cat"]), (1, "b y", ["b"]))
    ]
    torch.testing.assert_close(edits, torch.cat(single_edits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["xl", "lcm", "turbo"])
def test_other_unets(model):
    pipe = quiet(tiny_stable_diffusion_xl())
    guidance = 3.0
    if model == "lcm":
        distilled = tiny_stable_diffusion(unet={"time_cond_proj_dim": 8})
        components = distilled.components | {"requires_safety_checker": False}
        pipe = quiet(LatentConsistencyModelPipeline(**components | {"scheduler": LCMScheduler()}))  # adds noise
    if model == "turbo":
        pipe = quiet(tiny_stable_diffusion(timestep_spacing="trailing"))
        guidance = 0.0
    inversion = seeds("a cat x", guidance=guidance, steps=1 if model == "turbo" else STEPS)
    edit_config = PromptToPrompt(blend=["cat", "dog"])
    edits, reconstructions = latents(pipe, inversion, ["a dog x", "a cat x"], edit_config)
    torch.testing.assert_close(
        reconstructions, pipe(**inversion.pipe_kwargs, output_type="latent").images, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(edits[1:], reconstructions, rtol=1e-4, atol=1e-4)
    assert (edits[0] - reconstructions[0]).abs().max() > 1e-3


def test_invert_and_edit_do_not_modify_pipeline():
    pipe = tiny_stable_diffusion()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    scheduler = pipe.scheduler
    pipe.unet.train()
    image = torch.rand(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    inversion = rnri.invert(pipe, image, "a cat", steps=STEPS)
    edits, reconstructions = latents(pipe, inversion, "a dog")
    assert (edits - reconstructions).abs().max() > 1e-4
    assert pipe.scheduler is scheduler and pipe.unet.training and all(w.requires_grad for w in pipe.unet.parameters())
    expected = quiet(pipe)(**inversion.pipe_kwargs, output_type="latent").images
    torch.testing.assert_close(reconstructions, expected, rtol=1e-3, atol=1e-3)


def test_processors_are_restored(pipe):
    scheduler = pipe.scheduler
    processors = pipe.unet.attn_processors
    mixed = processors | {next(iter(processors)): AttnProcessor()}
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
        pipe.unet.set_attn_processor(processors)


class CustomProcessor(AttnProcessor2_0):
    """A processor of the user."""


@pytest.mark.parametrize(
    "make_processor", [CustomProcessor, lambda: IPAdapterAttnProcessor2_0(32, 32)], ids=["custom", "ip_adapter"]
)
def test_custom_processors_are_rejected(pipe, make_processor):
    processors = pipe.unet.attn_processors
    custom = make_processor()
    try:
        pipe.unet.set_attn_processor(processors | {list(processors)[-1]: custom})
        with pytest.raises(ValueError, match=f"the network has attention processors of {type(custom).__name__}, which"):
            edit(pipe, seeds("a cat"), "a dog")
    finally:
        pipe.unet.set_attn_processor(processors)


def test_user_callback_is_called_after_every_step(pipe):
    calls = []

    def record(pipe, step, timestep, tensors):
        calls.append((step, set(tensors), tensors["latents"].shape[0]))

    options = {"callback_on_step_end": record, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    edit(pipe, seeds("a cat"), ["a dog", "a cow"], **options)
    assert calls == [(k, {"latents", "prompt_embeds"}, 3) for k in range(STEPS)]


def test_images_have_output_type_of_pipeline(pipe):
    result = edit(pipe, seeds("a cat"), ["a dog", "a cow"])
    assert [image.size for image in result.images] == [(IMAGE_SIZE, IMAGE_SIZE)] * 2
    assert len(result.reconstructions) == 1
    array = edit(pipe, seeds("a cat"), ["a dog", "a cow"], output_type="np").images
    np.testing.assert_allclose(np.stack([np.asarray(image) / 255 for image in result.images]), array, atol=3e-3)


def test_latents_outside_blend_region_are_those_of_source(pipe):
    inversion = seeds("a cat x")
    edit_config = PromptToPrompt(
        cross=0.0, self_attention=0.0, blend=["cat", "dog"], blend_threshold=0.97, blend_from=0.5
    )
    edits, reconstructions = latents(pipe, inversion, "a dog x", edit_config)
    same = (edits == reconstructions).all(1)[0]
    assert same.any() and not same.all()


def test_blend_region_is_the_union():
    z = torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 2).contiguous()
    region = torch.zeros(3, 2, 2, dtype=torch.bool)
    region[0, 0, 0] = region[2, 1, 1] = True
    blended = blend_latents(z, region, torch.tensor([2]), torch.tensor([0]))
    assert blended[2, 0].tolist() == [[2, 0], [0, 2]] and torch.equal(blended[:2], z[:2])


def test_layer_size_from_pixels():
    assert layer_size(4 * 3, (15, 12)) == (4, 3) and layer_size(15 * 12, (15, 12)) == (15, 12)
    with pytest.raises(ValueError, match="a layer with 7 pixels is not a downsampling of latents 15 x 12"):
        layer_size(7, (15, 12))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"weights": {"cow": 2.0}}, "weights names 'cow', which does not occur in 'a dog': name a word of the prompt."),
        ({"weights": {"cat": 2.0}}, "weights names 'cat', which does not occur in 'a dog'"),
        ({"schedules": {"cow": 0.5}}, "schedules names 'cow'"),
        ({"blend": ["cat", "cow"]}, "blend names 'cow', which does not occur in 'a cat', 'a dog'"),
    ],
    ids=["weights", "word of source", "schedules", "blend"],
)
def test_absent_words_are_rejected(pipe, config, message):
    with pytest.raises(ValueError) as error:
        edit(pipe, seeds("a cat"), "a dog", PromptToPrompt(**config))
    assert str(error.value).startswith(message)


def test_blend_without_region_is_rejected(pipe):
    with pytest.raises(ValueError, match=r"neither 'a cat' nor 'a dog' contains one of blend=\['cow'\]"):
        edit(pipe, seeds("a cat"), ["a dog", "a cow"], PromptToPrompt(blend=["cow"]))


@pytest.mark.parametrize(
    "prompt, options, message",
    [
        ([], {}, "must have one edited prompt"),
        (3, {}, "must have one edited prompt"),
        ("a dog", {"latents": 1}, "latents is determined by `inversion`"),
        ("a dog", {"num_images_per_prompt": 2}, "num_images_per_prompt would change the rows"),
    ],
)
def test_invalid_arguments(pipe, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        edit(pipe, seeds("a cat"), prompt, **options)


def test_one_prompt_per_image_is_required(pipe):
    with pytest.raises(ValueError, match="for each of 2 images"):
        edit(pipe, seeds("a cat", "a dog"), ["a cow"])


def test_unexpected_batch_size_of_network_is_rejected(pipe):
    from rnri.models.attention.prompt_to_prompt import PromptToPromptProcessor
    from rnri.models.attention.state import EditState

    processor = PromptToPromptProcessor(EditState([0, 0], lambda: 1), None, 1.0, None)
    with attn_processor(pipe.unet, processor), pytest.raises(ValueError, match="called with 3 rows for 2 prompts"):
        pipe.unet(torch.zeros(3, *LATENT_SHAPE), 1, torch.zeros(3, 16, 32))
