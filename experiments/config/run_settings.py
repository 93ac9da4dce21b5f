"""The settings on which the results of a run depend. Only runs with equal settings may use the same folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from experiments.config.short_keys import SHORT_KEYS

KEYS_WITHOUT_EFFECT_ON_RESULTS = ("trainer", "logger", "run_dir", "plan", *SHORT_KEYS)
"""Top-level config keys that may differ between two runs in the same folder.

The keys may also differ between an interrupted training and the run that resumes the training.
"""

MAX_DIFFERENCES = 5
"""Maximum number of different keys that a message names."""


def run_settings(config: DictConfig) -> dict[str, Any]:
    """Return the settings on which the results of a run depend, without the path of the run's folder."""
    copy = config.copy()
    copy.run_dir = "run_dir"
    try:
        settings = OmegaConf.to_container(copy, resolve=True)
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        # A value is missing. If the task needs the value, the task raises an error later.
        settings = OmegaConf.to_container(copy)
    return {str(name): value for name, value in settings.items() if name not in KEYS_WITHOUT_EFFECT_ON_RESULTS}


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first entry of :func:`differences`, or None if all values are equal."""
    return next(iter(differences(before, now)), None)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the dotted config keys whose values in ``before`` and ``now`` differ, each followed by the two values.

    If a key is missing in ``before`` or ``now``, its value is None.
    """
    old, new = (dict(_leaves(settings, "")) for settings in (before, now))
    keys = [*new, *(key for key in old if key not in new)]
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def describe_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the first differences as text, such as ``task.steps (20, 4), seed (0, 1)``; empty if there are none.

    The folder of the run is ignored.
    """
    different = [entry for entry in differences(before, now) if entry[0].rpartition(".")[2] != "run_dir"]
    text = ", ".join(f"{key} ({old}, {new})" for key, old, new in different[:MAX_DIFFERENCES])
    return f"{text}, and {len(different) - MAX_DIFFERENCES} more" if len(different) > MAX_DIFFERENCES else text


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each entry of nested mappings. A list is a value, not a mapping."""
    if isinstance(value, Mapping) and (value or not key):
        for name, entry in value.items():
            yield from _leaves(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
