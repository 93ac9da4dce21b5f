"""The 1,000 classes of ImageNet-1k: class indices, WordNet ids, unique names and synonyms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class ImageNetClass:
    """A class of ImageNet-1k.

    Attributes:
        index: class index, 0 to 999.
        wnid: WordNet id, such as ``n02012849``.
        name: unique name of the class.
        synonyms: all names of the class in WordNet, beginning with the usual name. Two classes may have the same usual
            name.
    """

    index: int
    wnid: str
    name: str
    synonyms: tuple[str, ...]


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Return the 1,000 classes of ImageNet-1k in the order of their class indices, with the names listed in ``timm``.

    If two classes have the same name, the WordNet id is appended to both names, as in ``crane (n02012849)``.
    """
    from timm.data import ImageNetInfo  # imported here, because importing timm imports torch, which takes seconds

    info = ImageNetInfo("imagenet-1k")
    synonyms = [tuple(info.index_to_description(k).split(", ")) for k in range(info.num_classes())]
    first_names = Counter(names[0] for names in synonyms)
    wnids = info.label_names()
    return tuple(
        ImageNetClass(k, wnid, names[0] if first_names[names[0]] == 1 else f"{names[0]} ({wnid})", names)
        for k, (wnid, names) in enumerate(zip(wnids, synonyms, strict=True))
    )
