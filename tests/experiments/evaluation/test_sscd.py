"""SSCD from a TorchScript file, with a small network in place of the published one."""

import pytest
import torch
from torch import nn

from experiments.evaluation.sscd import load_sscd, similarities


class MeanColor(nn.Module):
    """Maps images ``[B, 3, H, W]`` to their mean colors ``[B, 3]``."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


class Maps(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def saved(path, network: nn.Module):
    torch.jit.script(network).save(str(path))
    return path


def test_similarity_is_that_of_the_most_similar_reference(tmp_path):
    sscd = load_sscd(saved(tmp_path / "sscd.pt", MeanColor()))
    colors = torch.tensor([[255, 0, 0], [0, 255, 0], [250, 5, 0]], dtype=torch.uint8)
    red, green, almost_red = colors[:, :, None, None].expand(3, 3, 8, 8)
    values = similarities(sscd, torch.stack([red, almost_red]), torch.stack([green, red]))
    assert values[0] == pytest.approx(1)
    assert 0.99 < values[1] < 1
    assert similarities(sscd, torch.stack([red]), torch.stack([green]))[0] < 0
    assert similarities(sscd, torch.empty(0, 3, 8, 8, dtype=torch.uint8), red[None]) == []


def test_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r".* does not exist; set metrics.sscd to sscd_disc_mixup[^\n]*null\.$"):
        load_sscd(tmp_path / "missing.pt")


@pytest.mark.parametrize("kind", ["text", "maps"])
def test_file_of_another_network_is_one_sentence(tmp_path, kind):
    path = tmp_path / "other.pt"
    if kind == "text":
        path.write_text("no network")
    else:
        saved(path, Maps())
    with pytest.raises(ValueError, match=r"metrics.sscd: .*other.pt does not contain SSCD") as error:
        load_sscd(path)
    assert "\n" not in str(error.value)
