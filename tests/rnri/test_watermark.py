"""Watermarks in seeds: exact readings, the distribution of seeds and p-values, pipelines, and invalid input."""

import base64
import itertools
import pickle

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from scipy.stats import binom, chisquare, kstest

import rnri
from rnri import watermark
from rnri.validation import ConfigError
from rnri.watermark import GaussianShading, TreeRing
from tests.pipelines import tiny_flux, tiny_stable_diffusion

KEY = bytes(range(32))
OTHER = bytes(reversed(range(32)))
MARKS = [GaussianShading(key=KEY, message=b"owner 42"), TreeRing(key=KEY, radius=0.3)]

SIGNS = [1, 1, 1, 1, -1, 1, -1, -1, -1, 1, -1, -1, -1, -1, -1, -1]
RING = 2.06441
"""Signs and first ring of the latents ``[1,1,4,4]`` with the key ``KEY``."""


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(4, 16, 16), (16, 9, 13), (1, 8, 8), (64, 1, 1)])
def test_all_bits_of_an_unattacked_seed_are_read(shape):
    reading = MARKS[0].read(MARKS[0].embed(noise(3, *shape)))
    assert reading.messages == [b"owner 42"] * 3
    assert reading.bit_accuracy.tolist() == reading.sign_accuracy.tolist() == [1, 1, 1]
    assert reading.p_value.tolist() == pytest.approx([2**-64] * 3)


def test_majority_of_five_copies_survives_two_wrong_signs():
    mark = GaussianShading(key=KEY, message=b"x")  # 8 bits in 40 elements
    seed = mark.embed(noise(1, 1, 5, 8)).flatten()
    pairs = list(itertools.combinations(range(40), 2))
    attacked = seed.repeat(len(pairs), 1)
    for row, pair in zip(attacked, pairs, strict=True):
        row[list(pair)] *= -1
    reading = mark.read(attacked.view(-1, 1, 5, 8))
    assert reading.messages == [b"x"] * len(pairs)
    assert reading.sign_accuracy.tolist() == pytest.approx([38 / 40] * len(pairs))


def test_first_copy_decides_a_tie():
    mark = GaussianShading(key=KEY, message=b"\xff")  # 8 bits in 16 elements, two copies each
    seed = mark.embed(noise(1, 1, 4, 4))
    accuracies = []
    for k in range(16):
        attacked = seed.clone().flatten()
        attacked[k] *= -1
        accuracies.append(float(mark.read(attacked.view_as(seed)).bit_accuracy))
    assert sorted(accuracies) == [7 / 8] * 8 + [1.0] * 8


def test_gaussian_shading_changes_only_signs():
    before = noise(4, 4, 16, 16)
    after = MARKS[0].embed(before)
    assert torch.equal(after.abs(), before.abs())


def test_gaussian_shading_is_standard_normal_over_random_keys():
    """The absolute values are those of normal noise, and the signs are independent fair bits."""
    before = noise(1, 1, 8, 8)
    keys = [k.to_bytes(16, "big") for k in range(4000)]
    seeds = torch.cat([GaussianShading(key=key, message=b"owner 42").embed(before) for key in keys])
    signs = seeds.flatten(1).sign().double()
    standard_error = len(keys) ** -0.5
    assert signs.mean(0).abs().max() < 4.5 * standard_error
    correlation = signs.T @ signs / len(keys) - torch.eye(64, dtype=torch.float64)
    assert correlation.abs().max() < 5.5 * standard_error


def test_distribution_of_a_gaussian_shading_seed_is_standard_normal():
    assert kstest(MARKS[0].embed(noise(200, 4, 16, 16)).flatten().numpy(), "norm").pvalue > 0.01


def test_p_value_of_an_unwatermarked_seed_is_uniform_for_tree_ring():
    p_values = MARKS[1].read(noise(4000, 4, 16, 16)).p_value.numpy()
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_number_of_bits_of_an_unwatermarked_seed_is_binomial():
    """The p-value of Gaussian Shading is the tail of this distribution, which is discrete."""
    mark = GaussianShading(key=KEY, message=b"\x00\xff")
    reading = mark.read(noise(6000, 4, 8, 8))
    correct = (reading.bit_accuracy * 16).round().long().clamp(3, 13) - 3
    expected = binom.pmf(np.arange(17), 16, 0.5)
    expected = np.array([expected[:4].sum(), *expected[4:13], expected[13:].sum()])
    assert chisquare(np.bincount(correct, minlength=11), 6000 * expected).pvalue > 0.01
    assert all((reading.p_value <= level).double().mean() <= level for level in (0.05, 0.2, 0.5))


def test_other_key_does_not_find_gaussian_shading():
    seeds = MARKS[0].embed(noise(300, 4, 16, 16))
    assert GaussianShading(key=OTHER, message=b"owner 42").read(seeds).p_value.median() > 0.2


def test_other_key_finds_tree_ring_less_than_the_right_key():
    """Two keys with five rings may have similar values, so that the p-value of another key can be small."""
    seeds = MARKS[1].embed(noise(300, 4, 16, 16))
    right, other = (TreeRing(key=key, radius=0.3).read(seeds).p_value for key in (KEY, OTHER))
    assert right.max() < 1e-6 < other.min()


def test_rings_survive_a_quarter_turn():
    seeds = MARKS[1].embed(noise(20, 4, 16, 16))
    assert MARKS[1].read(torch.rot90(seeds, 1, (2, 3))).p_value.max() < 1e-6
    assert MARKS[0].read(torch.rot90(MARKS[0].embed(noise(20, 4, 16, 16)), 1, (2, 3))).p_value.median() > 0.2


def test_tree_ring_changes_one_channel_and_keeps_the_other_frequencies():
    before = noise(2, 4, 16, 12)
    mark = TreeRing(key=KEY, radius=0.25, channel=-1)
    after = mark.embed(before)
    assert torch.equal(after[:, :3], before[:, :3])
    changed = (torch.fft.fft2(after[:, 3]) - torch.fft.fft2(before[:, 3])).abs() > 1e-3
    y, x = torch.fft.fftfreq(16, 1 / 16)[:, None], torch.fft.fftfreq(12, 1 / 12)[None]
    distance = (y.square() + x.square()).sqrt()
    assert torch.equal(changed[0], (distance > 0.5) & (distance < 3.5))


def test_unknown_message_is_read_with_the_key():
    seed = MARKS[0].embed(noise(1, 4, 16, 16))
    assert GaussianShading(key=KEY, message=bytes(8)).read(seed).messages == [b"owner 42"]


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: type(mark).__name__)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_seed_that_is_not_finite_is_not_detected(mark, value):
    seeds = mark.embed(noise(2, 4, 16, 16))
    seeds[0, 0, 0, 0] = value
    p_value = mark.read(seeds).p_value
    assert p_value[0] == 1
    assert p_value[1] < 1e-6


def test_layout_of_a_key_does_not_change():
    """Watermarks have to be readable with later versions: these signs and rings belong to the key."""
    ones = torch.ones(1, 1, 4, 4)
    assert GaussianShading(key=KEY, message=b"A").embed(ones).flatten().tolist() == SIGNS
    spectrum = torch.fft.fft2(TreeRing(key=KEY, radius=0.3).embed(ones)[0, 0], norm="ortho")
    assert spectrum[0, 1].item() == pytest.approx(RING, abs=1e-5)


def test_four_lines_read_the_watermark_of_an_image():
    pipe = DiffusionPipeline.from_pretrained("assets/models/emoji")
    pipe.set_progress_bar_config(disable=True)
    seed = watermark.embed(MARKS[0], pipe, generator=torch.Generator().manual_seed(0))
    image = pipe("a drawing of a fox on a white background", latents=seed, num_inference_steps=4).images[0]
    inversion = rnri.invert(pipe, image, "", num_inference_steps=4, round_trip=False)
    assert watermark.read(MARKS[0], inversion).p_value[0] < 1e-3


def test_seed_has_the_layout_and_dtype_of_the_pipeline():
    flux = tiny_flux()
    seed = watermark.embed(MARKS[0], flux, count=2)
    model = rnri.LatentDiffusion(flux)
    unpacked = model.family.unpack(seed, model.latent_shape[1:])
    assert seed.dtype == flux.transformer.dtype
    assert watermark.read(MARKS[0], unpacked).messages == [b"owner 42"] * 2
    half = tiny_stable_diffusion().to(torch.float16)
    assert watermark.embed(MARKS[0], half).dtype == torch.float16


def test_image_size_determines_the_shape_of_the_seed():
    pipe = tiny_stable_diffusion()
    height, width = rnri.LatentDiffusion(pipe).image_size
    larger = watermark.embed(MARKS[0], pipe, image_size=(2 * height, width))
    assert larger.shape[2] == 2 * watermark.embed(MARKS[0], pipe).shape[2]


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: GaussianShading(key="secret words here", message=b"x"), "key: must be bytes, got str"),
        (lambda: TreeRing(key=b"secret"), "key: must have at least 16 bytes, got 6"),
        (lambda: GaussianShading(key=KEY, message=b""), "message: must be bytes with at least one byte, got b''"),
        (lambda: GaussianShading(key=KEY, message="x"), "message: must be bytes with at least one byte, got 'x'"),
        (lambda: TreeRing(key=KEY, radius=0.5), "radius: must be above 0 and below 0.5, got 0.5"),
        (lambda: MARKS[0].embed(noise(1, 1, 4, 4)), "message: must have at most 2 bytes for latents of 16 elements"),
        (lambda: TreeRing(key=KEY, channel=4).embed(noise(1, 4, 8, 8)), "channel: must be from -4 to 3, got 4"),
        (lambda: TreeRing(key=KEY, radius=0.01).embed(noise(1, 4, 8, 8)), "radius: must be at least 0.0625"),
        (lambda: MARKS[0].read(noise(1, 64, 16)), r"seeds: must have the shape [B,C,h,w], got [1, 64, 16]"),
        (lambda: MARKS[1].read(noise(0, 4, 8, 8)), r"seeds: must have the shape [B,C,h,w], got [0, 4, 8, 8]"),
        (lambda: watermark.embed(MARKS[0], None, count=0), "count: must be at least 1, got 0"),
        (
            lambda: MARKS[1].read(noise(1, 4, 8, 8)).messages,
            "messages: the watermark has no message; use a watermark with a message",
        ),
    ],
)
def test_invalid_input_is_one_line_without_the_key(create, message):
    with pytest.raises(ValueError) as error:
        create()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_representation_does_not_contain_the_key():
    for mark in MARKS:
        for text in (repr(mark), str(mark), f"{mark}"):
            assert str(KEY) not in text
            assert KEY.hex() not in text
            assert base64.b64encode(KEY).decode() not in text


def test_new_keys_differ():
    keys = {watermark.new_key() for _ in range(10)}
    assert len(keys) == 10
    assert {len(key) for key in keys} == {32}


def test_mark_with_the_same_key_is_equal_after_pickling():
    assert pickle.loads(pickle.dumps(MARKS[0])) == MARKS[0]


def test_errors_are_config_errors():
    with pytest.raises(ConfigError):
        GaussianShading(key=b"", message=b"x")
