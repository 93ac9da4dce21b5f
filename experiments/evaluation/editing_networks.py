"""Networks that score edits: PIE-Bench's own, loaded from a path, or substitutes by the classifier's features."""

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
from rnri.models.fingerprint import fingerprint as fingerprint_weights
from rnri.validation import first_line

DINO_IMAGE_SIZE = 224  # pixels
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation
MIN_POSITIONS = 64  # of the feature map from which structure is computed


@dataclass(frozen=True)
class Distance:
    """A distance between images ``[B,3,H,W]`` in [0, 1], which returns ``[B]``.

    Attributes:
        name: name of its network in tables.
        fingerprint: SHA-256 of its weights.
        function: computes the distance.
    """

    name: str
    fingerprint: str
    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        return self.function(images, originals)


def structure_distance(tokens: Tensor, originals: Tensor) -> Tensor:
    """Mean squared difference ``[B]`` of the cosine self-similarities of ``tokens`` and ``originals`` ``[B,N,D]``."""
    return (_self_similarity(tokens) - _self_similarity(originals)).square().mean((1, 2))


def _self_similarity(tokens: Tensor) -> Tensor:
    unit = F.normalize(tokens.float(), dim=-1)
    return unit @ unit.mT


def dino_structure(path: str, device: str | torch.device) -> Distance:
    """PIE-Bench's structure distance, from the keys of the last layer of a DINO ViT at 224 pixels (published: ViT-B/8).

    Args:
        path: a folder or Hugging Face Hub id for transformers' ``ViTModel``, such as ``facebook/dino-vitb8``.

    Raises:
        ValueError: the model cannot be loaded, or has no projection to keys.
    """
    try:
        network = ViTModel.from_pretrained(path, add_pooling_layer=False).eval().requires_grad_(False).to(device)
    except (OSError, ValueError) as error:
        raise ValueError(f"task.dino: cannot load a DINO ViT from {path} ({first_line(error)}).") from error
    keys = _last_keys(network, path)

    def tokens(images: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        handle = keys.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            network(pixel_values=_normalize(images), interpolate_pos_encoding=True)
        finally:
            handle.remove()
        return outputs[0]

    return Distance(
        f"DINO ({path})",
        fingerprint_weights({"dino": network}, {}),
        lambda images, originals: structure_distance(tokens(images), tokens(originals)),
    )


def _last_keys(network: nn.Module, path: str) -> nn.Module:
    """The key projection of the last attention layer."""
    projections = [part for name, part in network.named_modules() if name.rpartition(".")[2] in ("key", "k_proj")]
    if not projections:
        raise ValueError(f"task.dino: the network of {path} has no projection to keys; use a DINO ViT.")
    return projections[-1]


def _normalize(images: Tensor) -> Tensor:
    images = F.interpolate(images.float(), (DINO_IMAGE_SIZE, DINO_IMAGE_SIZE), mode="bicubic", antialias=True).clamp(
        0, 1
    )
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    return (images - mean) / std


def classifier_structure(classifier: Classifier, fingerprint: str) -> Distance:
    """Structure distance of the classifier's deepest feature map with at least ``MIN_POSITIONS`` positions."""

    def tokens(images: Tensor) -> Tensor:
        large_maps = [maps for maps in classifier.feature_maps(images) if maps[0, 0].numel() >= MIN_POSITIONS]
        return large_maps[-1].flatten(2).mT

    return Distance(
        "classifier features",
        fingerprint,
        lambda images, originals: structure_distance(tokens(images), tokens(originals)),
    )


def squeeze_lpips(path: str, device: str | torch.device) -> Distance:
    """PIE-Bench's LPIPS: SqueezeNet 1.1 with the ImageNet weights in ``path`` and the learned heads of torchmetrics.

    Args:
        path: torchvision's file (``squeezenet1_1-*.pth``), or the same tensors as safetensors.

    Raises:
        ValueError: the file is missing, or holds another network.
    """
    network = _LPIPS(net="squeeze", pnet_rand=True, use_dropout=True).eval()
    backbone = network.net
    expected = backbone.state_dict()  # slices.K.N.rest, which torchvision calls features.N.rest
    names = {name: f"features.{name.split('.', 2)[2]}" for name in expected}
    weights = _read_weights(path)
    for name, file_name in names.items():
        if file_name not in weights or weights[file_name].shape != expected[name].shape:
            raise ValueError(f"task.lpips: {path} is not SqueezeNet 1.1; {file_name} is missing or of another shape.")
    backbone.load_state_dict({name: weights[file_name] for name, file_name in names.items()})
    network = network.requires_grad_(False).to(device)
    return Distance(
        f"LPIPS, SqueezeNet ({Path(path).name})",
        fingerprint_weights({"lpips": network}, {}),
        lambda images, originals: network(images.float(), originals.float(), normalize=True).view(-1),
    )


def _read_weights(path: str) -> dict[str, Tensor]:
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # raised by safetensors, pickle or zipfile
        raise ValueError(f"task.lpips: {path} cannot be read ({first_line(error)}).") from error


def classifier_perceptual(classifier: Classifier, fingerprint: str) -> Distance:
    """LPIPS without learned weights on the classifier's features (:func:`perceptual_distance`)."""
    return Distance(
        "classifier features, without learned weights",
        fingerprint,
        lambda images, originals: perceptual_distance(classifier, images, originals),
    )
