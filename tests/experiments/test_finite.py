"""Images become bytes, and what is not finite becomes none."""

import pytest
import torch

from experiments.finite import NonFiniteError, is_finite, mask_nonfinite, select_finite, to_bytes

BAD = [float("nan"), float("inf"), -float("inf")]


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_bytes_are_rounded_and_cut_off():
    values = torch.tensor([-0.5, 0.0, 0.5 / 255, 0.51 / 255, 128 / 255, 1.0, 1.5]).view(1, 1, 1, 7)
    assert to_bytes(values).flatten().tolist() == [0, 0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bytes_do_not_depend_on_the_dtype_of_exact_values(dtype):
    values = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=dtype, requires_grad=True).view(1, 1, 2, 2)
    found = to_bytes(values)
    assert found.dtype == torch.uint8 and found.flatten().tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("value", BAD)
def test_what_is_not_finite_never_becomes_bytes(value):
    spoilt = images()
    spoilt[1, 0, 2, 3] = value
    with pytest.raises(NonFiniteError, match="1 of 3 images are not finite, the first is image 1"):
        to_bytes(spoilt)
    kept, finite = select_finite(spoilt)
    assert finite.tolist() == [True, False, True]
    assert torch.equal(kept, to_bytes(images()[[0, 2]]))
    assert is_finite(spoilt).tolist() == finite.tolist()
    measured = mask_nonfinite(spoilt)
    assert measured[1].isnan().all() and torch.equal(measured[[0, 2]], images()[[0, 2]])


def test_no_images_are_no_bytes():
    assert to_bytes(images(0)).shape == (0, 3, 4, 4)
    kept, finite = select_finite(torch.full((2, 3, 4, 4), torch.nan))
    assert kept.shape == (0, 3, 4, 4) and kept.dtype == torch.uint8 and not finite.any()
