"""Evaluation classifier: a timm network with labels.

The predicted label shows whether a generated image shows the intended concept. The features of the classifier are used
for FID and KID.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import timm
import torch
from annotated_types import Len
from pydantic import PositiveFloat, PositiveInt
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import center_crop

import rnri.validation
from experiments.cache.atomic import atomic_write
from experiments.evaluation.timm_classifiers import (
    Preprocessing,
    class_labels,
    is_timm_source,
    load_timm_network,
    timm_preprocessing,
)
from experiments.finite import NonFiniteError, is_finite
from experiments.naming import unique_names
from rnri.loading import check_finite, read_weights
from rnri.validation import NonEmptyStr, first_line

if TYPE_CHECKING:
    from experiments.evaluation.inception import Inception

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
REMEDY = "set data.classifier to a folder created by `python train.py experiment=pretrain_classifier`"
"""Last part of the error messages about a folder without a valid classifier."""


class Classifier(nn.Module):
    """A timm network with class labels and preprocessing, for images ``[B, 3, H, W]`` in [0, 1] of any size.

    Attributes:
        labels: class names, one per logit of the network, normalized by :func:`experiments.naming.normalize_name`.

    Args:
        network: a timm model.
        labels: class names, one per logit of the network.
        preprocessing: settings for resizing, cropping and normalizing images.
        title: name of the classifier in the results tables.

    Raises:
        ValueError: a label is empty, two labels are equal, or the number of labels differs from the number of logits.
    """

    mean: Tensor  # [1,3,1,1]
    std: Tensor  # [1,3,1,1]

    def __init__(
        self, network: nn.Module, labels: Sequence[str], preprocessing: Preprocessing, *, title: str = "classifier"
    ) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.title = title
        self.labels = list(unique_names(labels, "the list of labels", "assign a different label to each class"))
        if len(self.labels) != network.num_classes:
            raise ValueError(
                f"got {len(self.labels)} labels for a network with {network.num_classes} outputs: pass one label per "
                "output."
            )
        self.register_buffer("mean", torch.tensor(list(preprocessing.mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(preprocessing.std)).view(1, 3, 1, 1), persistent=False)

    @property
    def image_size(self) -> int:
        """Height and width of the network's input, in pixels."""
        return self.preprocessing.image_size

    @property
    def num_features(self) -> int:
        return getattr(self.network, "head_hidden_size", None) or self.network.num_features

    def _resized_shape(self, shape: torch.Size) -> tuple[int, int]:
        """Return the height and the width in pixels to which an image is resized before the center crop."""
        crop = self.preprocessing.crop
        side = self.image_size if crop is None else math.floor(self.image_size / crop)
        if crop is None or self.preprocessing.squash:
            return side, side
        height, width = shape[-2:]
        short = min(height, width)
        return side * height // short, side * width // short

    def _preprocess(self, images: Tensor) -> Tensor:
        height, width = self._resized_shape(images.shape)
        for size in ((images.shape[-2], width), (height, width)):  # clamp after each direction, as Pillow does
            if images.shape[-2:] != size:
                images = F.interpolate(images, size, mode=self.preprocessing.interpolation, antialias=True).clamp(0, 1)
        images = center_crop(images, [self.image_size, self.image_size])  # adds a black border to smaller images
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[B, number of labels]`` of images ``[B, 3, H, W]`` in [0, 1]."""
        return self.network(self._preprocess(images))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (inputs of the last linear layer) and logits of images ``[B, 3, H, W]`` in [0, 1].

        Returns:
            Features ``[B, num_features]`` and logits ``[B, number of labels]`` of the same forward pass.
        """
        maps = self.network.forward_features(self._preprocess(images))
        return self.network.forward_head(maps, pre_logits=True), self.network.forward_head(maps)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps ``[B, C, h, w]`` at the end of each stage of the network."""
        return self.network.forward_intermediates(self._preprocess(images), intermediates_only=True)

    def save(self, folder: str | Path, architecture: str) -> None:
        """Write the weights in float16 and the config file of the classifier to ``folder``.

        A weight tensor with values outside the range of float16 is saved in its original dtype.
        :func:`load_classifier` loads the classifier from ``folder``.

        Args:
            architecture: name of the timm model.

        Raises:
            ValueError: a weight is NaN or infinite.
        """
        state = self.network.state_dict()
        _check_finite(state, "this classifier")
        config = {
            "architecture": architecture,
            "image_size": self.image_size,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "labels": self.labels,
        }
        compact = {name: _to_half(tensor).contiguous() for name, tensor in state.items()}
        atomic_write(Path(folder) / WEIGHTS, lambda path: path.write_bytes(save(compact)))
        atomic_write(Path(folder) / CONFIG, lambda path: path.write_text(json.dumps(config, indent=1) + "\n"))


def _to_half(tensor: Tensor) -> Tensor:
    """Convert a floating-point tensor to float16, unless a value would overflow.

    An integer tensor is returned unchanged.
    """
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if half.isfinite().all() else tensor


@rnri.validation.dataclass(frozen=True)
class ClassifierConfig:
    """Content of the file ``config.json`` in the folder of a classifier.

    Attributes:
        architecture: name of the timm model.
        image_size: height and width of the network's input, in pixels.
        mean: mean of each color channel, which is subtracted from images in [0, 1].
        std: standard deviation of each color channel, by which images are divided after the mean is subtracted.
        labels: class names, one per logit of the network.
    """

    architecture: NonEmptyStr
    image_size: PositiveInt
    mean: Annotated[Sequence[float], Len(3, 3)]
    std: Annotated[Sequence[PositiveFloat], Len(3, 3)]
    labels: Annotated[Sequence[NonEmptyStr], Len(1)]


def load_classifier(source: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """Load a classifier in float32, in evaluation mode and with frozen weights.

    Args:
        source: a folder written by :meth:`Classifier.save` or by timm, a Hugging Face Hub id (``timm/NAME``), or a timm
            model name. A model with a Hub id or a timm name is downloaded unless it is in the cache.

    Raises:
        ValueError: a file is missing or damaged, the source is not a classifier, two labels are equal, or the weights
            do not fit the architecture and the number of labels.
    """
    if is_timm_source(source):
        network, title = load_timm_network(str(source))
        _check_finite(network.state_dict(), source)
        labels = class_labels(network, str(source))
        return _for_inference(Classifier(network.float(), labels, timm_preprocessing(network), title=title), device)
    folder = Path(source)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: {REMEDY}.")
    config = _read_config(folder / CONFIG)
    unique_names(config.labels, f"{folder / CONFIG} in its labels", "assign a different label to each class")
    network = timm.create_model(config.architecture, num_classes=len(config.labels))
    state = _read_weights(folder / WEIGHTS)
    _check_fit(folder, state, network.state_dict(), config)
    network.load_state_dict(state)
    preprocessing = Preprocessing(config.image_size, config.mean, config.std)
    return _for_inference(Classifier(network, config.labels, preprocessing, title=config.architecture), device)


def classify_images(
    classifier: Classifier, images: Iterable[Tensor], batch_size: int = 128, extractor: Inception | None = None
) -> tuple[Tensor, list[str]]:
    """Return features ``float64 [N, D]`` and predicted labels of N images ``uint8 [3, H, W]``.

    The images are processed in batches of ``batch_size``. ``classifier`` predicts the labels. ``extractor`` computes
    the features; if ``extractor`` is None, ``classifier`` computes the features, too (D is the number of features).

    Raises:
        NonFiniteError: an output of the classifier is NaN or infinite.
    """
    device = classifier.mean.device
    all_features: list[Tensor] = []
    labels: list[str] = []
    remaining = iter(images)
    with torch.no_grad():
        while batch := list(islice(remaining, batch_size)):
            pixels = torch.stack(batch).to(device)
            features, logits = classifier.features_and_logits(pixels.float() / 255)
            if extractor is not None:
                features = extractor(pixels)
            if not is_finite(logits).all():
                raise NonFiniteError(
                    "the outputs of the evaluation classifier are NaN or infinite, because its weights are damaged: "
                    "set data.classifier to another classifier."
                )
            all_features.append(features.cpu().double())
            labels += [classifier.labels[k] for k in logits.argmax(-1).tolist()]
    width = (extractor or classifier).num_features
    return torch.cat(all_features) if all_features else torch.empty(0, width, dtype=torch.float64), labels


def _for_inference(classifier: Classifier, device: str | torch.device) -> Classifier:
    classifier.network.to(memory_format=torch.channels_last)  # halves the time of depthwise convolutions on CPUs
    return classifier.eval().requires_grad_(False).to(device)


def _read_config(path: Path) -> ClassifierConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}): {REMEDY}.") from None
    fields = [field.name for field in dataclasses.fields(ClassifierConfig)]
    missing = [name for name in fields if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{path} is not a classifier config: missing {', '.join(missing)}; {REMEDY}.")
    try:
        config = ClassifierConfig(**{name: content[name] for name in fields})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not timm.is_model(config.architecture):
        raise ValueError(
            f"{path}: architecture {config.architecture!r} is unknown to timm {timm.__version__}; update timm, or "
            f"{REMEDY}."
        )
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        state = read_weights(path)
    except ValueError as error:
        raise ValueError(f"{error}: {REMEDY}.") from None
    return {name: v.float() if v.is_floating_point() else v for name, v in state.items()}


def _check_finite(state: Mapping[str, Tensor], owner: object) -> None:
    check_finite(f"{owner} has weights that", state, "the training diverged, train the classifier again")


def _check_fit(
    folder: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], config: ClassifierConfig
) -> None:
    """Raise ValueError if the names or shapes of the weights in a file differ from those of the network.

    Args:
        folder: folder of the classifier.
        state: weights that were read from the file.
        expected: weights of the network that is built from ``config``.
    """
    differing = [name for name in expected if name not in state or state[name].shape != expected[name].shape]
    differing += [name for name in state if name not in expected]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {CONFIG}: {name} is {_shape_of(state, name)} in the file and "
            f"{_shape_of(expected, name)} in {config.architecture} with {len(config.labels)} labels; use two files "
            "that were saved together."
        )


def _shape_of(state: Mapping[str, Tensor], name: str) -> str:
    return f"of shape {list(state[name].shape)}" if name in state else "missing"
