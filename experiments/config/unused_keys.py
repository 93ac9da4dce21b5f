"""Detection of command-line values that the experiment does not read, such as ``data.concepts`` of an inversion.

An experiment reads the values of ``task``, ``trainer`` and ``logger``, and the values to which these values refer by
interpolations such as ``${data.folder}``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from omegaconf.base import Container, Node

from experiments.config.errors import ConfigErrors, nearest
from experiments.config.paths import child, join, keys
from experiments.config.short_keys import SHORT_KEYS
from experiments.config.validate import INSTANTIATED, TOP_LEVEL_TYPES

REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
"""An interpolation that names a config key, possibly inside of a longer string."""


def check_for_unused_keys(config: DictConfig) -> None:
    """Check that the experiment reads every value of the command line.

    Raises:
        ConfigErrors: the experiment does not read a value; the message has one line per key.
    """
    hydra = HydraConfig.get()
    errors = unused_key_errors(config, hydra.overrides.task, hydra.runtime.choices)
    if errors:
        raise ConfigErrors("\n".join(errors))


def unused_key_errors(config: DictConfig, overrides: Sequence[str], groups: Collection[str]) -> list[str]:
    """Return one error message for each key of ``overrides`` that the experiment does not read.

    Args:
        config: the composed config, with interpolations.
        overrides: command-line arguments such as ``data.concepts=6``.
        groups: names of the config groups, such as ``model``; the choice of a group is never an error.
    """
    read = read_keys(config)
    errors = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if override.is_delete() or override.package is not None or key in groups or key.startswith("hydra."):
            continue
        if key not in read:
            errors.append(f"{key}: the experiment {config.get('name')} does not read this key; {_remedy(config, key)}.")
    return errors


def read_keys(config: DictConfig) -> set[str]:
    """Return the keys of ``config`` whose values the experiment reads."""
    reader = _Reader(config)
    for part in INSTANTIATED:
        reader.read(part)
    return {*SHORT_KEYS, *TOP_LEVEL_TYPES, *reader.keys}


def _remedy(config: DictConfig, key: str) -> str:
    name = key.rpartition(".")[2]
    if f"task.{name}" != key and name in keys(child(config, "task")):
        return f"set task.{name} instead"
    if "." not in key:
        return nearest(key, [*SHORT_KEYS, *(str(name) for name in config if name not in (key, *SHORT_KEYS))])
    return f"remove {key}"


class _Reader:
    """Collects the keys of a config that are read, as one reads the values of some keys and follows interpolations.

    Attributes:
        keys: the keys that are read, and the mappings that contain them.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.keys: set[str] = set()
        self._visited: set[str] = set()

    def read(self, key: str) -> None:
        """Add ``key``, the keys below ``key``, and the keys to which their values refer."""
        if key in self._visited:
            return
        self._visited.add(key)
        node: Node | None = self.config
        path = ""
        for name in key.split("."):
            path = join(path, name)
            node = child(node, name) if isinstance(node, Container) and keys(node) else None
            if node is None:
                return
            self.keys.add(path)
            value = node._value()
            for reference in REFERENCE.findall(value) if isinstance(value, str) else []:
                self.read(reference + key[len(path) :])
        for name in keys(node):
            self.read(join(key, name))
