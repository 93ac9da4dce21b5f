"""Each attack changes images as its definition states, and independently of the batch."""

import pytest
import torch

from experiments.watermark.attacks import (
    BlurAttack,
    BrightnessAttack,
    CropAttack,
    JpegAttack,
    NoiseAttack,
    RotationAttack,
    VaeAttack,
    publish,
)
from rnri.validation import ConfigError
from tests.experiments.tiny_configs import tiny

NAMES = ["a", "b"]


@pytest.fixture(scope="module")
def model():
    return tiny()


def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


ATTACKS = [
    JpegAttack(),
    BlurAttack(sigma=0.1),
    NoiseAttack(),
    BrightnessAttack(),
    CropAttack(side=0.5),
    RotationAttack(),
    VaeAttack(),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_attack_of_an_image_does_not_depend_on_the_batch(attack, model):
    together = attack(images(), NAMES, model)
    alone = torch.cat([attack(images()[k : k + 1], NAMES[k : k + 1], model) for k in range(2)])
    assert together.shape == images().shape
    assert torch.allclose(together, alone, atol=1e-5)
    assert (together - images()).abs().mean() > 0.01


def test_brightness_is_multiplied(model):
    half = images() / 2
    assert torch.allclose(BrightnessAttack(factor=1.5)(half, NAMES, model), 1.5 * half)


def test_crop_enlarges_the_center(model):
    center = torch.zeros(2, 3, 16, 16)
    center[..., 4:12, 4:12] = 1
    assert torch.allclose(CropAttack(side=0.5)(center, NAMES, model), torch.ones(2, 3, 16, 16))


def test_rotation_by_half_a_turn_flips_both_sides(model):
    assert torch.allclose(RotationAttack(degrees=180.0)(images(), NAMES, model), images().flip(2, 3), atol=1e-5)


def test_rotation_fills_corners_with_white(model):
    rotated = RotationAttack(degrees=45.0)(torch.zeros(2, 3, 16, 16), NAMES, model)
    assert (rotated[..., 0, 0] == 1).all()


def test_noise_has_the_stated_standard_deviation(model):
    noise = NoiseAttack(std=0.1)(torch.full((2, 3, 64, 64), 0.5), NAMES, model) - 0.5
    assert float(noise.std()) == pytest.approx(0.1, rel=0.03)
    assert not torch.equal(noise[0], noise[1])


def test_blur_of_a_point_is_a_gaussian(model):
    point = torch.zeros(1, 3, 32, 32)
    point[..., 16, 16] = 1
    blurred = BlurAttack(sigma=1 / 16)(point, ["a"], model)  # two pixels
    assert float(blurred[0, 0, 16, 18] / blurred[0, 0, 16, 16]) == pytest.approx(2.718281828**-0.5, rel=1e-3)


def test_jpeg_of_a_constant_image_is_the_image(model):
    gray = torch.full((2, 3, 16, 16), 128 / 255)
    assert torch.equal(JpegAttack()(gray, NAMES, model), gray)


def test_vae_attack_is_the_round_trip_of_the_vae(model):
    assert torch.equal(VaeAttack()(images(), NAMES, model), model.decode(model.encode(images())))


def test_published_images_have_8_bits():
    levels = publish(torch.tensor([[-0.1, 0.5, 0.50001, 1.2]])) * 255
    assert levels.flatten().tolist() == pytest.approx([0, 128, 128, 255], abs=1e-4)


@pytest.mark.parametrize(
    ("create", "key"),
    [
        (lambda: JpegAttack(quality=0), "quality"),
        (lambda: BlurAttack(sigma=0.0), "sigma"),
        (lambda: NoiseAttack(std=-1.0), "std"),
        (lambda: BrightnessAttack(factor=0.0), "factor"),
        (lambda: CropAttack(side=1.5), "side"),
        (lambda: RotationAttack(degrees=200.0), "degrees"),
    ],
)
def test_invalid_strength_is_rejected(create, key):
    with pytest.raises(ConfigError) as error:
        create()
    assert error.value.key == key
