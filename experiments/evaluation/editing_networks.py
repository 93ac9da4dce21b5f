"""Networks that compute distances between source images and edited images.

The networks are those of PIE-Bench, loaded from files of the user, or the evaluation classifier as a substitute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.transforms.v2.functional import normalize, resize
from transformers import ViTModel

from experiments.evaluation.classifier import Classifier
from experiments.evaluation.metrics import perceptual_distance
from rnri.loading import load_network, read_weights
from rnri.models.fingerprint import fingerprint as fingerprint_weights

DINO_IMAGE_SIZE = 224  # height and width of the input of DINO, in pixels
MAX_PIE_BENCH_SIDE = 480  # maximum length of the longer side of an image in PIE-Bench's structure distance, in pixels
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of the color channels
MIN_POSITIONS = 64  # minimum number of positions (h * w) of the feature map in the structure distance


@dataclass(frozen=True)
class Distance:
    """A distance ``[B]`` between two batches of images ``[B,3,H,W]`` in [0, 1].

    Attributes:
        name: name of the network that computes the distance, as in the results tables.
        fingerprint: SHA-256 hash of the weights of the network.
        function: function that computes the distances of two batches of images.
        original: function that computes the distance as the code of PIE-Bench defines it; None if ``function`` has the
            same definition.
    """

    name: str
    fingerprint: str
    function: Callable[[Tensor, Tensor], Tensor]
    original: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        return self.function(images, originals)


def structure_distance(tokens: Tensor, originals: Tensor) -> Tensor:
    """Return the structure distance ``[B]`` between B images and their originals.

    ``tokens`` and ``originals`` contain N tokens per image, ``[B,N,D]``.

    The structure distance is the mean squared difference between the self-similarity matrices of ``tokens`` and
    ``originals``. The self-similarity matrix of an image contains the cosine similarity of each pair of tokens of the
    image.
    """
    return (_self_similarity(tokens) - _self_similarity(originals)).square().mean((1, 2))


def _self_similarity(tokens: Tensor) -> Tensor:
    unit = F.normalize(tokens.float(), dim=-1)
    return unit @ unit.mT


def dino_structure(path: str, device: str | torch.device) -> Distance:
    """Load a DINO ViT that computes the structure distance from the attention keys of its last attention block.

    The images are preprocessed as in the training of DINO. Images in [0, 1] are resized to 224 x 224 pixels with
    bicubic interpolation, and normalized with the mean and the standard deviation of ImageNet. The attribute
    ``original`` of the returned :class:`Distance` computes the distance as the code of PIE-Bench does, see
    :func:`pie_bench_input`. The published results of PIE-Bench use the DINO ViT-B/8.

    Args:
        path: a folder or Hugging Face Hub id for transformers' ``ViTModel``, such as ``facebook/dino-vitb8``.

    Raises:
        ValueError: the model cannot be loaded, lacks weights, is not a ``ViTModel`` (DINOv2, for example, is not), or
            has no key projection.
    """
    try:
        network = load_network(
            ViTModel,
            path,
            title="a DINO ViT",
            model_type="vit",
            harmless=("position_ids", "pooler."),
            add_pooling_layer=False,
        )
    except ValueError as error:
        raise ValueError(f"task.dino: {error}") from error
    network = network.eval().requires_grad_(False).to(device)
    keys = _last_keys(network, path)

    def tokens(pixels: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        handle = keys.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            network(pixel_values=pixels, interpolate_pos_encoding=True)
        finally:
            handle.remove()
        return outputs[0]

    def distance(preprocess: Callable[[Tensor], Tensor], images: Tensor, originals: Tensor) -> Tensor:
        return structure_distance(tokens(preprocess(images)), tokens(preprocess(originals)))

    return Distance(
        f"DINO ({path})",
        fingerprint_weights({"dino": network}, {}),
        partial(distance, dino_input),
        partial(distance, pie_bench_input),
    )


def _last_keys(network: nn.Module, path: str) -> nn.Module:
    """Return the key projection (a linear layer) of the last attention block of ``network``."""
    projections = [part for name, part in network.named_modules() if name.rpartition(".")[2] in ("key", "k_proj")]
    if not projections:
        raise ValueError(f"task.dino: the network of {path} has no key projection; set task.dino to a DINO ViT.")
    return projections[-1]


def dino_input(images: Tensor) -> Tensor:
    """Return the input of a DINO ViT: ``images [B,3,H,W]`` in [0, 1], resized to 224 x 224 pixels and normalized."""
    images = F.interpolate(images.float(), (DINO_IMAGE_SIZE, DINO_IMAGE_SIZE), mode="bicubic", antialias=True).clamp(
        0, 1
    )
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    return (images - mean) / std


def pie_bench_input(images: Tensor) -> Tensor:
    """Return the input of a DINO ViT for ``images [B,3,H,W]`` in [0, 1], preprocessed as in the code of PIE-Bench.

    The shorter side is resized to 224 pixels with bilinear interpolation. The code of PIE-Bench does not divide pixel
    values in [0, 255] by 255 before it subtracts the mean and divides by the standard deviation. In the red channel,
    the pixel value 128 becomes (128 - 0.485) / 0.229 = 556.8 instead of 0.074.
    """
    pixels = resize(255 * images.float(), [DINO_IMAGE_SIZE], max_size=MAX_PIE_BENCH_SIDE)
    return normalize(pixels, *map(list, IMAGENET))


def classifier_structure(classifier: Classifier, fingerprint: str) -> Distance:
    """Return the structure distance that is computed from a feature map of the evaluation classifier.

    The feature map is the output of the last stage whose output has at least ``MIN_POSITIONS`` positions. Each position
    of the feature map is a token.
    """

    def tokens(images: Tensor) -> Tensor:
        large_maps = [maps for maps in classifier.feature_maps(images) if maps[0, 0].numel() >= MIN_POSITIONS]
        return large_maps[-1].flatten(2).mT

    return Distance(
        "classifier features",
        fingerprint,
        lambda images, originals: structure_distance(tokens(images), tokens(originals)),
    )


def squeeze_lpips(path: str, device: str | torch.device) -> Distance:
    """Load the LPIPS distance of PIE-Bench, which uses a SqueezeNet 1.1 with ImageNet weights.

    The learned channel weights of LPIPS are part of the package torchmetrics.

    Args:
        path: torchvision's weight file of SqueezeNet 1.1 (``squeezenet1_1-*.pth``), or a safetensors file with the same
            tensors.

    Raises:
        ValueError: the file is missing, or contains the weights of another network.
    """
    network = _LPIPS(net="squeeze", pnet_rand=True, use_dropout=True).eval()
    backbone = network.net
    expected = backbone.state_dict()  # names of weights: slices.K.N.* in torchmetrics, features.N.* in torchvision
    names = {name: f"features.{name.split('.', 2)[2]}" for name in expected}
    try:
        weights = read_weights(path)
    except ValueError as error:
        raise ValueError(f"task.lpips: {error}; set task.lpips to torchvision's squeezenet1_1-*.pth.") from error
    for name, file_name in names.items():
        if file_name not in weights or weights[file_name].shape != expected[name].shape:
            raise ValueError(
                f"task.lpips: {path} does not contain the weights of SqueezeNet 1.1: {file_name} is missing or has "
                "another shape; set task.lpips to torchvision's squeezenet1_1-*.pth."
            )
    backbone.load_state_dict({name: weights[file_name] for name, file_name in names.items()})
    network = network.requires_grad_(False).to(device)
    return Distance(
        f"LPIPS, SqueezeNet ({Path(path).name})",
        fingerprint_weights({"lpips": network}, {}),
        lambda images, originals: network(images.float(), originals.float(), normalize=True).view(-1),
    )


def classifier_perceptual(classifier: Classifier, fingerprint: str) -> Distance:
    """Return the perceptual distance that is computed from features of the classifier (``perceptual_distance``)."""
    return Distance(
        "classifier features, without learned weights",
        fingerprint,
        lambda images, originals: perceptual_distance(classifier, images, originals),
    )
