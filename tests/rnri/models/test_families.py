"""Every family of transformers: sampling equals the pipeline, and a plain pipeline call regenerates inverted images."""

import inspect

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    Kandinsky5T2IPipeline,
    Lumina2Pipeline,
    SanaSprintPipeline,
    WanPipeline,
)
from torchvision.transforms.functional import to_tensor

import nao
import rnri
from experiments.app.seeds import blended_predictor
from experiments.planning.cost import Cost, StagePlan, inversion_cost
from experiments.planning.plan import format_time_estimate
from rnri.editing import FlowEdit, edit
from rnri.methods import NullText
from rnri.models.family import registered_families, supported_models
from rnri.models.joint import JointPredictor
from rnri.models.predictor import Condition
from tests.flux2_qwen_pipelines import tiny_flux2, tiny_flux2_klein, tiny_qwen_image, tiny_qwen_image_21
from tests.pipelines import (
    tiny_chroma,
    tiny_flux,
    tiny_pixart,
    tiny_sana,
    tiny_sd3,
    tiny_stable_diffusion,
    tiny_stable_diffusion_xl,
    tiny_z_image,
)
from tests.rnri.test_api import assert_regenerates, output_latents, state

PROMPTS = ["a cat", "two dogs on a hill"]
NEGATIVE = ["fog", "rain on a hill"]
FAMILIES = {
    "z_image": tiny_z_image,
    "z_image dynamic": lambda: tiny_z_image(use_dynamic_shifting=True),
    "chroma": tiny_chroma,
    "chroma dynamic": lambda: tiny_chroma(use_dynamic_shifting=True),
    "pixart": tiny_pixart,
    "sana": tiny_sana,
    "flux2_dev": tiny_flux2,
    "flux2_klein": lambda: tiny_flux2_klein(use_dynamic_shifting=False),
    "qwen_image": tiny_qwen_image,
    "qwen_image static": lambda: tiny_qwen_image(use_dynamic_shifting=False),
    "qwen_image_21": tiny_qwen_image_21,
}
SIZES = {"sana": (32, 64), "qwen_image_21": (32, 64)}
NAMES = [name for name in FAMILIES if "dynamic" not in name and "static" not in name]
EVERY_FAMILY = {
    "sd": tiny_stable_diffusion,
    "sdxl": tiny_stable_diffusion_xl,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
} | {name: FAMILIES[name] for name in NAMES}
FLUX2_AND_QWEN = [name for name in NAMES if name.startswith(("flux2", "qwen"))]


def images(height=16, width=16):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def sample_both(pipe, steps, guidance, size, output_type="latent"):
    """Return the latents ``[2,C,h,w]`` of our sampler, and the output of the pipeline for the same seeds."""
    height, width = size
    model = rnri.LatentDiffusion(pipe, image_size=size)
    seed = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    takes_negatives = guidance > 1 and "negative_prompt" in inspect.signature(pipe.__call__).parameters
    negatives = NEGATIVE if takes_negatives else ["", ""]
    latents = model.sample(seed, model.predictor(PROMPTS, guidance, negatives), model.schedule(steps))
    pipe.scheduler = rnri.scheduler_for(pipe)
    pipe.set_progress_bar_config(disable=True)
    outputs = []
    for rows in [slice(None)] if model.family.batch_independent else [slice(1), slice(1, 2)]:
        arguments = dict(model.family.pipeline_kwargs(guidance))
        if takes_negatives:
            arguments["negative_prompt"] = NEGATIVE[rows]
        output = pipe(
            prompt=PROMPTS[rows],
            latents=model.family.pack(seed[rows]),
            num_inference_steps=steps,
            height=height,
            width=width,
            output_type=output_type,
            **arguments,
        )
        outputs.append(output.images)
    return model, latents, torch.cat(outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_equals_the_pipeline(name, guidance):
    pipe = FAMILIES[name]()
    for steps in (1, 4, 8):
        model, latents, output = sample_both(pipe, steps, guidance, SIZES.get(name, (16, 24)))
        expected = output_latents(model.family, output, model.latent_shape[1:])
        torch.testing.assert_close(latents.float(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", FLUX2_AND_QWEN)
def test_decoded_images_equal_those_of_the_pipeline(name):
    model, latents, images = sample_both(FAMILIES[name](), 2, 1.0, SIZES.get(name, (16, 24)), "pt")
    torch.testing.assert_close(model.decode(latents), images[:, :3].float(), rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", ["flux2_dev", "flux2_klein"])
def test_latents_of_flux2_are_normalized_by_the_batch_norm(name):
    pipe = FAMILIES[name]()
    pixels = images(16, 24)
    expected = pipe._encode_vae_image(2 * pixels - 1, None)
    actual = rnri.LatentDiffusion(pipe, image_size=(16, 24)).encode(pixels)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_latents_of_qwen_image_are_normalized_per_channel():
    pipe = tiny_qwen_image()
    posterior = pipe.vae.encode(2 * images().unsqueeze(2) - 1).latent_dist.mode().squeeze(2)
    latents = rnri.LatentDiffusion(pipe, image_size=(16, 16)).encode(images())
    for k, (mean, std) in enumerate(zip(pipe.vae.config.latents_mean, pipe.vae.config.latents_std, strict=True)):
        torch.testing.assert_close(std * latents[:, k] + mean, posterior[:, k], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_pipeline_call_regenerates_the_image(name, guidance):
    pipe = FAMILIES[name]()
    if name in ("sana", *FLUX2_AND_QWEN):  # the steps of the random network are not invertible
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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_seed_does_not_depend_on_the_batch(name):
    pipe = FAMILIES[name]()
    size = SIZES.get(name, (16, 16))
    arguments = {"num_inference_steps": 3, "fit": "exact", "round_trip": False}
    both = rnri.invert(pipe, images(*size), list(PROMPTS), **arguments)
    for k, prompt in enumerate(PROMPTS):
        one = rnri.invert(pipe, images(*size)[k : k + 1], [prompt], **arguments)
        torch.testing.assert_close(one.seed, both.seed[k : k + 1], rtol=0, atol=1e-4)


@pytest.mark.slow
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
        ("flux2_dev", "joint_attention_dim"),
        ("flux2_klein", "joint_attention_dim"),
        ("qwen_image", "joint_attention_dim"),
        ("qwen_image_21", "context_in_dim"),
    ],
)
def test_text_encoder_of_another_width_is_refused(name, field):
    pipe = FAMILIES[name]()
    pipe.transformer.register_to_config(**{field: 40})
    with pytest.raises(ValueError, match=f"{field}=40"):
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
    names = {"Z-Image", "Chroma", "PixArt-Sigma", "SANA", "FLUX.2 dev", "FLUX.2 klein", "Qwen-Image", "Qwen-Image 2.1"}
    assert names < set(supported)


@pytest.mark.parametrize(
    "pipeline_class", [Lumina2Pipeline, Kandinsky5T2IPipeline, HunyuanImagePipeline, SanaSprintPipeline, WanPipeline]
)
def test_other_pipelines_are_refused_with_the_supported_models(pipeline_class):
    parameters = inspect.signature(pipeline_class).parameters
    parts = {name: part for name, part in tiny_sana().components.items() if name in parameters}
    if pipeline_class is SanaSprintPipeline:
        parts["transformer"].register_to_config(guidance_embeds=True)
        pipe = pipeline_class(**parts)
    else:
        required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
        pipe = pipeline_class(**dict.fromkeys(required))
    with pytest.raises(ValueError) as error:
        rnri.invert(pipe, images(), PROMPTS)
    assert str(error.value) == (
        f"{pipeline_class.__name__} is not a supported text-to-image pipeline: load a supported model "
        f"({supported_models()})."
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FLUX2_AND_QWEN)
def test_saved_checkpoint_samples_equally(name, tmp_path):
    pipe = FAMILIES[name]()
    size = SIZES.get(name, (16, 16))
    pipe.save_pretrained(tmp_path / "model")
    loaded = rnri.LatentDiffusion.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    models = [rnri.LatentDiffusion(each, image_size=size) for each in (pipe, loaded.pipeline)]
    seed = models[0].noise([0, 1], 0)
    first, second = (model.sample(seed, model.predictor(PROMPTS), model.schedule(2)) for model in models)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_plan_counts_evaluations_and_measures_memory(name):
    model = rnri.LatentDiffusion(EVERY_FAMILY[name](), image_size=SIZES.get(name, (16, 16)))
    cost = inversion_cost(rnri.METHODS["ddim"](), model.schedule(4), 1.0, model.latent_shape[0])
    assert cost == Cost(forward=4)
    text = format_time_estimate([StagePlan("inversion", 1, 0, cost + Cost(decodings=1))], model, PROMPTS, 1)
    assert "Peak memory" in text and "forward" in text and "decodings" in text


def sana_scheduler(flow_shift=3.0):
    """The scheduler of the published SANA checkpoints."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift, solver_order=2
    )


def test_default_scheduler_of_sana_is_refused_with_its_shift():
    pipe = tiny_sana()
    pipe.scheduler = sana_scheduler()
    with pytest.raises(ValueError, match=r"set model\.scheduler=FlowMatchEulerDiscreteScheduler, .*, shift=3\.0\)"):
        rnri.LatentDiffusion(pipe)


def test_scheduler_of_a_sana_checkpoint_keeps_its_shift(tmp_path):
    pipe = tiny_sana()
    pipe.scheduler = sana_scheduler()
    pipe.save_pretrained(tmp_path / "sana")
    model = rnri.LatentDiffusion.from_pretrained(
        tmp_path / "sana", device="cpu", dtype="float32", scheduler="FlowMatchEulerDiscreteScheduler"
    )
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    expected = rnri.LatentDiffusion(pipe).schedule(20)
    assert torch.equal(model.schedule(20).alpha, expected.alpha)
    assert torch.equal(model.schedule(20).timesteps, expected.timesteps)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_pipeline_call_generates_images_from_a_centroid_and_a_midpoint(name):
    pipe = EVERY_FAMILY[name]()
    height, width = size = SIZES.get(name, (16, 16))
    model = rnri.LatentDiffusion(pipe, image_size=size)
    seeds = model.noise([0, 1], 0)
    centroid = nao.centroid_seeds(seeds[None], 1)[0]
    midpoint = nao.slerp(*seeds, num_points=3)[1:2]
    latents = torch.cat([centroid, midpoint]).to(model.family.latents_dtype)
    assert latents.shape == (2, *model.latent_shape)
    pipe.scheduler = rnri.scheduler_for(pipe)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        prompt=["a cat"] * 2,
        latents=model.family.pack(latents),
        num_inference_steps=2,
        height=height,
        width=width,
        output_type="pt",
        **model.family.pipeline_kwargs(1.0),
    ).images
    assert output[:, :3].shape == (2, 3, height, width)
    assert output.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_samples_are_differentiable_with_respect_to_the_seed(name, checkpoint):
    model = rnri.LatentDiffusion(EVERY_FAMILY[name](), image_size=SIZES.get(name, (16, 16)))
    seed = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    predictor = model.predictor(PROMPTS, 2.0)
    images = model.decode(model.sample(seed, predictor, model.schedule(2), checkpoint=checkpoint))
    (grad,) = torch.autograd.grad(images[0].sum(), seed)
    assert grad[0].isfinite().all() and grad[0].any() and not grad[1].any()


@pytest.mark.slow
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


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_calls_of_qwen_image_contain_a_negative_prompt_if_guidance_is_on(guidance):
    inversion = rnri.invert(
        tiny_qwen_image(),
        images(),
        PROMPTS,
        num_inference_steps=2,
        guidance_scale=guidance,
        fit="exact",
        round_trip=False,
    )
    assert inversion.pipe_kwargs["true_cfg_scale"] == guidance
    assert inversion.pipe_kwargs.get("negative_prompt") == (["", ""] if guidance > 1 else None)
    assert len(inversion[0].pipe_kwargs.get("negative_prompt", [""])) == 1


def test_guidance_of_qwen_image_keeps_the_norm_of_each_token():
    denoiser = rnri.LatentDiffusion(tiny_qwen_image(), image_size=(16, 16)).predictor(PROMPTS, 4.0).denoiser
    negative, positive = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = denoiser.guided(negative, positive)
    patches = [torch.nn.functional.pixel_unshuffle(each, 2).norm(dim=1) for each in (guided, positive)]
    torch.testing.assert_close(*patches)
    plain = negative + 4 * (positive - negative)
    cosine = torch.nn.functional.cosine_similarity
    tokens = [torch.nn.functional.pixel_unshuffle(each, 2) for each in (guided, plain)]
    torch.testing.assert_close(cosine(*tokens, dim=1), torch.ones(2, 4, 4))


@pytest.mark.parametrize("method", ["newton_krylov", "rnri"])
def test_methods_with_derivatives_invert_the_guidance_of_qwen_image(method):
    pipe = tiny_qwen_image()
    pipe.transformer.proj_out.weight.data.mul_(0.1)
    inversion = rnri.invert(
        pipe, images(), PROMPTS, num_inference_steps=4, guidance_scale=1.5, method=method, fit="exact", round_trip=False
    )
    assert_regenerates(pipe, inversion)


def test_null_text_inversion_with_the_guidance_of_qwen_image():
    model = rnri.LatentDiffusion(tiny_qwen_image(), image_size=(16, 16))
    predictor = model.predictor(PROMPTS, 3.0)
    schedule = model.schedule(3)
    method = NullText(iterations=4)
    inversion = method.invert(model.encode(images()), predictor, schedule)
    error = (method.reconstruct(inversion, predictor, schedule) - inversion.z0).abs().mean()
    assert error < (model.sample(inversion.seed, predictor, schedule) - inversion.z0).abs().mean()


def test_one_step_with_a_terminal_shift_is_refused():
    model = rnri.LatentDiffusion(tiny_qwen_image(shift_terminal=0.02), image_size=(16, 24))
    with pytest.raises(ValueError, match=r"steps=1: .* with shift_terminal=0\.02 needs at least 2 steps"):
        model.schedule(1)


def test_sampling_of_qwen_image_with_a_terminal_shift():
    model, latents, output = sample_both(tiny_qwen_image(shift_terminal=0.02), 4, 3.0, (16, 24))
    torch.testing.assert_close(latents, model.family.unpack(output, model.latent_shape[1:]), rtol=0, atol=5e-5)


def test_fixed_sigmas_of_qwen_image_21():
    pipe = tiny_qwen_image_21(sample_sigmas=[1.0, 0.7, 0.2])
    model, latents, output = sample_both(pipe, 3, 1.0, (32, 64))
    torch.testing.assert_close(latents, model.family.unpack(output, model.latent_shape[1:]), rtol=0, atol=5e-5)
    with pytest.raises(ValueError, match="steps=4: must be 3, the number of sigmas that the checkpoint fixes"):
        model.schedule(4)


@pytest.mark.parametrize("field", ["guidance_embeds", "use_additional_t_cond", "use_layer3d_rope"])
def test_qwen_image_with_other_inputs_is_refused(field):
    pipe = tiny_qwen_image()
    pipe.transformer.register_to_config(**{field: True})
    with pytest.raises(ValueError, match=f"{field} is on .* use the text-to-image checkpoint of Qwen-Image"):
        rnri.LatentDiffusion(pipe)


@pytest.mark.parametrize(
    ("make_pipeline", "arguments", "message"),
    [
        (tiny_flux2, (2.0, "fog"), "negative_prompt=.* has no effect on Flux2Pipeline"),
        (tiny_flux2_klein, (2.0, "fog"), "negative_prompt=.* has no effect on Flux2KleinPipeline"),
        (lambda: tiny_flux2(guidance_embeds=False), (2.0,), "guidance=2 has no effect on a transformer without"),
        (lambda: tiny_flux2_klein(is_distilled=True), (2.0,), "guidance=2 has no effect on a distilled FLUX.2 klein"),
    ],
    ids=["dev", "klein", "dev without guidance input", "distilled klein"],
)
def test_arguments_without_effect_on_flux2(make_pipeline, arguments, message):
    model = rnri.LatentDiffusion(make_pipeline(), image_size=(16, 16))
    with pytest.raises(ValueError, match=message):
        model.predictor(PROMPTS, *arguments)


def test_defaults_of_flux2_and_qwen_image():
    defaults = {
        tiny_flux2: ((16, 16), 4.0),
        tiny_flux2_klein: ((16, 16), 4.0),
        tiny_qwen_image: ((16, 16), 4.0),
        tiny_qwen_image_21: ((1024, 1024), 1.0),
    }
    for make_pipeline, expected in defaults.items():
        model = rnri.LatentDiffusion(make_pipeline())
        assert (model.image_size, model.default_guidance) == expected
    assert rnri.LatentDiffusion(tiny_flux2_klein(is_distilled=True)).default_guidance == 1


def test_reconstructions_of_qwen_image_21_do_not_depend_on_the_padding_of_prompts():
    pipe = tiny_qwen_image_21()
    pipe.set_progress_bar_config(disable=True)
    inversion = rnri.invert(pipe, images(32, 64), PROMPTS, num_inference_steps=2, fit="exact")
    for image, expected in zip(inversion.reconstruct(pipe), inversion.round_trip.images, strict=True):
        assert abs(to_tensor(image)[:3] - expected / 255).max() < 1.5 / 255


@pytest.mark.parametrize(("prompts", "selections"), [(["a cat", "a cat"], 0), (PROMPTS, 2)])
def test_evaluations_of_qwen_image_21_read_the_lengths_of_prompts_once(monkeypatch, prompts, selections):
    """The lengths are on the device, so that the CPU waits for the device when it reads the lengths."""
    model = rnri.LatentDiffusion(tiny_qwen_image_21(), image_size=(32, 64))
    predictor = model.predictor(prompts, 1.0)
    z = model.noise([0, 1], seed=0)
    reads = count_calls(monkeypatch, Condition.lengths, "func")
    selects = count_calls(monkeypatch, Condition, "select")
    for t in (900.0, 500.0):
        predictor(z, t)
    assert (len(reads), len(selects)) == (1, 2 * selections)


def count_calls(monkeypatch, owner, name):
    """Return a list that has one entry for each later call of the function ``name`` of ``owner``."""
    function = getattr(owner, name)
    calls = []

    def counted(*args):
        calls.append(args)
        return function(*args)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "pixart"])
def test_flow_edit_without_a_change_returns_the_image(name):
    model = rnri.LatentDiffusion(FAMILIES[name](), image_size=SIZES.get(name, (16, 16)))
    z0 = model.encode(images(*model.image_size)).double()
    source = model.predictor(PROMPTS, 1.0)
    method = FlowEdit(share=1.0)
    same, changed = (
        method.edit(z0, source, model.predictor(targets, 1.0), model.schedule(2))
        for targets in (PROMPTS, [PROMPTS[0], "a green bird"])
    )
    torch.testing.assert_close(same, z0, rtol=0, atol=2e-5)
    torch.testing.assert_close(changed[0], z0[0], rtol=0, atol=2e-5)
    assert (changed[1] - z0[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["z_image", "sana", "qwen_image", "qwen_image_21"])
def test_blended_prompts_with_one_weight_per_image_are_the_prompts(name):
    model = rnri.LatentDiffusion(FAMILIES[name](), image_size=SIZES.get(name, (16, 16)))
    z = model.noise([0, 1], 0)
    expected = model.predictor(PROMPTS, 3.0)(z, 500.0)
    actual = blended_predictor(model, PROMPTS, torch.eye(2), 3.0)(z, 500.0)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)
