"""``PipelineInversion``: quality of the reconstructions, indexing, saving, loading and notebooks."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

import rnri
from rnri.editing import edit
from rnri.image_batch import as_images
from rnri.pipeline_inversion import PipelineInversion, psnr

pytestmark = pytest.mark.slow

PROMPTS = ["a drawing of a camel", "a drawing of a fox"]


@pytest.fixture(scope="module")
def pipe():
    pipe = StableDiffusionPipeline.from_pretrained("assets/models/emoji")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def images(pipe):
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    return pipe(PROMPTS, num_inference_steps=4, guidance_scale=3.0, generator=generators).images


@pytest.fixture(scope="module")
def inversion(pipe, images):
    return rnri.invert(pipe, images, PROMPTS, num_inference_steps=10, method="accelerated_8")


def edit_first_image(inversion, pipe):
    return edit(pipe, inversion[0], "a drawing of a dog")


def to_tensor(image):
    return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None].float() / 255


def test_psnr_is_that_of_the_pipeline_call(pipe, images, inversion):
    for k, image in enumerate(inversion.reconstruct(pipe)):
        expected = psnr(to_tensor(image), to_tensor(images[k]))
        torch.testing.assert_close(inversion.psnr[k : k + 1], expected, rtol=0, atol=0.05)


def test_vae_psnr_is_that_of_encoding_and_decoding(pipe, images, inversion):
    model = rnri.LatentDiffusion(pipe)
    batch = as_images(images, model.image_size)
    with torch.no_grad():
        expected = psnr(model.decode(model.encode(batch)), batch)
    torch.testing.assert_close(inversion.vae_psnr, expected, rtol=0, atol=1e-4)


def test_psnr_of_a_constant_error():
    images = torch.full((1, 3, 4, 4), 0.5)
    assert psnr(images + 0.1, images).item() == pytest.approx(20)
    assert psnr(images, images).item() == torch.inf


def test_converged_is_a_statement_about_the_image(inversion):
    assert inversion.converged.all()
    assert inversion.quality.endswith("dB, as good as the VAE allows")


def test_a_worse_reconstruction_has_a_remedy(pipe, images):
    one = rnri.invert(pipe, images[0], PROMPTS[0], num_inference_steps=3, method="ddim")
    assert not one.converged.any()
    assert one.quality.endswith("dB: try method accelerated_8 or more steps")
    guided = rnri.invert(pipe, images[0], PROMPTS[0], num_inference_steps=3, guidance_scale=5, method="ddim")
    assert guided.quality.endswith("dB: try method accelerated_8")
    for nfe, remedy in ((5, "method round_trip_corrected"), (30, "a lower guidance scale")):
        counted = dataclasses.replace(guided, nfe=torch.full_like(guided.nfe, nfe))
        assert counted.quality.endswith(f"dB: try {remedy}")


def test_without_round_trip_nothing_is_measured(pipe, images):
    calls = []
    hook = pipe.vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    result = rnri.invert(pipe, images[0], PROMPTS[0], num_inference_steps=2, round_trip=False)
    hook.remove()
    assert not calls and result.round_trip is None and result.psnr.isnan().all()
    assert torch.equal(result.converged, result.residual_converged)
    assert result.quality.startswith("round trip not measured, residual")


def test_representation_is_one_short_line(inversion):
    text = repr(inversion)
    assert text == str(inversion) and "\n" not in text and len(text) < 160
    assert text.startswith("PipelineInversion(2 images 64x64, 10 steps, guidance 1, ")


def test_html_shows_every_image(inversion):
    assert inversion._repr_html_().count("data:image/png;base64,") == 2


def test_index_slice_and_iteration(inversion):
    assert len(inversion) == 2 and len(inversion[1:]) == 1
    for k, single in enumerate(inversion):
        assert single.prompts == (PROMPTS[k],)
        for name in ("seed", "z0", "latents", "images"):
            assert torch.equal(getattr(single, name), getattr(inversion, name)[k : k + 1])
        assert torch.equal(single.nfe, inversion.nfe[:, k : k + 1])
        assert torch.equal(single.psnr, inversion.psnr[k : k + 1])
    assert inversion[-1].prompts == inversion[1].prompts
    with pytest.raises(IndexError):
        inversion[2]


def test_saved_inversion_is_loaded_unchanged(tmp_path, inversion):
    loaded = rnri.load(inversion.save(tmp_path / "new" / "seeds.safetensors"))
    assert repr(loaded) == repr(inversion) and loaded.prompts == inversion.prompts
    for name in ("seed", "z0", "latents", "images", "residuals", "nfe", "backward", "solved", "timesteps", "psnr"):
        value = getattr(loaded, name)
        assert value.dtype == getattr(inversion, name).dtype and torch.equal(value, getattr(inversion, name))


@pytest.mark.parametrize("content", ["text", "other"])
def test_other_files_are_rejected(tmp_path, content):
    path = tmp_path / "file.safetensors"
    if content == "text":
        path.write_text("no tensors")
    else:
        save_file({"latents": torch.zeros(1)}, path, {"format": json.dumps("pt")})
    with pytest.raises(ValueError, match="not a s"):
        rnri.load(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        rnri.load(tmp_path / "missing.safetensors")


def test_incomplete_seed_file_is_rejected(tmp_path, inversion):
    path = inversion.save(tmp_path / "a.safetensors")
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if key != "nfe"}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="incomplete seed file"):
        rnri.load(path)


def test_a_nondeterministic_scheduler_is_reported(pipe, images):
    scheduler = pipe.scheduler
    pipe.scheduler = EulerDiscreteScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    try:
        with pytest.warns(UserWarning, match="EulerDiscreteScheduler does not regenerate"):
            rnri.invert(pipe, images[0], PROMPTS[0], num_inference_steps=2, round_trip=False)
    finally:
        pipe.scheduler = scheduler


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"timestep_spacing": "trailing"}, "has timesteps other than the scheduler DDIMScheduler"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "has noise levels other than"),
        ({"prediction_type": "v_prediction"}, "has a prediction_type other than"),
    ],
)
@pytest.mark.parametrize("generate", [PipelineInversion.reconstruct, edit_first_image])
def test_another_schedule_is_rejected(pipe, inversion, generate, setting, message):
    scheduler = pipe.scheduler
    pipe.scheduler = DDIMScheduler.from_config(scheduler.config, **setting)
    other = pipe.scheduler
    try:
        with pytest.raises(ValueError, match=message):
            generate(inversion, pipe)
        assert pipe.scheduler is other
    finally:
        pipe.scheduler = scheduler


def test_pipeline_of_another_dtype_regenerates_the_images(pipe, inversion):
    expected = inversion.reconstruct(pipe)
    pipe.to(torch.float64)
    try:
        regenerated = inversion.reconstruct(pipe)
        edited = edit(pipe, inversion[0], PROMPTS[0]).reconstructions
    finally:
        pipe.to(torch.float32)
    for image, other in ((expected[0], regenerated[0]), (expected[0], edited[0])):
        assert np.abs(np.asarray(image, dtype=float) - np.asarray(other, dtype=float)).max() <= 1


def test_seed_file_is_readable_by_others_and_follows_links(inversion, tmp_path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "target.safetensors")
    inversion.save(link)
    assert link.is_symlink() and (tmp_path / "target.safetensors").is_file()
    (tmp_path / "plain.txt").write_text("")
    assert link.stat().st_mode == (tmp_path / "plain.txt").stat().st_mode
    with pytest.raises(ValueError, match=r"is a folder; pass the path of a file, such as .*seed.safetensors"):
        inversion.save(tmp_path)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_are_fitted_to_the_model(pipe, fit, caplog, tmp_path):
    path = tmp_path / "wide.png"
    wide = Image.new("RGB", (100, 50), "red")
    wide.paste("blue", (0, 0, 10, 50))
    wide.save(path)
    batch = as_images(path, (64, 64), fit)
    assert "1 of 1 images resized" in caplog.text and "64x64" in caplog.text
    assert batch.shape == (1, 3, 64, 64)
    corner, edge, center = batch[0, :, 0, 32], batch[0, :, 32, 0], batch[0, :, 32, 32]
    red, blue, white = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [1.0, 1, 1]])
    assert torch.equal(center, red)
    assert torch.equal(corner, white if fit == "pad" else red)
    assert torch.equal(edge, red if fit == "crop" else blue)


def test_fit_message_is_only_for_resized_images(caplog):
    as_images(torch.rand(2, 3, 64, 64), (64, 64))
    assert not caplog.text


def test_transparent_background_becomes_white(caplog):
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert (as_images(image, (64, 64)) == 1).all()
    assert "transparent background of an image is replaced by white" in caplog.text
