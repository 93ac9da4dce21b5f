"""Loads pretrained timm classifiers, with class labels and preprocessing, from the Hugging Face Hub or a folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any
from unittest.mock import patch

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from torch import nn

from experiments.imagenet_classes import imagenet_classes
from experiments.naming import normalize_name

INTERPOLATIONS = ("bicubic", "bilinear")
CROP_MODES = ("center", "squash")


@dataclass(frozen=True)
class Preprocessing:
    """Settings with which a classifier resizes, crops and normalizes images.

    Attributes:
        image_size: height and width of the network's input, in pixels.
        mean: mean of each color channel, which is subtracted from images in [0, 1].
        std: standard deviation of each color channel, by which images are divided after the mean is subtracted.
        crop: size of the center crop as a fraction of the size of the resized image. If the fraction is above 1, a
            black border is added. If ``crop`` is None, the full image is resized to the input size, ignoring the aspect
            ratio.
        squash: whether the image is resized to a square before the crop, ignoring the aspect ratio.
        interpolation: interpolation mode for resizing images, ``bicubic`` or ``bilinear``.
    """

    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    crop: float | None = None
    squash: bool = False
    interpolation: str = "bicubic"


def load_timm_network(source: str) -> tuple[nn.Module, str]:
    """Load a pretrained timm network; return the network and the name of its architecture.

    Args:
        source: a folder saved by timm, ``owner/name`` on the Hugging Face Hub, or a timm model name such as
            ``resnet50.a1_in1k``.

    Raises:
        ValueError: timm cannot load the model, the file lacks a weight of the model, or the model is not a classifier.
    """
    is_folder = Path(source).is_dir()
    address = f"local-dir:{source}" if is_folder else f"hf-hub:{source}" if "/" in source else source
    try:
        with _missing_weights() as missing:
            network = timm.create_model(address, pretrained=True)
    except Exception as error:  # the Hugging Face Hub client, json, safetensors and timm raise different errors
        remedy = "save the model again with timm" if is_folder else "download its files and use their folder"
        raise ValueError(
            f"data.classifier: timm cannot load {source} ({shorten(str(error), 300)}); {remedy}."
        ) from None
    if not getattr(network, "num_classes", 0):
        raise ValueError(f"data.classifier: {source} has no class logits; set data.classifier to a classifier.")
    names = missing.get(id(network), [])
    if names:
        raise ValueError(
            f"data.classifier: the weights of {source} do not contain {names[0]} ({len(names)} such weights), so timm "
            "fills them with random numbers; download the weights and config.json again."
        )
    return network, network.pretrained_cfg.get("architecture") or Path(source).name


@contextmanager
def _missing_weights() -> Iterator[dict[int, list[str]]]:
    """Record the names of the weights that each ``load_state_dict`` call in the ``with`` block does not find.

    The yielded dict maps ``id(network)`` to the names. The names are recorded, because timm may log missing weights
    instead of raising an error, for example if the last layer has another number of classes.
    """
    load_state_dict = nn.Module.load_state_dict
    missing: dict[int, list[str]] = {}

    def record(network: nn.Module, *args: Any, **options: Any) -> Any:
        result = load_state_dict(network, *args, **options)
        missing[id(network)] = list(result.missing_keys)
        return result

    with patch.object(nn.Module, "load_state_dict", record):
        yield missing


def class_labels(network: nn.Module, source: str) -> list[str]:
    """Return the class labels of a timm network, one per logit.

    The labels are the label names in the config of the network. If the config has no label names, the labels are the
    names of the ImageNet classes. Classes of ImageNet-1k have the names in
    :func:`experiments.imagenet_classes.imagenet_classes`, also if the network was trained on the 21,841 classes of
    ImageNet-21k.

    Args:
        source: folder or name of the network, for the error message.

    Raises:
        ValueError: the config has no label names, and no variant of ImageNet in timm has as many classes as the
            network.
    """
    config = network.pretrained_cfg
    count = network.num_classes
    classes = imagenet_classes()
    names = _custom_names(config)
    if count == len(classes) and not names:
        return [c.name for c in classes]
    name_by_wnid = {c.wnid: c.name for c in classes}
    if names:
        return deduplicate_labels([name_by_wnid.get(name, _description(config, name)) for name in names], names)
    subset = infer_imagenet_subset(network)
    if subset is None:
        raise ValueError(
            f"data.classifier: {source} has {count} outputs and no label names; add label_names to its config.json."
        )
    info = ImageNetInfo(subset)
    wnids = info.label_names()
    labels = [name_by_wnid.get(w) or info.index_to_description(k).split(", ")[0] for k, w in enumerate(wnids)]
    return deduplicate_labels(labels, wnids)


def _custom_names(config: Mapping[str, Any]) -> list[str]:
    """Return the ``label_names`` of a timm config.

    The list is empty if the config has no label names, or if the label names are the WordNet ids of ImageNet-1k in the
    order of the classes.
    """
    names = [str(name) for name in config.get("label_names") or ()]
    return [] if names == [c.wnid for c in imagenet_classes()] else names


def _description(config: Mapping[str, Any], name: str) -> str:
    return str((config.get("label_descriptions") or {}).get(name, name)).split(", ")[0]


def deduplicate_labels(labels: list[str], ids: list[str]) -> list[str]:
    """Return normalized labels that are unique.

    If several classes have the same label, the id of the class is appended to each label, except for labels of
    ImageNet-1k.
    """
    names = [normalize_name(label) for label in labels]
    imagenet_ids = {c.wnid for c in imagenet_classes()}
    counts = Counter(names)
    return [
        f"{name} ({label_id})" if counts[name] > 1 and label_id not in imagenet_ids else name
        for name, label_id in zip(names, ids, strict=True)
    ]


def timm_preprocessing(network: nn.Module) -> Preprocessing:
    """Return the preprocessing settings with which timm evaluated the network.

    Raises:
        ValueError: the network does not take square color images, or :class:`Preprocessing` does not support a setting
            of timm's config.
    """
    config = resolve_data_config(pretrained_cfg=dict(network.pretrained_cfg), model=network)
    channels, height, width = config["input_size"]
    if height != width or channels != 3:
        raise ValueError(
            f"data.classifier: the input of the network must be square with 3 channels, got {channels} x {height} x "
            f"{width}; set data.classifier to another network."
        )
    for key, supported in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        if config[key] not in supported:
            raise ValueError(
                f"data.classifier: {key} in the network's pretrained_cfg must be {' or '.join(supported)}, got "
                f"{config[key]!r}; set data.classifier to another network."
            )
    if not 0 < config["crop_pct"] < math.inf or not all(0 < value < math.inf for value in config["std"]):
        raise ValueError(
            "data.classifier: crop_pct and std in the network's pretrained_cfg must be positive, got "
            f"{config['crop_pct']} and {list(config['std'])}; correct its config.json."
        )
    return Preprocessing(
        image_size=height,
        mean=list(config["mean"]),
        std=list(config["std"]),
        crop=float(config["crop_pct"]),
        squash=config["crop_mode"] == "squash",
        interpolation=config["interpolation"],
    )


def is_timm_source(source: str | Path) -> bool:
    """Return whether timm can load ``source``: a folder saved by timm, a Hugging Face Hub id, or a timm model name."""
    path = Path(source)
    if not path.is_dir():
        parts = str(source).removeprefix("hf-hub:").split("/")
        if len(parts) == 1:
            return timm.is_model(parts[0].split(".")[0])
        return len(parts) == 2 and all(parts) and not str(source).startswith((".", "/", "~"))
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "pretrained_cfg" in content
