"""Judges that timm publishes or saves: any of its networks, by a hub id or a folder, with the labels that it knows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from torch import nn

from experiments.imagenet_classes import imagenet_classes
from experiments.naming import normalize_name


def load_timm_network(source: str) -> tuple[nn.Module, str]:
    """timm's network with its weights, and what it is called.

    Args:
        source: a folder that timm saved, ``owner/name`` of the hub, or a name of timm's such as ``resnet50.a1_in1k``.

    Raises:
        ValueError: it cannot be had, or is no classifier.
    """
    folder = Path(source).is_dir()
    address = f"local-dir:{source}" if folder else f"hf-hub:{source}" if "/" in source else source
    try:
        network = timm.create_model(address, pretrained=True)
    except Exception as error:  # of the hub, of JSON, of safetensors and of timm
        said = " ".join(str(error).split())
        remedy = "save it again by timm" if folder else "copy its files here and name their folder"
        raise ValueError(f"data.classifier={source} is no model that timm can load ({said}): {remedy}.") from None
    if not getattr(network, "num_classes", 0):
        raise ValueError(f"data.classifier={source} has no labels, only features: name a classifier.")
    return network, network.pretrained_cfg.get("architecture") or Path(source).name


def class_labels(network: nn.Module, source: str) -> list[str]:
    """What the outputs are called, in their order: the file's own names, or ImageNet's classes by index.

    A class of ImageNet-1k is called as everywhere here (:func:`experiments.imagenet_classes.imagenet_classes`), also among the
    21,841 classes of the larger set.
    """
    config, count = network.pretrained_cfg, network.num_classes
    known = imagenet_classes()
    if count == len(known) and not _own_names(config):
        return [c.name for c in known]
    by_wnid = {c.wnid: c.name for c in known}
    if own := _own_names(config):
        return distinct([by_wnid.get(name, _described(config, name)) for name in own], own)
    subset = infer_imagenet_subset(network)
    if subset is None:
        raise ValueError(
            f"data.classifier={source} has {count} outputs and no names for them: put label_names into its config.json."
        )
    info = ImageNetInfo(subset)
    wnids = info.label_names()
    return distinct([by_wnid.get(w) or info.index_to_description(k).split(", ")[0] for k, w in enumerate(wnids)], wnids)


def _own_names(config: Mapping[str, Any]) -> list[str]:
    """The names in a model's config that are not ImageNet-1k's ids in their order, which need no reading."""
    names = [str(name) for name in config.get("label_names") or ()]
    return [] if names == [c.wnid for c in imagenet_classes()] else names


def _described(config: Mapping[str, Any], name: str) -> str:
    return str((config.get("label_descriptions") or {}).get(name, name)).split(", ")[0]


def distinct(labels: list[str], ids: list[str]) -> list[str]:
    """``labels``, those that stand twice made unique by their ids; a class of ImageNet-1k keeps its name."""
    forms, known = [normalize_name(label) for label in labels], {c.wnid for c in imagenet_classes()}
    counts = Counter(forms)
    return [
        f"{form} ({own})" if counts[form] > 1 and own not in known else form
        for form, own in zip(forms, ids, strict=True)
    ]


def preprocessing(network: nn.Module) -> dict[str, Any]:
    """How the network was tested: side, mean, deviation, share of the side that is cut out, and how it is resized."""
    config = resolve_data_config(pretrained_cfg=dict(network.pretrained_cfg), model=network)
    _, height, width = config["input_size"]
    if height != width:
        raise ValueError(f"this classifier takes {height} x {width} pixels: name one that takes squares.")
    return {
        "image_size": height,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "crop": float(config["crop_pct"]),
        "squash": config.get("crop_mode") == "squash",
        "interpolation": "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    }


def is_timm_source(source: str | Path) -> bool:
    """Whether ``source`` is timm's to load: a folder that it saved, an id of the hub, or a name that it knows."""
    path = Path(source)
    if not path.is_dir():
        parts = str(source).removeprefix("hf-hub:").split("/")
        known = len(parts) == 1 and timm.is_model(parts[0].split(".")[0])
        return known or (len(parts) == 2 and all(parts) and not str(source).startswith((".", "/", "~")))
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "pretrained_cfg" in content
