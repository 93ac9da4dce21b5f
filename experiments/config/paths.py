"""Lookup of the nodes of a config by dotted keys, such as ``task.steps``.

If the value of a key is an interpolation such as ``${select}``, the lookup continues at the key ``select``.
"""

from __future__ import annotations

import re

from omegaconf import DictConfig, ListConfig
from omegaconf.base import Container, Node

INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")


def join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def resolve(root: DictConfig, key: str) -> tuple[str, Node | None]:
    """Return the key under which the value of ``key`` is defined, and the config node; interpolations are followed.

    If ``task.arms.x.select`` is ``${select}``, then ``task.arms.x.select.patience`` resolves to ``select.patience``.
    The returned config node is None if ``key`` does not exist in the config.

    Raises:
        ValueError: an interpolation refers to a key that does not exist.
    """
    path = ""
    node: Node | None = root
    for name in key.split("."):
        if not isinstance(node, Container) or node._is_none() or node._is_missing():
            return join(path, name), None
        path = join(path, name)
        node = child(node, name)
        while node is not None and (reference := _interpolation(node)):
            referring = path
            path, node = resolve(root, reference[1])
            if node is None:
                raise ValueError(
                    f"{referring}: the config has no key {reference[1]} for ${{{reference[1]}}}; write an existing key."
                )
    return path, node


def _interpolation(node: Node) -> re.Match[str] | None:
    value = node._value()
    return INTERPOLATION.fullmatch(value) if isinstance(value, str) else None


def child(node: Container, name: str) -> Node | None:
    """Return the entry ``name`` of a mapping or list, or None if it does not exist. Interpolations are not followed."""
    if isinstance(node, ListConfig):
        return node._get_node(int(name)) if name.isdigit() and int(name) < len(node) else None
    return node._get_node(name) if name in node._content else None


def keys(node: Node | None) -> list[str]:
    """Return the keys of a mapping node or the indices of a list node, as strings.

    For any other node, including an interpolation, the returned list is empty.
    """
    if not isinstance(node, Container) or node._is_none() or node._is_missing() or node._is_interpolation():
        return []
    return [str(name) for name in (range(len(node)) if isinstance(node, ListConfig) else node._content)]
