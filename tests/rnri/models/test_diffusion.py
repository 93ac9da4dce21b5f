"""``LatentDiffusion`` samples, encodes and decodes as the pipeline itself does."""

import copy

import pytest
import torch

from rnri import LatentDiffusion
from tests.pipelines import IMAGE_SIZE, LATENT_SHAPE, TEXT_WIDTH, tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.problems import scheduler

PROMPTS = ["a cat", "two dogs"]


@pytest.fixture(scope="module")
def pipeline():
    return tiny_stable_diffusion()


@pytest.fixture(scope="module")
def model(pipeline):
    return LatentDiffusion(pipeline)


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


def sample_by_pipeline(pipeline, seeds, steps, guidance, **options):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=seeds,
        output_type="latent",
        **options,
    ).images


def sample_by_model(pipeline, seeds, steps, guidance, **options):
    model = LatentDiffusion(pipeline)
    return model.sample(seeds, model.predictor(PROMPTS, guidance, **options), model.schedule(steps))


def seeds():
    return torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
@pytest.mark.parametrize(("prediction_type", "guidance", "offset"), [("epsilon", 7.5, 1), ("v_prediction", 1.0, 0)])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("to_one", [True, False])
def test_sampling_equals_diffusers(pipeline, prediction_type, guidance, spacing, offset, to_one):
    pipeline.scheduler = scheduler(
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        steps_offset=offset,
        set_alpha_to_one=to_one,
    )
    for steps in (4, 7):  # 7 does not divide 1000
        expected = sample_by_pipeline(pipeline, seeds(), steps, guidance)
        torch.testing.assert_close(sample_by_model(pipeline, seeds(), steps, guidance), expected, rtol=1e-4, atol=1e-4)


def test_sampling_equals_diffusers_at_zero_terminal_snr():
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    pipeline = tiny_stable_diffusion("v_prediction", **options)
    expected = sample_by_pipeline(pipeline, seeds(), 5, 7.5)
    torch.testing.assert_close(sample_by_model(pipeline, seeds(), 5, 7.5), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("negative", ["", "fog"])
def test_sampling_equals_diffusers_with_sdxl(negative):
    pipeline = tiny_stable_diffusion_xl()
    expected = sample_by_pipeline(pipeline, seeds(), 4, 7.5, negative_prompt=[negative] * 2 if negative else None)
    actual = sample_by_model(pipeline, seeds(), 4, 7.5, negative_prompt=negative)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_negative_prompt_equals_diffusers(pipeline):
    pipeline.scheduler = scheduler()
    expected = sample_by_pipeline(pipeline, seeds(), 4, 3.0, negative_prompt=["fog", "fog"])
    torch.testing.assert_close(
        sample_by_model(pipeline, seeds(), 4, 3.0, negative_prompt="fog"), expected, rtol=1e-4, atol=1e-4
    )


def test_decoding_equals_diffusers(pipeline, model):
    pipeline.scheduler = scheduler()
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(PROMPTS, num_inference_steps=3, guidance_scale=1, latents=seeds(), output_type="pt").images
    z0 = model.sample(seeds(), model.predictor(PROMPTS), model.schedule(3))
    torch.testing.assert_close(model.decode(z0), images, rtol=1e-4, atol=1e-4)


def test_encode_returns_scaled_posterior_mean(model):
    images = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    vae = model.pipeline.vae
    expected = vae.encode(2 * images - 1).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(model.encode(images), expected)
    assert model.encode(images).shape[1:] == model.latent_shape == LATENT_SHAPE
    assert model.image_size == (IMAGE_SIZE, IMAGE_SIZE)


def test_latent_mean_and_std_in_encode_and_decode():
    pipeline = tiny_stable_diffusion()
    images = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    raw = pipeline.vae.encode(2 * images - 1).latent_dist.mean
    mean = [0.1, -0.2, 0.3, 0.0]
    std = [1.0, 2.0, 0.5, 1.5]
    pipeline.vae.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    model = LatentDiffusion(pipeline)
    z = model.encode(images)
    expected = (raw - torch.tensor(mean).view(1, 4, 1, 1)) / torch.tensor(std).view(1, 4, 1, 1) * 0.5
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(model.decode(z), (pipeline.vae.decode(raw).sample / 2 + 0.5).clamp(0, 1))


def test_decode_gradient_and_clamp(model):
    z = (5 * seeds()).requires_grad_()
    unclamped = model.decode(z, clamp=False)
    assert unclamped.min() < 0 or unclamped.max() > 1
    torch.testing.assert_close(model.decode(z), unclamped.clamp(0, 1))
    unclamped.sum().backward()
    assert z.grad.abs().sum() > 0


def test_gradient_with_checkpointing(model):
    gradients = []
    counts = []
    for checkpoint in (False, True):
        seed = seeds().requires_grad_()
        predictor = model.predictor(PROMPTS, guidance=2)
        z0 = model.sample(seed, predictor, model.schedule(3), checkpoint=checkpoint)
        z0.square().sum().backward()
        gradients.append(seed.grad)
        counts.append((predictor.forward_evaluations, predictor.backward_evaluations))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])
    assert counts == [(6, 6), (12, 6)]  # each step is recomputed


def test_checkpointing_saves_only_latents(model):
    def saved_numbers(checkpoint):
        sizes = []

        def record(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            seed = seeds().requires_grad_()
            model.sample(seed, model.predictor(PROMPTS), model.schedule(3), checkpoint=checkpoint)
        return sum(sizes)

    assert saved_numbers(True) <= 3 * 4 * seeds().numel() < saved_numbers(False) / 20


def test_trajectory_ends_with_sample(model):
    predictor = model.predictor(PROMPTS)
    steps = model.schedule(4)
    visited = []
    latents = model.trajectory(seeds(), predictor, steps, keep_last=3, on_step=lambda i, z: visited.append((i, z)))
    assert len(latents) == 3 and [i for i, _ in visited] == [0, 1, 2, 3]
    assert torch.equal(latents[-1], model.sample(seeds(), predictor, steps))
    assert all(torch.equal(z.float(), latent) for (_, z), latent in zip(visited[1:], latents, strict=True))
    torch.testing.assert_close(model.sample(latents[0], predictor, steps.tail(2)), latents[-1], rtol=1e-4, atol=1e-4)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"keep_last={k}"):
            model.trajectory(seeds(), predictor, steps, keep_last=k)


def test_noise_depends_only_on_seed_and_id(model):
    noise = model.noise(["a", 7, "b"], seed=1)
    assert noise.shape == (3, *LATENT_SHAPE) and noise.dtype == torch.float32
    assert torch.equal(noise[1:2], model.noise([7], seed=1))
    others = [model.noise([7], seed=2), model.noise([8], seed=1), model.noise([1], seed=7)]
    assert all(not torch.equal(noise[1:2], other) for other in others)
    state = torch.random.get_rng_state()
    model.noise(range(4), seed=0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_noise_is_standard_normal(model):
    noise = model.noise(range(200), seed=0)  # 51,200 numbers
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_saved_checkpoint_samples_equally(saved, model):
    loaded = LatentDiffusion.from_pretrained(saved, device="cpu", dtype=torch.float32, local_files_only=True)
    results = [m.sample(seeds(), m.predictor(PROMPTS, 3), m.schedule(3)) for m in (loaded, model)]
    torch.testing.assert_close(*results)
    assert loaded.device.type == "cpu" and loaded.dtype == torch.float32


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_dtype_by_name(saved, name):
    loaded = LatentDiffusion.from_pretrained(saved, device="cpu", dtype=name)
    assert loaded.dtype == getattr(torch, name) == loaded.pipeline.text_encoder.dtype
    with pytest.raises(ValueError, match="dtype='float15' is unknown: choose one of float16"):
        LatentDiffusion.from_pretrained(saved, device="cpu", dtype="float15")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 8, 8), "resize"),
        (torch.zeros(3, IMAGE_SIZE, IMAGE_SIZE), "resize"),
        (torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE), "resize"),
        (torch.full((1, 3, IMAGE_SIZE, IMAGE_SIZE), 1.5), r"\[0, 1\]"),
        (torch.full((1, 3, IMAGE_SIZE, IMAGE_SIZE), -0.1), r"\[0, 1\]"),
        (torch.full((1, 3, IMAGE_SIZE, IMAGE_SIZE), torch.nan), r"\[0, 1\]"),
        (torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8), "floating point"),
    ],
)
def test_invalid_images(model, images, message):
    with pytest.raises(ValueError, match=message):
        model.encode(images)


@pytest.mark.parametrize("make_pipeline", [tiny_stable_diffusion, tiny_stable_diffusion_xl])
def test_textual_inversion_with_two_vectors_equals_diffusers(make_pipeline):
    pipeline = make_pipeline()
    if make_pipeline is tiny_stable_diffusion_xl:
        pipeline.tokenizer_2 = copy.deepcopy(pipeline.tokenizer)
    embedding = torch.randn(2, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    pipeline.load_textual_inversion(embedding, token="<toy>")
    if make_pipeline is tiny_stable_diffusion_xl:
        pipeline.load_textual_inversion(
            embedding, token="<toy>", text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2
        )
    pipeline.set_progress_bar_config(disable=True)
    texts = ["a <toy>", "two dogs"]
    expected = pipeline(texts, num_inference_steps=2, guidance_scale=1, latents=seeds(), output_type="latent").images
    model = LatentDiffusion(pipeline)
    actual = model.sample(seeds(), model.predictor(texts), model.schedule(2))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    without = model.sample(seeds(), model.predictor(["a toy", "two dogs"]), model.schedule(2))
    assert not torch.allclose(actual[0], without[0], atol=1e-3)
