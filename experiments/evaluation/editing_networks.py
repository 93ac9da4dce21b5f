"""The networks that score edits: PIE-Bench's own, each by its path, or what the judge's features serve for instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image.lpips import _LPIPS
from transformers import ViTModel

from experiments.evaluation import Classifier, perceptual_distance
from rnri.models.fingerprint import fingerprint

DINO_SIZE = 224  # pixels
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation
PLACES = 64  # at least, of the judge's map that structure is read from


@dataclass(frozen=True)
class Distance:
    """A distance of images ``[B,3,H,W]`` in [0, 1]: ``[B]``.

    Attributes:
        name: what tables call its network.
        sha: of the weights.
    """

    name: str
    sha: str
    measure: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        return self.measure(images, originals)


def structure_distance(tokens: Tensor, originals: Tensor) -> Tensor:
    """Mean squared difference of the cosine self-similarities of ``tokens`` and ``originals`` ``[B,N,D]``: ``[B]``."""
    return (_self_similarity(tokens) - _self_similarity(originals)).square().mean((1, 2))


def _self_similarity(tokens: Tensor) -> Tensor:
    unit = F.normalize(tokens.float(), dim=-1)
    return unit @ unit.mT


def dino_structure(path: str, device: str | torch.device) -> Distance:
    """PIE-Bench's structure distance: the keys of the last layer of a DINO ViT (published: ViT-B/8), at 224 pixels.

    Args:
        path: a folder or hub id that transformers' ``ViTModel`` loads, such as ``facebook/dino-vitb8``.

    Raises:
        ValueError: one sentence, for a folder without such a model.
    """
    try:
        network = ViTModel.from_pretrained(path, add_pooling_layer=False).eval().requires_grad_(False).to(device)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load a DINO ViT from task.dino={path}: {str(error).splitlines()[0]}") from error
    keys = _last_keys(network, path)

    def tokens(images: Tensor) -> Tensor:
        found: list[Tensor] = []
        handle = keys.register_forward_hook(lambda _, __, output: found.append(output))
        try:
            network(pixel_values=_standardized(images), interpolate_pos_encoding=True)
        finally:
            handle.remove()
        return found[0]

    return Distance(
        f"DINO ({path})",
        fingerprint({"dino": network}, {}),
        lambda images, originals: structure_distance(tokens(images), tokens(originals)),
    )


def _last_keys(network: nn.Module, path: str) -> nn.Module:
    """The projection to keys of the last layer."""
    found = [part for name, part in network.named_modules() if name.rpartition(".")[2] in ("key", "k_proj")]
    if not found:
        raise ValueError(f"the network of task.dino={path} has no projection to keys: name a DINO ViT.")
    return found[-1]


def _standardized(images: Tensor) -> Tensor:
    images = F.interpolate(images.float(), (DINO_SIZE, DINO_SIZE), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    return (images - mean) / std


def judge_structure(judge: Classifier, sha: str) -> Distance:
    """The same of the judge's feature vectors at the places of its deepest map with 64 places or more."""

    def tokens(images: Tensor) -> Tensor:
        maps = judge.feature_maps(images)
        deepest = [each for each in maps if each.shape[2] * each.shape[3] >= PLACES][-1]
        return deepest.flatten(2).mT

    return Distance(
        "the judge's features", sha, lambda images, originals: structure_distance(tokens(images), tokens(originals))
    )


def squeeze_lpips(path: str, device: str | torch.device) -> Distance:
    """PIE-Bench's LPIPS: SqueezeNet 1.1, whose ImageNet weights ``path`` holds, with the learned heads of torchmetrics.

    Args:
        path: torchvision's file (``squeezenet1_1-*.pth``), or the same tensors as safetensors.

    Raises:
        ValueError: one sentence, for a file that is missing or of another network.
    """
    network = _LPIPS(net="squeeze", pnet_rand=True, use_dropout=True).eval()
    backbone = network.net
    own = backbone.state_dict()  # slices.K.N.rest, torchvision's features.N.rest
    names = {name: f"features.{name.split('.', 2)[2]}" for name in own}
    weights = _weights(path)
    wrong = [other for name, other in names.items() if other not in weights or weights[other].shape != own[name].shape]
    if wrong:
        raise ValueError(f"task.lpips={path} is not SqueezeNet 1.1, for {wrong[0]} is missing or of another shape.")
    backbone.load_state_dict({name: weights[other] for name, other in names.items()})
    network = network.requires_grad_(False).to(device)
    return Distance(
        f"LPIPS, SqueezeNet ({Path(path).name})",
        fingerprint({"lpips": network}, {}),
        lambda images, originals: network(images.float(), originals.float(), normalize=True).view(-1),
    )


def _weights(path: str) -> dict[str, Tensor]:
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers raise
        raise ValueError(f"task.lpips={path} cannot be read ({str(error).splitlines()[0]}).") from error


def judge_lpips(judge: Classifier, sha: str) -> Distance:
    """LPIPS without learned weights, on the judge's features (``perceptual_distance``)."""
    return Distance(
        "the judge's features, without learned weights",
        sha,
        lambda images, originals: perceptual_distance(judge, images, originals),
    )
