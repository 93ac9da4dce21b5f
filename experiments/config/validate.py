"""Every value of a config is held against the signature of what its ``_target_`` names, before anything is made."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.base import Container, Node
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from experiments.config.paths import join, locate, names
from rnri.validation import STRICT, NonEmptyStr, RandomSeed, describe

MADE = ("trainer", "logger", "task")
"""The parts of a config that objects are made of."""
OWN = {"name": NonEmptyStr, "seed": RandomSeed, "run_dir": NonEmptyStr, "plan": bool | Literal["counts"]}
"""What is used as it stands."""
HYDRAS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def check(config: DictConfig) -> None:
    """Finds keys without a value, keys that nothing takes, and values of a wrong type or range.

    Raises:
        ValueError: one sentence with the key as one types it, and what it may be.
    """
    missing = list(dict.fromkeys(key for part in (*OWN, *MADE) for key in _missing(config, part)))
    if missing:
        one = len(missing) == 1
        raise ValueError(f"{' and '.join(missing)} {'has' if one else 'have'} no value: give {missing[0]}=...")
    for name, hint in OWN.items():
        _check_value(name, OmegaConf.select(config, name), hint)
    for part in MADE:
        _check_node(config, part)
    for part in ("trainer", "task"):
        if "_target_" not in _entries(locate(config, part)[1]):
            raise ValueError(f"{part}._target_ has no value: choose an experiment that says what {part} is.")


def _missing(root: DictConfig, key: str) -> list[str]:
    """The keys at or below ``key`` that still have to be given."""
    place, node = locate(root, key)
    if node is None or node._is_none():
        return []
    if node._is_missing():
        return [place]
    return [found for name in _entries(node) for found in _missing(root, join(place, name))]


def _entries(node: Node | None) -> list[str]:
    return names(node) if isinstance(node, Container) and not node._is_none() and not node._is_interpolation() else []


def _check_node(root: DictConfig, key: str) -> None:
    place, node = locate(root, key)
    if isinstance(node, DictConfig) and "_target_" in _entries(node):
        _check_target(root, place, node)
    for name in _entries(node):
        if name not in HYDRAS:
            _check_node(root, join(place, name))


def _check_target(root: DictConfig, key: str, node: DictConfig) -> None:
    target = _target(join(key, "_target_"), node._target_)
    hints, parameters = parameter_hints(target), _parameters(target)
    if parameters is None:
        return
    given = [name for name in _entries(node) if name not in HYDRAS]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name in given:
        if name not in known and not takes_any:
            raise ValueError(_unknown(join(key, name), list(known), target))
    lacking = [name for name, p in known.items() if p.default is p.empty and name not in given]
    if lacking and not node.get("_partial_", False) and "_args_" not in node:
        raise ValueError(f"{join(key, lacking[0])} has no value: {node._target_} needs it.")
    for name in given:
        place, value = locate(root, join(key, name))
        if name in hints and not _makes_objects(root, place):
            plain = _plain(place, value)
            if name not in known or known[name].default is inspect.Parameter.empty or plain != known[name].default:
                _check_value(place, plain, hints[name])


def _target(key: str, name: Any) -> Callable[..., Any]:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{key}={name} cannot be imported: {_first_line(error)}.") from error


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """Those of the signature; None where it cannot be seen, as of some written in C."""
    try:
        return inspect.signature(target).parameters
    except ValueError:
        return None


def _makes_objects(root: DictConfig, key: str) -> bool:
    """Whether an object is made of ``key`` or of something below it, which checks what it is given itself."""
    place, node = locate(root, key)
    return "_target_" in _entries(node) or any(_makes_objects(root, join(place, name)) for name in _entries(node))


def _plain(key: str, node: Node) -> Any:
    """The value of a node, without OmegaConf's containers and references."""
    try:
        if isinstance(node, DictConfig | ListConfig):
            return OmegaConf.to_container(node, resolve=True)
        found = node._dereference_node() if node._is_interpolation() else node
        return found._value()
    except OmegaConfBaseException as error:
        raise ValueError(f"{key}={node._value()} cannot be resolved: {_first_line(error)}") from error


def _check_value(key: str, value: Any, hint: Any) -> None:
    error = _validation_error(hint, value)
    if error is not None:
        raise ValueError(f"{key}: {describe(error)}")


def _validation_error(hint: Any, value: Any) -> ValidationError | None:
    """Pydantic's error for a YAML or command-line value, or None if it matches ``hint`` or cannot be checked."""
    text = json.dumps(value, default=str)
    try:
        adapter = TypeAdapter(hint, config=STRICT)
    except PydanticSchemaGenerationError:
        return None
    except PydanticUserError:  # the hint is a class with a configuration of its own
        adapter = TypeAdapter(hint)
    try:
        adapter.validate_json(text, strict=True)  # strict JSON accepts a list for a tuple, but no str for a number
    except ValidationError as error:
        return error
    return None


def parameter_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Resolvable type hints of a callable's parameters, by name; of a dataclass, those of its fields."""
    if dataclasses.is_dataclass(target):
        return typing.get_type_hints(target, include_extras=True)
    function = target.__init__ if inspect.isclass(target) else inspect.unwrap(getattr(target, "__func__", target))
    function = inspect.unwrap(function)
    namespace = vars(sys.modules.get(getattr(function, "__module__", None) or "", types))
    hints = {}
    for name, hint in getattr(function, "__annotations__", {}).items():
        single = types.SimpleNamespace(__annotations__={name: hint})
        try:  # one by one: some libraries use types that they import under TYPE_CHECKING only
            hints |= typing.get_type_hints(single, namespace, include_extras=True)
        except (NameError, TypeError, AttributeError):
            continue
    hints.pop("return", None)
    return hints


def _unknown(key: str, known: list[str], target: Callable[..., Any]) -> str:
    near = get_close_matches(key.rpartition(".")[2], known, n=3, cutoff=0.5)
    choice = f"nearest: {', '.join(near)}" if near else f"choose from {', '.join(known)}"
    return f"{key} is no setting of {getattr(target, '__qualname__', target)}; {choice}."


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
