"""ST-LPIPS with random weights in the format of the published file, compared with values that are computed by hand."""

from pathlib import Path

import pytest
import torch
from scipy.signal import convolve2d
from torch.nn import functional as F

from experiments.evaluation.lpips import CONVOLUTIONS, blur_and_downsample, load_lpips


def random_weights(path: Path) -> Path:
    """A file with random weights in the published format."""
    generator = torch.Generator().manual_seed(0)
    state = {"scaling_layer.shift": torch.full((1, 3, 1, 1), 0.1), "scaling_layer.scale": torch.full((1, 3, 1, 1), 0.5)}
    for k, (name, (outputs, inputs, side, _)) in enumerate(CONVOLUTIONS.items()):
        spread = (inputs * side * side) ** -0.5
        state[f"net.{name}.weight"] = spread * torch.randn(outputs, inputs, side, side, generator=generator)
        state[f"net.{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
        state[f"lin{k}.model.1.weight"] = torch.rand(1, outputs, 1, 1, generator=generator)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return random_weights(tmp_path_factory.mktemp("lpips") / "weights.pth")


def random_images(seed: int) -> torch.Tensor:
    return torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def test_blur_and_downsample_matches_scipy():
    maps = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    line = torch.tensor([[0.25, 0.5, 0.25]])
    padded = F.pad(maps, (2, 2, 2, 2), mode="reflect")[0, 0].numpy()
    expected = convolve2d(padded, (line.T @ line).numpy(), mode="valid")[::2, ::2]
    torch.testing.assert_close(blur_and_downsample(maps)[0, 0], torch.from_numpy(expected))


def test_distance_is_symmetric_and_grows_with_the_difference(file):
    lpips = load_lpips(file)
    images = random_images(0)
    others = random_images(1)
    assert torch.equal(lpips(images, images), torch.zeros(3))
    far = lpips(images, others)
    torch.testing.assert_close(far, lpips(others, images))
    torch.testing.assert_close(lpips(images[1:2], others[1:2]), far[1:2], rtol=1e-4, atol=1e-6)
    near = lpips(images, 0.9 * images + 0.1 * others)
    assert (near > 0).all() and (near < 0.5 * far).all()


def test_layers_use_the_weights_of_the_file(file):
    lpips = load_lpips(file)
    a = lpips.feature_maps(random_images(0))
    b = lpips.feature_maps(random_images(1))
    weights = [torch.load(file)[f"lin{k}.model.1.weight"] for k in range(5)]
    expected = sum(
        ((F.normalize(x) - F.normalize(y)) ** 2 * w).sum(1).mean((1, 2)) for x, y, w in zip(a, b, weights, strict=True)
    )
    torch.testing.assert_close(lpips(random_images(0), random_images(1)), expected)


def test_invalid_files_are_rejected(file, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read as weights .*stlpips-pytorch"):
        load_lpips(tmp_path / "none.pth")
    state = torch.load(file)
    del state["net.slice3.9.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"has no net\.slice3\.9\.weight"):
        load_lpips(tmp_path / "other.pth")
    state["net.slice3.9.weight"] = torch.zeros(192, 384, 3, 3)  # as many elements in another order
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"has no net\.slice3\.9\.weight of shape \[384, 192, 3, 3\]"):
        load_lpips(tmp_path / "other.pth")
