"""Classifiers published or saved by timm: any timm network, from the Hugging Face Hub or a folder, with its labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from torch import nn

from experiments.imagenet_classes import imagenet_classes
from experiments.naming import normalize_name
from rnri.validation import first_line


@dataclass(frozen=True)
class Preprocessing:
    """How a classifier resizes, crops and normalizes images.

    Attributes:
        image_size: side of the network's input, in pixels.
        mean, std: per channel.
        crop: side of the center crop as a fraction of the resized image's side; None squeezes the full image to the
            input size.
        squash: squeeze the image to a square before the crop, instead of keeping its aspect ratio.
        interpolation: ``bicubic`` or ``bilinear``.
    """

    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    crop: float | None = None
    squash: bool = False
    interpolation: str = "bicubic"


def load_timm_network(source: str) -> tuple[nn.Module, str]:
    """timm's pretrained network, and its architecture's name.

    Args:
        source: a folder saved by timm, ``owner/name`` on the Hugging Face Hub, or a timm model name such as
            ``resnet50.a1_in1k``.

    Raises:
        ValueError: the model cannot be loaded, or is not a classifier.
    """
    is_folder = Path(source).is_dir()
    address = f"local-dir:{source}" if is_folder else f"hf-hub:{source}" if "/" in source else source
    try:
        network = timm.create_model(address, pretrained=True)
    except Exception as error:  # raised by the hub client, json, safetensors or timm
        remedy = "save it again with timm" if is_folder else "download its files and give their folder"
        raise ValueError(f"data.classifier: timm cannot load {source} ({first_line(error)}); {remedy}.") from None
    if not getattr(network, "num_classes", 0):
        raise ValueError(f"data.classifier: {source} has no labels, only features; use a classifier.")
    return network, network.pretrained_cfg.get("architecture") or Path(source).name


def class_labels(network: nn.Module, source: str) -> list[str]:
    """Labels of the network's outputs: the names in its config, or ImageNet's classes by index.

    The 1,000 classes of ImageNet-1k always have their names of
    :func:`experiments.imagenet_classes.imagenet_classes`, also among the 21,841 classes of ImageNet-21k.
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
    """``label_names`` of a timm config; empty if they are absent or just the ImageNet-1k ids in order."""
    names = [str(name) for name in config.get("label_names") or ()]
    return [] if names == [c.wnid for c in imagenet_classes()] else names


def _description(config: Mapping[str, Any], name: str) -> str:
    return str((config.get("label_descriptions") or {}).get(name, name)).split(", ")[0]


def deduplicate_labels(labels: list[str], ids: list[str]) -> list[str]:
    """``labels`` in canonical form, with the id appended to duplicates; ImageNet-1k classes keep their names."""
    forms = [normalize_name(label) for label in labels]
    imagenet_ids = {c.wnid for c in imagenet_classes()}
    counts = Counter(forms)
    return [
        f"{form} ({label_id})" if counts[form] > 1 and label_id not in imagenet_ids else form
        for form, label_id in zip(forms, ids, strict=True)
    ]


def timm_preprocessing(network: nn.Module) -> Preprocessing:
    """The preprocessing with which timm evaluated the network."""
    config = resolve_data_config(pretrained_cfg=dict(network.pretrained_cfg), model=network)
    _, height, width = config["input_size"]
    if height != width:
        raise ValueError(f"data.classifier: input must be square, got {height} x {width} pixels.")
    return Preprocessing(
        image_size=height,
        mean=list(config["mean"]),
        std=list(config["std"]),
        crop=float(config["crop_pct"]),
        squash=config.get("crop_mode") == "squash",
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )


def is_timm_source(source: str | Path) -> bool:
    """Whether timm loads ``source``: a folder saved by timm, a Hugging Face Hub id, or a timm model name."""
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
