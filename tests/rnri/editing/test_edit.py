"""Edits of UNet pipelines equal the paper's operations on attention maps, and do not modify the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline
from diffusers.callbacks import (
    MultiPipelineCallbacks,
    PipelineCallback,
    SD3CFGCutoffCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, IPAdapterAttnProcessor2_0
from torch import Tensor

import rnri
from rnri.editing import Injection, Prompt, PromptToPrompt, align, edit
from rnri.editing.edit import attn_processor
from rnri.models.attention import prompt_to_prompt
from rnri.models.attention.blend import WordMaps, blend_latents, layer_size
from rnri.models.attention.prompt_to_prompt import PromptToPromptEditor, PromptToPromptProcessor
from rnri.models.attention.state import EditState
from rnri.validation import ConfigError
from tests.pipelines import (
    IMAGE_SIZE,
    LATENT_SHAPE,
    tiny_sd3,
    tiny_stable_diffusion,
    tiny_stable_diffusion_xl,
    tiny_tokenizer,
)
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


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("size", [LATENT_SHAPE[1:], (4, 12)], ids=str)
@pytest.mark.parametrize(
    "edit_config",
    [
        PromptToPrompt(cross=1.0, self_attention=0.0),
        PromptToPrompt(cross=0.5, self_attention=0.5, substitutes=False),
        PromptToPrompt(cross=0.4, self_attention=1.0, weights={"dog": 3.0}),
        PromptToPrompt(cross=1.0, self_attention=0.3, weights={"x": -1.0}, schedules={"dog": 0.5}),
        PromptToPrompt(cross=[0.2, 0.7], self_attention=[0.5, 0.8], weights={"dog": 3.0}, schedules={"x": [0.5, 1.0]}),
    ],
    ids=["replace", "refine", "reweight", "schedule", "start"],
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
            active = torch.full_like(inherited, step in steps_of(edit_config.cross, STEPS + 1))
            for word, weight in edit_config.weights.items():
                weights[prompt.tokens(word)] = weight
            for word, share in edit_config.schedules.items():
                active[prompt.tokens(word)] = step in steps_of(share, STEPS + 1)
            edits[row] = 0, transfer, inherited * active, 1 + active * (weights - 1)
        processor = ReferenceProcessor(1 + len(targets), edits, step in steps_of(edit_config.self_attention, STEPS))
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


def steps_of(share: float | list[float], levels: int) -> range:
    start, end = share if isinstance(share, list) else (0.0, share)
    return range(int(start * levels), int(end * levels))


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
    edit_config = PromptToPrompt(cross=0.7, self_attention=0.6, blend=["cat", "dog", "b"], blend_subtract=["x"])
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
    inversion = rnri.invert(pipe, image, "a cat", num_inference_steps=STEPS)
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
        with pytest.raises(ValueError, match=f"the network's attention layers use {type(custom).__name__}, which"):
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


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_word_of_several_vectors_equals_naming_all_its_tokens(guidance):
    pipe = quiet(tiny_stable_diffusion())
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    pipe.load_textual_inversion(vectors, token="<my-cat>")

    def edited(**weights: float) -> Tensor:
        config = PromptToPrompt(cross=1.0, weights=weights)
        return latents(pipe, seeds("a cat x", guidance=guidance), "a <my-cat> x", config)[0]

    one = edited(**{"<my-cat>": 0.0})
    assert torch.equal(one, edited(**{"<my-cat>": 0.0, "<my-cat>_1": 0.0, "<my-cat>_2": 0.0}))
    assert not torch.equal(one, edited(**{"<my-cat>_1": 0.0})) and not torch.equal(one, edited())


CUTOFFS = {
    "sd": (tiny_stable_diffusion, SDCFGCutoffCallback),
    "xl": (tiny_stable_diffusion_xl, SDXLCFGCutoffCallback),
    "sd3": (tiny_sd3, SD3CFGCutoffCallback),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda callback: callback, lambda callback: MultiPipelineCallbacks([callback])])
@pytest.mark.parametrize("name", CUTOFFS)
def test_official_callbacks(name, wrap):
    """The guidance ends after half of the steps for every prompt, as in calls of the pipeline with one prompt."""
    make_pipeline, callback_class = CUTOFFS[name]
    pipe = quiet(make_pipeline())
    inversion = seeds("a cat x", guidance=20.0)
    edit_config = Injection(share=0.0) if name == "sd3" else PromptToPrompt(cross=0.0, self_attention=0.0)
    callback = wrap(callback_class(cutoff_step_ratio=0.5))
    edits, reconstructions = latents(pipe, inversion, ["a dog x", "a cow"], edit_config, callback_on_step_end=callback)
    for text, actual in (("a cat x", reconstructions[0]), ("a dog x", edits[0]), ("a cow", edits[1])):
        call_kwargs = inversion.pipe_kwargs | {"prompt": [text]}
        expected = pipe(**call_kwargs, output_type="latent", callback_on_step_end=callback).images[0]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        without = pipe(**call_kwargs, output_type="latent").images[0]
        assert (expected - without).abs().max() > 1e-3


class RecordingCallback(PipelineCallback):
    """An official callback that records the shapes of the tensors that it receives."""

    tensor_inputs = ["prompt_embeds"]  # noqa: RUF012

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        self.__dict__.setdefault("shapes", []).append({name: len(value) for name, value in callback_kwargs.items()})
        return callback_kwargs


def test_official_callback_receives_its_tensors(pipe):
    callback = RecordingCallback()
    options = {"callback_on_step_end_tensor_inputs": ["negative_prompt_embeds"]}  # ignored, as by the pipeline
    edit(pipe, seeds("a cat", guidance=4.0), "a dog", callback_on_step_end=callback, output_type="latent", **options)
    assert callback.shapes == [{"latents": 2, "prompt_embeds": 4}] * STEPS


@pytest.mark.parametrize("wrap", [lambda callback: callback, lambda callback: MultiPipelineCallbacks([callback])])
def test_inversion_rejects_callbacks_that_change_embeddings(pipe, wrap, monkeypatch):
    monkeypatch.setattr(pipe.unet, "forward", None)  # the error is raised before the network runs
    image = torch.rand(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    callback = wrap(SDCFGCutoffCallback(cutoff_step_ratio=0.5))
    with pytest.raises(ValueError, match=r"must need latents only, got .*, which needs prompt_embeds;"):
        rnri.invert(pipe, image, "a cat", num_inference_steps=STEPS, callback_on_step_end=callback)


def test_inversion_calls_official_callbacks_that_need_latents_only(pipe, monkeypatch):
    monkeypatch.setattr(RecordingCallback, "tensor_inputs", ["latents"])
    callback = RecordingCallback()
    image = torch.rand(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    rnri.invert(pipe, image, "a cat", num_inference_steps=STEPS, callback_on_step_end=callback)
    assert callback.shapes == [{"latents": 1}] * STEPS


def broken(part: str) -> StableDiffusionPipeline:
    """Return a pipeline with one NaN in the bias of the last layer of its UNet or of its VAE."""
    pipe = quiet(tiny_stable_diffusion())
    layer = pipe.unet.conv_out if part == "unet" else pipe.vae.decoder.conv_out
    layer.bias.data[0] = torch.nan
    return pipe


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("part, message", [("unet", "sampled latents are not"), ("vae", "decoded images are not")])
def test_images_that_are_not_finite_are_rejected(part, message, output_type):
    pipe = broken(part)
    with pytest.raises(ValueError, match=message):
        edit(pipe, seeds("a cat"), "a dog", output_type=output_type)
    assert not pipe.vae.decoder._forward_hooks
    if part == "vae":
        pipe.vae.enable_slicing()
        with pytest.raises(ValueError, match=message):
            edit(pipe, seeds("a cat"), "a dog", output_type=output_type)


@pytest.mark.parametrize("part, message", [("unet", "sampled latents are not"), ("vae", "decoded images are not")])
def test_reconstructions_that_are_not_finite_are_rejected(pipe, part, message):
    image = torch.rand(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    inversion = rnri.invert(pipe, image, "a cat", num_inference_steps=STEPS)
    with pytest.raises(ValueError, match=message):
        inversion.reconstruct(broken(part))


def test_latents_that_are_not_finite_are_rejected(pipe):
    with pytest.raises(ValueError, match="sampled latents are not finite"):
        edit(broken("unet"), seeds("a cat"), "a dog", output_type="latent")
    inversion = seeds("a cat")
    inversion.latents[0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"inversion\.latents: must be finite"):
        edit(pipe, inversion, "a dog")


@pytest.mark.parametrize("flags", [[True, False, False], [False, False, True], [False] * 3])
def test_images_that_the_safety_checker_replaces_are_reported(flags):
    pipe = quiet(tiny_stable_diffusion())
    pipe.run_safety_checker = lambda images, device, dtype: (images, flags)
    result = edit(pipe, seeds("a cat"), ["a dog", "a cow"])
    assert (result.reconstructions_replaced, result.images_replaced) == ((flags[0],), tuple(flags[1:]))


def test_no_image_is_replaced_without_safety_checker(pipe):
    for output_type in ("pil", "latent"):
        result = edit(pipe, seeds("a cat"), ["a dog", "a cow"], output_type=output_type)
        assert (result.reconstructions_replaced, result.images_replaced) == ((False,), (False, False))


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


def blended(*attention: list[list[float]]) -> Tensor:
    """Blend row 2 of three rows of 1 x 6 latents 0, 1, 2 with its source, row 0, at threshold 0.3.

    ``attention`` has the maps of rows 0 and 2 for each set of words; the region of the first set is dilated by a pixel.
    """
    maps = WordMaps(torch.ones(3, len(attention), 5), (1, 6))
    maps.add(torch.tensor([[rows[0], [0.0] * 6, rows[1]] for rows in attention]).transpose(0, 1))
    z = torch.arange(3.0)[:, None, None, None].expand(3, 1, 1, 6).contiguous()
    result = blend_latents(z, maps, 0.3, torch.tensor([2]), sources=torch.tensor([0]))
    assert torch.equal(result[:2], z[:2])
    return result[2, 0, 0].tolist()


def test_blend_region_is_the_union_of_dilated_regions():
    # Source: maximum 1 at pixel 0, dilated to 0 and 1. Edit: maximum 2 at pixel 5, dilated to 4 and 5; the 0.6 at pixel
    # 3 equals 0.3 * 2 after dilation at pixels 2 and 3, which is not greater than the threshold.
    assert blended([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0.6, 0, 2]]) == [2, 2, 0, 0, 2, 2]


def test_subtracted_words_are_removed_without_dilation():
    first = [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]  # changed without subtraction: pixels 0, 1, 4, 5
    # Subtracted in the source: pixel 1 (0.2 at pixel 0 is below 0.3 * 1); in the edit: pixel 4.
    assert blended(first, [[0.2, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0.3]]) == [2, 0, 0, 0, 0, 2]
    assert blended(first, [[0] * 6, [0] * 6]) == [2, 2, 0, 0, 2, 2]


@pytest.mark.parametrize("blend_from, first", [(0.2, 1), (0.5, 3), (0.0, 1), (0.8, 4)])
def test_latents_are_blended_after_the_authors_number_of_steps(pipe, blend_from, first, monkeypatch):
    """4 steps: int(.2 * 4) = 0, int(.5 * 4) = 2 and int(.8 * 4) = 3 steps are not blended."""
    blended_steps = []
    monkeypatch.setattr(prompt_to_prompt, "blend_latents", lambda latents, *_, **__: blended_steps.append(state.step))
    state = EditState([0, 0], lambda: STEPS)
    config = PromptToPrompt(blend=["cat"], blend_from=blend_from)
    control = PromptToPromptEditor(pipe, 2).control(config, state, ["a cat", "a dog"], (IMAGE_SIZE, IMAGE_SIZE))
    for state.step in range(1, STEPS + 1):  # the number of finished steps
        control.after_step(torch.zeros(2, *LATENT_SHAPE))
    assert blended_steps == list(range(first, STEPS + 1))


def active_steps(edit_config: PromptToPrompt, steps: int) -> list[int]:
    """Return the steps in which the word "dog" uses the source's cross-attention."""
    pair = tuple(Prompt.tokenize(text, tiny_tokenizer()) for text in ("a cat", "a dog"))
    tables = edit_config.tables([pair])
    at_steps = [tables.at_step(k, steps, torch.zeros(1)) for k in range(steps)]
    return [k for k, at_step in enumerate(at_steps) if at_step and at_step["inherited"][0, 2]]


@pytest.mark.parametrize(
    "cross, steps, expected",
    [
        (0.45, 10, [0, 1, 2, 3]),  # int(.45 * 11) = int(4.95) = 4
        (0.4, 4, [0, 1]),  # int(.4 * 5) = 2
        (0.8, 10, [0, 1, 2, 3, 4, 5, 6, 7]),  # int(.8 * 11) = int(8.8) = 8
        (1.0, 3, [0, 1, 2]),  # int(1 * 4) = 4, more than there are steps
        (0.4, 1, []),  # int(.4 * 2) = 0
        ((0.2, 0.5), 10, [2, 3, 4]),  # int(.2 * 11) = 2, int(.5 * 11) = 5
    ],
)
def test_share_of_cross_attention_is_rounded_down(cross, steps, expected):
    assert active_steps(PromptToPrompt(cross=cross), steps) == expected
    assert active_steps(PromptToPrompt(cross=0.0, schedules={"dog": cross}), steps) == expected


@pytest.mark.parametrize(
    "share, steps, expected",
    [
        (0.45, 10, [0, 1, 2, 3]),  # int(.45 * 10) = int(4.5) = 4
        (0.4, 4, [0]),  # int(.4 * 4) = int(1.6) = 1
        ([0.25, 1.0], 4, [1, 2, 3]),
    ],
)
def test_share_of_self_attention_is_rounded_down(share, steps, expected):
    state = EditState([0, 0], lambda: steps)
    processor = PromptToPromptProcessor(state, None, share, None)
    query = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    value = query[:1].expand_as(query)  # rows with equal values differ only by their attention maps
    injected = []
    for state.step in range(steps):
        result = processor._self_attention(query, query, value, None)
        if torch.equal(result[0], result[1]):
            injected.append(state.step)
    assert injected == expected


def test_weights_end_with_the_share_of_cross_attention():
    """10 steps, cross=.8: int(.8 * 11) = 8, so steps 0 to 7 have the weight and steps 8 and 9 have none."""
    pair = tuple(Prompt.tokenize(text, tiny_tokenizer()) for text in ("a cat", "a dog"))
    tables = PromptToPrompt(cross=0.8, weights={"dog": 3.0}).tables([pair])
    weights = [tables.at_step(k, 10, torch.zeros(1)).get("weights", torch.ones(1, 9))[0].tolist() for k in range(10)]
    assert [row[2] for row in weights] == [3.0] * 8 + [1.0] * 2 and [row[1] for row in weights] == [1.0] * 10


@pytest.mark.parametrize("share", [{"cross": 0.0}, {"cross": [0.5, 0.5]}, {"schedules": {"dog": 0.0}}])
def test_weights_without_effect_are_rejected(pipe, share):
    with pytest.raises(ValueError, match="weights names 'dog', whose weight is applied in no step"):
        edit(pipe, seeds("a cat"), "a dog", PromptToPrompt(weights={"dog": 2.0}, **share))


@pytest.mark.parametrize("share", [1.5, -0.1, [0.5], [0.6, 0.4], [0.2, 1.5], [0.1, 0.2, 0.3], "0.4", True, None])
def test_invalid_shares_are_rejected(share):
    for options in ({"cross": share}, {"self_attention": share}, {"schedules": {"dog": share}}):
        with pytest.raises(ConfigError) as error:
            PromptToPrompt(**options)
        assert str(error.value).startswith(next(iter(options))) and repr(share) in str(error.value)


@pytest.mark.parametrize("options", [{"blend_subtract": ["cat"]}, {"blend": ["cat"], "blend_from": 1.0}])
def test_blends_without_effect_are_rejected(options):
    with pytest.raises(ConfigError):
        PromptToPrompt(**options)


def test_layer_size_from_pixels():
    assert layer_size(4 * 3, (15, 12)) == (4, 3) and layer_size(15 * 12, (15, 12)) == (15, 12)
    with pytest.raises(ValueError, match="a layer with 7 pixels is not a downsampling of latents 15 x 12"):
        layer_size(7, (15, 12))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"weights": {"cow": 2.0}}, "weights names 'cow', which does not occur in 'a dog': use words of the prompt."),
        ({"weights": {"cat": 2.0}}, "weights names 'cat', which does not occur in 'a dog'"),
        ({"schedules": {"cow": 0.5}}, "schedules names 'cow'"),
        ({"blend": ["cat", "cow"]}, "blend names 'cow', which does not occur in 'a cat', 'a dog'"),
        ({"blend": ["cat"], "blend_subtract": ["cow"]}, "blend_subtract names 'cow', which does not occur in 'a cat'"),
    ],
    ids=["weights", "word of source", "schedules", "blend", "blend_subtract"],
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
        ([], {}, "must have, for each image, an edited prompt"),
        (3, {}, "must have, for each image, an edited prompt"),
        ("a dog", {"latents": 1}, "latents is determined by `inversion`"),
        ("a dog", {"num_images_per_prompt": 2}, "num_images_per_prompt is an argument of the pipeline that"),
        ("a dog", {"return_dict": False}, "return_dict is an argument of the pipeline that edit does not support"),
        ("a dog", {"ouput_type": "pt"}, "ouput_type is not an argument of StableDiffusionPipeline: did you mean outpu"),
    ],
)
def test_invalid_arguments(pipe, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        edit(pipe, seeds("a cat"), prompt, **options)


def test_one_prompt_per_image_is_required(pipe):
    with pytest.raises(ValueError, match="one entry for each of the 2 images"):
        edit(pipe, seeds("a cat", "a dog"), ["a cow"])


def test_unexpected_batch_size_of_network_is_rejected(pipe):
    processor = PromptToPromptProcessor(EditState([0, 0], lambda: 1), None, 1.0, None)
    with attn_processor(pipe.unet, processor), pytest.raises(ValueError, match="called with 3 rows for 2 prompts"):
        pipe.unet(torch.zeros(3, *LATENT_SHAPE), 1, torch.zeros(3, 16, 32))
