"""Keys as one types them: where a config refers to another place, that place's."""

from __future__ import annotations

import re

from omegaconf import DictConfig, ListConfig
from omegaconf.base import Container, Node

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def locate(root: DictConfig, key: str) -> tuple[str, Node | None]:
    """The key that decides the value of ``key``, and its node: of ``task.arms.x.select.patience``, where
    ``task.arms.x.select`` is ``${select}``, ``select.patience``. None where there is nothing.

    Raises:
        ValueError: a reference to nothing.
    """
    place, node = "", root
    for name in key.split("."):
        if not isinstance(node, Container) or node._is_none() or node._is_missing():
            return join(place, name), None
        place, node = join(place, name), child(node, name)
        while node is not None and (reference := REFERENCE.fullmatch(str(node._value()))):
            referring, (place, node) = place, locate(root, reference[1])
            if node is None:
                raise ValueError(f"{referring} is taken from {reference[1]}, which these configs do not have.")
    return place, node


def child(node: Container, name: str) -> Node | None:
    """An entry of a mapping or list, references left as they are; None where there is none."""
    if isinstance(node, ListConfig):
        return node._get_node(int(name)) if name.isdigit() and int(name) < len(node) else None
    return node._get_node(name) if name in node._content else None


def names(node: Container) -> list[str]:
    """The entries of a mapping or list."""
    return [str(name) for name in (range(len(node)) if isinstance(node, ListConfig) else node._content)]
