import copy
import json
import shutil

import pytest
import torch
from diffusers import KandinskyPriorPipeline, SanaPipeline

from rnri import LatentDiffusion
from tests.pipelines import IMAGE_SIZE, LATENT_SHAPE, tiny_stable_diffusion, tiny_stable_diffusion_xl
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


def theirs(pipeline, seeds, steps, guidance, **options):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=seeds,
        output_type="latent",
        **options,
    ).images


def ours(pipeline, seeds, steps, guidance, **options):
    model = LatentDiffusion(pipeline)
    return model.sample(seeds, model.predictor(PROMPTS, guidance, **options), model.schedule(steps))


def seeds():
    return torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("to_one", [True, False])
def test_sampling_equals_diffusers(pipeline, prediction_type, guidance, spacing, offset, to_one):
    pipeline.scheduler = scheduler(
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        steps_offset=offset,
        set_alpha_to_one=to_one,
    )
    for steps in (4, 7):  # 7 does not divide 1000
        expected = theirs(pipeline, seeds(), steps, guidance)
        torch.testing.assert_close(ours(pipeline, seeds(), steps, guidance), expected, rtol=1e-4, atol=1e-4)


def test_sampling_equals_diffusers_at_zero_terminal_snr():
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    pipeline = tiny_stable_diffusion("v_prediction", **options)
    expected = theirs(pipeline, seeds(), 5, 7.5)
    torch.testing.assert_close(ours(pipeline, seeds(), 5, 7.5), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("negative", ["", "fog"])
def test_sampling_equals_diffusers_with_sdxl(negative):
    pipeline = tiny_stable_diffusion_xl()
    expected = theirs(pipeline, seeds(), 4, 7.5, negative_prompt=[negative] * 2 if negative else None)
    actual = ours(pipeline, seeds(), 4, 7.5, negative_prompt=negative)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_is_the_pipelines(pipeline):
    pipeline.scheduler = scheduler()
    expected = theirs(pipeline, seeds(), 4, 3.0, negative_prompt=["fog", "fog"])
    torch.testing.assert_close(ours(pipeline, seeds(), 4, 3.0, negative_prompt="fog"), expected, rtol=1e-4, atol=1e-4)


def test_decoding_equals_diffusers(pipeline, model):
    pipeline.scheduler = scheduler()
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(PROMPTS, num_inference_steps=3, guidance_scale=1, latents=seeds(), output_type="pt").images
    z0 = model.sample(seeds(), model.predictor(PROMPTS), model.schedule(3))
    torch.testing.assert_close(model.decode(z0), images, rtol=1e-4, atol=1e-4)


def test_encode_is_the_scaled_posterior_mean(model):
    images = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    vae = model.pipeline.vae
    expected = vae.encode(2 * images - 1).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(model.encode(images), expected)
    assert model.encode(images).shape[1:] == model.latent_shape == LATENT_SHAPE
    assert model.image_size == (IMAGE_SIZE, IMAGE_SIZE)


def test_latent_mean_and_std_of_a_vae_are_used_both_ways():
    pipeline = tiny_stable_diffusion()
    images = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    raw = pipeline.vae.encode(2 * images - 1).latent_dist.mean
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
    pipeline.vae.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    model = LatentDiffusion(pipeline)
    z = model.encode(images)
    expected = (raw - torch.tensor(mean).view(1, 4, 1, 1)) / torch.tensor(std).view(1, 4, 1, 1) * 0.5
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(model.decode(z), (pipeline.vae.decode(raw).sample / 2 + 0.5).clamp(0, 1))


def test_decode_is_differentiable_and_clamps_by_choice(model):
    z = (5 * seeds()).requires_grad_()
    free = model.decode(z, clamp=False)
    assert free.min() < 0 or free.max() > 1
    torch.testing.assert_close(model.decode(z), free.clamp(0, 1))
    free.sum().backward()
    assert z.grad.abs().sum() > 0


def test_gradient_under_checkpointing_is_the_unchecked_one(model):
    gradients, counts = [], []
    for checkpoint in (False, True):
        seed, predictor = seeds().requires_grad_(), model.predictor(PROMPTS, guidance=2)
        z0 = model.sample(seed, predictor, model.schedule(3), checkpoint=checkpoint)
        z0.square().sum().backward()
        gradients.append(seed.grad)
        counts.append((predictor.forward_evaluations, predictor.backward_evaluations))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])
    assert counts == [(6, 6), (12, 6)]  # each step is computed again


def test_checkpointing_keeps_latents_not_activations(model):
    def saved(checkpoint):
        sizes = []

        def note(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            seed = seeds().requires_grad_()
            model.sample(seed, model.predictor(PROMPTS), model.schedule(3), checkpoint=checkpoint)
        return sum(sizes)

    assert saved(True) <= 3 * 4 * seeds().numel() < saved(False) / 20


def test_trajectory_ends_in_the_sample(model):
    predictor, steps = model.predictor(PROMPTS), model.schedule(4)
    visited = []
    kept = model.trajectory(seeds(), predictor, steps, keep_last=3, on_step=lambda i, z: visited.append((i, z)))
    assert len(kept) == 3 and [i for i, _ in visited] == [0, 1, 2, 3]
    assert torch.equal(kept[-1], model.sample(seeds(), predictor, steps))
    assert all(torch.equal(z.float(), latent) for (_, z), latent in zip(visited[1:], kept, strict=True))
    torch.testing.assert_close(model.sample(kept[0], predictor, steps.tail(2)), kept[-1], rtol=1e-4, atol=1e-4)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"keep_last={k}"):
            model.trajectory(seeds(), predictor, steps, keep_last=k)


def test_noise_belongs_to_its_sample(model):
    together = model.noise(["a", 7, "b"], seed=1)
    assert together.shape == (3, *LATENT_SHAPE) and together.dtype == torch.float32
    assert torch.equal(together[1:2], model.noise([7], seed=1))
    others = [model.noise([7], seed=2), model.noise([8], seed=1), model.noise([1], seed=7)]
    assert all(not torch.equal(together[1:2], other) for other in others)
    state = torch.random.get_rng_state()
    model.noise(range(4), seed=0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_noise_is_standard_normal(model):
    noise = model.noise(range(200), seed=0)  # 51,200 numbers
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def load(folder, **options):
    return LatentDiffusion.from_pretrained(folder, device="cpu", dtype=torch.float32, **options)


def test_a_saved_folder_loads_and_samples_the_same(saved, model):
    loaded = load(saved, local_files_only=True)
    predictors = loaded.predictor(PROMPTS, 3), model.predictor(PROMPTS, 3)
    results = [m.sample(seeds(), p, m.schedule(3)) for m, p in zip((loaded, model), predictors, strict=True)]
    torch.testing.assert_close(*results)
    assert loaded.device.type == "cpu" and loaded.dtype == torch.float32


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_a_config_names_the_dtype(saved, name):
    loaded = LatentDiffusion.from_pretrained(saved, device="cpu", dtype=name)
    assert loaded.dtype == getattr(torch, name) == loaded.pipeline.text_encoder.dtype
    with pytest.raises(ValueError, match="dtype='half-ish' is unknown: choose float16"):
        LatentDiffusion.from_pretrained(saved, device="cpu", dtype="half-ish")


def test_fingerprint_knows_content_not_place(saved, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(saved, copy)
    first = load(saved).fingerprint
    assert load(copy).fingerprint == first and len(first) == 64
    other = load(copy)
    other.pipeline.unet.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    assert other.fingerprint != first
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"set_alpha_to_one": True}))
    assert load(copy).fingerprint != first


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(saved, tmp_path, part):
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    shutil.rmtree(broken / part)
    with pytest.raises(ValueError, match=f"lacks its part '{part}'"):
        load(broken)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "lacks the weights .* 'unet'"),
        ("text_encoder/model.safetensors", "lacks the weights .* 'text_encoder'"),
        ("vae/config.json", "lacks config.json in its part 'vae'"),
        ("scheduler/scheduler_config.json", "lacks scheduler_config.json in its part 'scheduler'"),
        ("model_index.json", "no model_index.json"),
    ],
)
def test_a_missing_file_is_named(saved, tmp_path, file, message):
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    (broken / file).unlink()
    with pytest.raises(ValueError, match=message):
        load(broken)


def test_corrupt_weights_are_one_sentence(saved, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ValueError, match="could not be loaded") as error:
        load(broken)
    assert "\n" not in str(error.value)


def test_a_variant_that_is_not_there(saved):
    with pytest.raises(ValueError, match=r"lacks the weights \(\*\.fp16\*\.safetensors\)"):
        load(saved, variant="fp16")


@pytest.mark.parametrize("path", ["nowhere/at/all", "./nowhere", "nowhere"])
def test_a_missing_folder(path):
    with pytest.raises(ValueError, match="does not exist"):
        load(path)


def test_a_hub_id_that_cannot_be_reached():
    with pytest.raises(ValueError, match="neither a local folder nor a reachable hub id") as error:
        load("owner/name", local_files_only=True)
    assert "\n" not in str(error.value)


def test_a_pipeline_of_another_architecture(saved, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(saved, other)
    index = json.loads((other / "model_index.json").read_text())
    del index["unet"]
    index |= {"_class_name": KandinskyPriorPipeline.__name__, "prior": ["diffusers", "PriorTransformer"]}
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="KandinskyPriorPipeline without a UNet or transformer; supported are Stable"):
        load(other)
    index |= {"_class_name": SanaPipeline.__name__, "transformer": ["diffusers", "SanaTransformer2DModel"]}
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="SanaPipeline, which is no text-to-image pipeline known here"):
        load(other)


def test_an_inpainting_unet_is_refused():
    with pytest.raises(ValueError, match="in_channels=9"):
        LatentDiffusion(tiny_stable_diffusion(unet={"in_channels": 9}))


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
def test_bad_images(model, images, message):
    with pytest.raises(ValueError, match=message):
        model.encode(images)


@pytest.mark.parametrize("make", [tiny_stable_diffusion, tiny_stable_diffusion_xl])
def test_a_textual_inversion_of_two_vectors_reads_as_in_the_pipeline(make):
    pipeline, width = make(), 32
    if make is tiny_stable_diffusion_xl:
        pipeline.tokenizer_2 = copy.deepcopy(pipeline.tokenizer)
    learned = torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    pipeline.load_textual_inversion(learned, token="<toy>")
    if make is tiny_stable_diffusion_xl:
        pipeline.load_textual_inversion(
            learned, token="<toy>", text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2
        )
    pipeline.set_progress_bar_config(disable=True)
    texts = ["a <toy>", "two dogs"]
    expected = pipeline(texts, num_inference_steps=2, guidance_scale=1, latents=seeds(), output_type="latent").images
    model = LatentDiffusion(pipeline)
    found = model.sample(seeds(), model.predictor(texts), model.schedule(2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    without = model.sample(seeds(), model.predictor(["a toy", "two dogs"]), model.schedule(2))
    assert not torch.allclose(found[0], without[0], atol=1e-3)
