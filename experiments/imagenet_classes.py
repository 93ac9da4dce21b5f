"""The classes of ImageNet-1k, as counts, data and evaluation name them. It imports nothing of this project."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class ImageNetClass:
    """A class of ImageNet-1k: its index, WordNet id, unique name and the synonyms of its synset."""

    index: int
    wnid: str
    name: str
    synonyms: tuple[str, ...]


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The 1,000 classes of ImageNet-1k in the order of their indices, as ``timm`` describes them.

    A name that two classes share (crane, maillot) is made unique by the WordNet id: ``crane (n02012849)``.
    """
    from timm.data import ImageNetInfo  # takes seconds, because it imports torch

    info = ImageNetInfo("imagenet-1k")
    synonyms = [tuple(info.index_to_description(k).split(", ")) for k in range(info.num_classes())]
    first_names = Counter(names[0] for names in synonyms)
    wnids = info.label_names()
    return tuple(
        ImageNetClass(k, wnid, names[0] if first_names[names[0]] == 1 else f"{names[0]} ({wnid})", names)
        for k, (wnid, names) in enumerate(zip(wnids, synonyms, strict=True))
    )
