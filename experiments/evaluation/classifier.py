"""The judge: a timm network, ours or timm's own, which names concepts and supplies the features of FID and KID."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import timm
import torch
from annotated_types import Len
from pydantic import Field, PositiveFloat, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import rnri.validation
from experiments.cache.atomic import atomic_write
from experiments.evaluation.timm_classifiers import is_timm_source, class_labels, load_timm_network, preprocessing
from experiments.naming import unique_names
from rnri.validation import NonEmptyStr

CONFIG, WEIGHTS = "config.json", "model.safetensors"
REMEDY = "point data.classifier at a folder made by `python train.py experiment=pretrain_classifier`"


class Classifier(nn.Module):
    """A timm network with its labels and its preprocessing; images are ``[B, 3, H, W]`` in [0, 1] of any size.

    ``labels`` are kept in canonical form (:func:`experiments.naming.canonical`), in the order of the logits.

    Args:
        image_size: side that the network takes.
        mean, std: of each channel.
        crop: share of the resized image's side that is cut from its center; None shows the image whole, squeezed.
        squash: squeeze the image to a square before it is cut, instead of keeping its proportions.
        interpolation: ``bicubic`` or ``bilinear``.
        title: what it is called in tables.

    Raises:
        ValueError: a label stands twice or is empty, or there are not as many as the network has outputs.
    """

    def __init__(
        self,
        network: nn.Module,
        labels: Sequence[str],
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        crop: float | None = None,
        squash: bool = False,
        interpolation: str = "bicubic",
        title: str = "judge",
    ) -> None:
        super().__init__()
        self.network = network
        self.crop, self.squash, self.interpolation, self.title = crop, squash, interpolation, title
        self.labels = list(unique_names(labels, "the list of labels", "give each class a label of its own"))
        if len(self.labels) != network.num_classes:
            raise ValueError(f"{len(self.labels)} labels for a network of {network.num_classes} outputs: give as many.")
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)

    @property
    def num_features(self) -> int:
        return getattr(self.network, "head_hidden_size", None) or self.network.num_features

    def _resized(self, shape: torch.Size) -> tuple[int, int]:
        """``(H, W)`` that an image is resized to before its center is cut out."""
        side = self.image_size if self.crop is None else math.floor(self.image_size / self.crop)
        if self.crop is None or self.squash:
            return side, side
        height, width = shape[-2:]
        scale = side / min(height, width)
        return max(side, round(scale * height)), max(side, round(scale * width))

    def _prepare(self, images: Tensor) -> Tensor:
        size = self._resized(images.shape)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode=self.interpolation, antialias=True).clamp(0, 1)
        top, left = ((side - self.image_size) // 2 for side in size)
        images = images[..., top : top + self.image_size, left : left + self.image_size]
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, labels]``."""
        return self.network(self._prepare(images))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features ``[B, num_features]`` and logits ``[B, labels]`` from one pass."""
        maps = self.network.forward_features(self._prepare(images))
        return self.network.forward_head(maps, pre_logits=True), self.network.forward_head(maps)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The outputs ``[B, C, h, w]`` of the network's stages."""
        return self.network.forward_intermediates(self._prepare(images), intermediates_only=True)

    def save(self, folder: str | Path, architecture: str) -> None:
        """Weights in half precision, and what it takes to build the network again. ValueError if some are not finite.

        A weight beyond half precision's range stays as it is.
        """
        state = self.network.state_dict()
        _check_finite(state, "this classifier")
        half = {name: v.half() if v.is_floating_point() else v for name, v in state.items()}
        kept = {name: (v if v.isfinite().all() else state[name]).contiguous() for name, v in half.items()}
        config = {
            "architecture": architecture,
            "image_size": self.image_size,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "labels": self.labels,
        }
        atomic_write(Path(folder) / WEIGHTS, lambda path: save_file(kept, path))
        atomic_write(Path(folder) / CONFIG, lambda path: path.write_text(json.dumps(config, indent=1) + "\n"))


@rnri.validation.dataclass(frozen=True)
class Description:
    """What ``config.json`` of a judge holds."""

    architecture: NonEmptyStr
    image_size: PositiveInt
    mean: Annotated[Sequence[float], Len(3, 3), Field(description="a list of three numbers")]
    std: Annotated[Sequence[PositiveFloat], Len(3, 3), Field(description="a list of three numbers above 0")]
    labels: Annotated[Sequence[NonEmptyStr], Len(1), Field(description="a list of names")]


def load_classifier(source: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """A classifier in evaluation mode and single precision.

    Args:
        source: a folder that :meth:`Classifier.save` made, one that timm saved, an id of the hub (``timm/NAME``), or a
            name of timm's. The last two are downloaded where they are not in the hub's cache.

    Raises:
        ValueError: a file is missing, damaged or of another kind, a label stands twice, or the weights are not those
            of the network that the labels and the architecture make.
    """
    if is_timm_source(source):
        network, title = load_timm_network(str(source))
        _check_finite(network.state_dict(), source)
        labels = class_labels(network, str(source))
        classifier = Classifier(network.float(), labels, title=title, **preprocessing(network))
        return _ready(classifier, device)
    folder = Path(source)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: {REMEDY}.")
    description = _read_description(folder / CONFIG)
    unique_names(description.labels, f"{folder / CONFIG} in its labels", "give each class a label of its own")
    network = timm.create_model(description.architecture, num_classes=len(description.labels))
    state = _read_weights(folder / WEIGHTS)
    _check_fit(folder, state, network.state_dict(), description)
    network.load_state_dict(state)
    classifier = Classifier(
        network, description.labels, description.image_size, description.mean, description.std,
        title=description.architecture,
    )  # fmt: skip
    return _ready(classifier, device)


def _ready(classifier: Classifier, device: str | torch.device) -> Classifier:
    classifier.network.to(memory_format=torch.channels_last)  # CPUs take half the time for depthwise convolutions
    return classifier.eval().requires_grad_(False).to(device)


def _read_description(path: Path) -> Description:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {REMEDY}.") from None
    fields = [field.name for field in dataclasses.fields(Description)]
    missing = [name for name in fields if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{path} is no judge's, for it lacks {', '.join(missing)}: {REMEDY}.")
    try:
        description = Description(**{name: content[name] for name in fields})
    except ValueError as error:
        raise ValueError(f"{path} holds {error}") from None
    if not timm.is_model(description.architecture):
        raise ValueError(
            f"{path} names the architecture {description.architecture!r}, which timm {timm.__version__} does not know: "
            f"update timm, or {REMEDY}."
        )
    return description


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {REMEDY}.") from None
    _check_finite(state, path)
    return {name: v.float() if v.is_floating_point() else v for name, v in state.items()}


def _check_finite(state: Mapping[str, Tensor], owner: object) -> None:
    bad = next((name for name, tensor in state.items() if not tensor.isfinite().all()), None)
    if bad is not None:
        raise ValueError(f"{owner} has weights that are not finite, in {bad}: its training has failed, train it again.")


def _check_fit(
    folder: Path, state: Mapping[str, Tensor], needed: Mapping[str, Tensor], description: Description
) -> None:
    """The first difference between the weights of a file and those of the network, as a sentence."""
    wrong = [name for name in needed if name not in state or state[name].shape != needed[name].shape]
    wrong += [name for name in state if name not in needed]
    if wrong:
        own, right = (
            f"has it of shape {list(tensors[wrong[0]].shape)}" if wrong[0] in tensors else "has none"
            for tensors in (state, needed)
        )
        raise ValueError(
            f"{folder / WEIGHTS} is not of the network in {CONFIG}: of {wrong[0]} the file {own}, and "
            f"{description.architecture} with {len(description.labels)} labels {right}; both files must be of one "
            "training."
        )
