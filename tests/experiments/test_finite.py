"""Conversion of images to bytes, and exclusion of non-finite images."""

import pytest
import torch

from experiments.finite import NonFiniteError, is_finite, mask_nonfinite, select_finite, to_bytes

BAD = [float("nan"), float("inf"), -float("inf")]


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_bytes_are_rounded_and_clamped():
    values = torch.tensor([-0.5, 0.0, 0.5 / 255, 0.51 / 255, 128 / 255, 1.0, 1.5]).view(1, 1, 1, 7)
    assert to_bytes(values).flatten().tolist() == [0, 0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bytes_are_equal_for_all_dtypes(dtype):
    values = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=dtype, requires_grad=True).view(1, 1, 2, 2)
    pixels = to_bytes(values)
    assert pixels.dtype == torch.uint8 and pixels.flatten().tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("value", BAD)
def test_non_finite_images_are_excluded(value):
    damaged = images()
    damaged[1, 0, 2, 3] = value
    with pytest.raises(NonFiniteError, match="1 of 3 images are not finite, first at index 1"):
        to_bytes(damaged)
    pixels, finite = select_finite(damaged)
    assert finite.tolist() == [True, False, True]
    assert torch.equal(pixels, to_bytes(images()[[0, 2]]))
    assert is_finite(damaged).tolist() == finite.tolist()
    masked = mask_nonfinite(damaged)
    assert masked[1].isnan().all() and torch.equal(masked[[0, 2]], images()[[0, 2]])


def test_empty_batches_and_all_non_finite_batches():
    assert to_bytes(images(0)).shape == (0, 3, 4, 4)
    pixels, finite = select_finite(torch.full((2, 3, 4, 4), torch.nan))
    assert pixels.shape == (0, 3, 4, 4) and pixels.dtype == torch.uint8 and not finite.any()
