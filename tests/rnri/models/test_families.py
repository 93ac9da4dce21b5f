"""Every family of transformers: sampling equals the pipeline, and a plain pipeline call regenerates inverted images."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import rnri
from rnri.editing import edit
from rnri.models.family import registered_families
from rnri.models.joint import JointPredictor
from tests.pipelines import tiny_chroma, tiny_pixart, tiny_sana, tiny_stable_diffusion, tiny_z_image
from tests.rnri.test_api import assert_regenerates, state

PROMPTS = ["a cat", "two dogs on a hill"]
NEGATIVE = ["fog", "rain on a hill"]
FAMILIES = {
    "z_image": tiny_z_image,
    "z_image dynamic": lambda: tiny_z_image(use_dynamic_shifting=True),
    "chroma": tiny_chroma,
    "chroma dynamic": lambda: tiny_chroma(use_dynamic_shifting=True),
    "pixart": tiny_pixart,
    "sana": tiny_sana,
}
SIZES = {"sana": (32, 64)}
NAMES = [name for name in FAMILIES if "dynamic" not in name]


def images(height=16, width=16):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_equals_the_pipeline(name, steps, guidance):
    pipe = FAMILIES[name]()
    height, width = SIZES.get(name, (16, 24))
    model = rnri.LatentDiffusion(pipe, image_size=(height, width))
    seed = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    predictor = model.predictor(PROMPTS, guidance, NEGATIVE)
    latents = model.sample(seed, predictor, model.schedule(steps))
    pipe.scheduler = rnri.scheduler_for(pipe)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"negative_prompt": list(NEGATIVE)} if guidance > 1 else {}
    expected = pipe(
        list(PROMPTS),
        latents=model.family.pack(seed),
        num_inference_steps=steps,
        height=height,
        width=width,
        output_type="latent",
        **model.family.pipeline_kwargs(guidance),
        **arguments,
    ).images
    expected = model.family.unpack(expected, model.latent_shape[1:])
    torch.testing.assert_close(latents.float(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_pipeline_call_regenerates_the_image(name, guidance):
    pipe = FAMILIES[name]()
    if name == "sana":  # the steps of the random network are not invertible
        pipe.transformer.proj_out.weight.data.mul_(0.1)
    inversion = rnri.invert(
        pipe,
        images(*SIZES.get(name, (16, 24))),
        list(PROMPTS),
        num_inference_steps=4,
        guidance_scale=guidance,
        method=rnri.anderson_inverter(8, 1e-9),
        fit="exact",
        round_trip=False,
    )
    assert_regenerates(pipe, inversion)


@pytest.mark.parametrize("name", NAMES)
def test_seed_does_not_depend_on_the_batch(name):
    pipe = FAMILIES[name]()
    size = SIZES.get(name, (16, 16))
    arguments = {"num_inference_steps": 3, "fit": "exact", "round_trip": False}
    both = rnri.invert(pipe, images(*size), list(PROMPTS), **arguments)
    for k, prompt in enumerate(PROMPTS):
        one = rnri.invert(pipe, images(*size)[k : k + 1], [prompt], **arguments)
        torch.testing.assert_close(one.seed, both.seed[k : k + 1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_pipeline_and_prompts_are_unchanged(name):
    pipe = FAMILIES[name]()
    pipe.transformer.train()
    if name == "z_image":
        pipe.transformer.attn_processors = {}
    before = state(pipe)
    prompts = list(PROMPTS)
    rnri.invert(pipe, images(*SIZES.get(name, (16, 16))), prompts, num_inference_steps=2, guidance_scale=2, fit="exact")
    after = state(pipe)
    assert prompts == PROMPTS
    assert torch.equal(before.pop("scheduler")[2], after.pop("scheduler")[2])
    assert before == after


@pytest.mark.parametrize("name", NAMES)
def test_edits_are_refused_in_one_sentence(name):
    pipe = FAMILIES[name]()
    size = SIZES.get(name, (16, 16))
    inversion = rnri.invert(pipe, images(*size), PROMPTS, num_inference_steps=2, fit="exact", round_trip=False)
    with pytest.raises(ValueError, match=r"has no attention editor, so .*Pipeline cannot edit images by attention"):
        edit(pipe, inversion, [["a dog"], ["a dog"]])


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("z_image", "cap_feat_dim"),
        ("chroma", "joint_attention_dim"),
        ("pixart", "caption_channels"),
        ("sana", "caption_channels"),
    ],
)
def test_text_encoder_of_another_width_is_refused(name, field):
    pipe = FAMILIES[name]()
    pipe.transformer.register_to_config(**{field: 48})
    with pytest.raises(ValueError, match=f"{field}=48"):
        rnri.LatentDiffusion(pipe)


def test_z_image_keeps_its_latents_in_float32():
    inversion = rnri.invert(
        tiny_z_image().to(torch.bfloat16), images(), PROMPTS, num_inference_steps=2, fit="exact", round_trip=False
    )
    assert inversion.latents.dtype == torch.float32


def test_guidance_scale_of_z_image_is_smaller_by_one():
    inversion = rnri.invert(
        tiny_z_image(), images(), PROMPTS, num_inference_steps=2, guidance_scale=3, fit="exact", round_trip=False
    )
    assert inversion.guidance_scale == 3 and inversion.pipe_kwargs["guidance_scale"] == 2


def test_default_image_sizes():
    assert rnri.LatentDiffusion(tiny_z_image()).image_size == (1024, 1024)
    assert rnri.LatentDiffusion(tiny_chroma()).image_size == (16, 16)
    assert rnri.LatentDiffusion(tiny_pixart()).image_size == (16, 16)


def test_dpm_solver_of_pixart_is_replaced_by_deterministic_steps():
    pipe = tiny_pixart()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    with pytest.warns(UserWarning, match="DPMSolverMultistepScheduler does not regenerate"):
        inversion = rnri.invert(
            pipe, images(), PROMPTS, num_inference_steps=4, method="accelerated_8", fit="exact", round_trip=False
        )
    assert_regenerates(pipe, inversion)


def test_families_name_their_models():
    supported = [family.supported for family in registered_families()]
    assert {"Z-Image", "Chroma", "PixArt-Sigma", "SANA"} < set(supported)


def test_default_scheduler_of_sana_is_refused_with_its_shift():
    pipe = tiny_sana()
    pipe.scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
    )
    with pytest.raises(ValueError, match=r"set pipe\.scheduler = FlowMatchEulerDiscreteScheduler\(shift=3\.0\)"):
        rnri.LatentDiffusion(pipe)


def test_encoding_sana_does_not_change_the_tokenizer():
    pipe = tiny_sana()
    pipe.tokenizer.padding_side = "left"
    rnri.LatentDiffusion(pipe, image_size=(32, 32)).predictor(PROMPTS, 2.0)
    assert pipe.tokenizer.padding_side == "left"


def test_flow_prediction_of_a_unet_is_refused():
    pipe = tiny_stable_diffusion()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="prediction_type='flow_prediction' in the config of DDIMScheduler"):
        rnri.LatentDiffusion(pipe)


def test_sana_sprint_is_refused():
    pipe = tiny_sana()
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(ValueError, match="SANA-Sprint"):
        rnri.LatentDiffusion(pipe)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_differentiable_with_respect_to_the_seed(name, checkpoint):
    model = rnri.LatentDiffusion(FAMILIES[name](), image_size=SIZES.get(name, (16, 16)))
    seed = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    predictor = model.predictor(PROMPTS, 2.0)
    images = model.decode(model.sample(seed, predictor, model.schedule(2), checkpoint=checkpoint))
    (grad,) = torch.autograd.grad(images[0].sum(), seed)
    assert grad[0].isfinite().all() and grad[0].any() and not grad[1].any()


@pytest.mark.parametrize("name", NAMES)
def test_source_and_target_are_one_batch(name):
    model = rnri.LatentDiffusion(FAMILIES[name](), image_size=SIZES.get(name, (16, 16)))
    predictors = [model.predictor(PROMPTS, 1.0), model.predictor(["a much longer prompt", "a dog"], 3.0)]
    latents = torch.randn(2, 2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    t = model.schedule(4).timestep(1)
    joint = JointPredictor(*predictors)(*latents, t=t)
    for predictor, z, prediction in zip(predictors, latents, joint, strict=True):
        torch.testing.assert_close(prediction, predictor(z, t), rtol=0, atol=2e-5)
    assert [predictor.forward_evaluations for predictor in predictors] == [4, 4]
    assert sum(predictor.calls for predictor in predictors) == 4
