"""Validation of a config before its objects are instantiated.

Keys and values are compared with the signatures of the classes and functions to which the config refers by
``_target_``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.base import Container, Node
from omegaconf.errors import OmegaConfBaseException
from pydantic import PositiveInt, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from experiments.config.errors import ConfigErrors, nearest, one_line
from experiments.config.paths import join, keys, resolve
from experiments.config.signatures import MISSING, Signature, imported_signature, source_signature
from experiments.config.trainer_options import option_errors
from rnri.validation import STRICT, NonEmptyStr, RandomSeed, describe

INSTANTIATED = ("trainer", "logger", "task")
"""Top-level config keys whose values describe objects, which Hydra instantiates."""
TOP_LEVEL_TYPES = {"name": NonEmptyStr, "seed": RandomSeed, "run_dir": NonEmptyStr, "plan": bool | Literal["counts"]}
"""Types of the top-level config values that are not arguments of a class or function."""
HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def interpolation_error(config: DictConfig) -> str | None:
    """Return an error message if the value of a key depends on the key itself through interpolations, else None.

    If several keys depend on themselves, the message names the key with the fewest dots.
    """
    return min(_cycles(config), key=lambda message: message.partition(":")[0].count("."), default=None)


def _cycles(node: Container) -> Iterator[str]:
    for name in node._content if isinstance(node, DictConfig) else range(len(node)):
        value = node._get_node(name)
        if value._is_interpolation():
            try:
                OmegaConf.to_container(OmegaConf.create({"value": _plain_value(value._dereference_node())}))
            except RecursionError:
                yield _refers_to_itself(value)
            except OmegaConfBaseException as error:
                if "recursi" in str(error).lower() or "parent node" in str(error):
                    yield _refers_to_itself(value)
        elif isinstance(value, Container) and not value._is_none() and not value._is_missing():
            yield from _cycles(value)


def _refers_to_itself(node: Node) -> str:
    key = node._get_full_key(None)
    return f"{key}: depends on itself, got {node._value()}; set {key} to a value that does not depend on {key}."


def check_before_imports(config: DictConfig) -> None:
    """Check the keys and values of a config against signatures that are read from source files without imports.

    Raises:
        ConfigErrors: a value is missing or invalid, or a key is unknown; the message has one line per error.
    """
    _check(config, source_signature)


def check(config: DictConfig) -> None:
    """Check all keys and values of a config against the signatures of the imported classes and functions.

    Raises:
        ConfigErrors: a value is missing or invalid, or a key is unknown; the message has one line per error.
    """
    _check(config, imported_signature)


def _check(config: DictConfig, signature_of: Callable[[str], Signature | None]) -> None:
    missing = list(dict.fromkeys(key for part in (*TOP_LEVEL_TYPES, *INSTANTIATED) for key in _missing(config, part)))
    if missing:
        raise ConfigErrors("\n".join(f"{key}: has no value; set {key}=..." for key in missing))
    for part in ("trainer", "task"):
        if "_target_" not in keys(resolve(config, part)[1]):
            raise ConfigErrors(f"{part}._target_: has no value; choose an experiment that defines {part}.")
    errors = [_value_error(name, OmegaConf.select(config, name), hint) for name, hint in TOP_LEVEL_TYPES.items()]
    errors += _logger_errors(config)
    for part in INSTANTIATED:
        errors += _node_errors(config, part, signature_of)
    errors = list(dict.fromkeys(error for error in errors if error))
    if not any(error.startswith("trainer") for error in errors):
        errors += option_errors(config, _value_error)
    if errors:
        raise ConfigErrors("\n".join(errors))


def _logger_errors(config: DictConfig) -> list[str | None]:
    """Return the error messages for loggers without a class, and for logging intervals that are not integers >= 1."""
    loggers = resolve(config, "logger")[1]
    if not isinstance(loggers, DictConfig):
        names = "csv, wandb, tensorboard, mlflow or none"
        return [f"logger: must be a mapping of loggers, got {config.logger!r}; choose logger={names}."]
    errors: list[str | None] = []
    for name in keys(loggers):
        path, logger = resolve(config, join("logger", name))
        if "_target_" not in keys(logger):
            got = repr(loggers[name])
            errors.append(f"{path}: must be a logger with the key _target_, got {got}; remove it with ~{path}.")
        elif "flush_logs_every_n_steps" in keys(logger):
            key = "flush_logs_every_n_steps"
            errors.append(_value_error(join(path, key), logger[key], PositiveInt))
    return errors


def _missing(root: DictConfig, key: str) -> list[str]:
    """Return the keys without a value: ``key`` itself, or keys below ``key``. Hydra marks such a value by ``???``."""
    path, node = resolve(root, key)
    if node is None or node._is_none():
        return []
    if node._is_missing():
        return [path]
    return [missing for name in keys(node) for missing in _missing(root, join(path, name))]


def _node_errors(root: DictConfig, key: str, signature_of: Callable[[str], Signature | None]) -> list[str]:
    path, node = resolve(root, key)
    errors = []
    if isinstance(node, DictConfig) and "_target_" in keys(node):
        errors += _target_errors(root, path, node, signature_of)
    for name in keys(node):
        if name not in HYDRA_KEYS:
            errors += _node_errors(root, join(path, name), signature_of)
    return errors


def _target_errors(
    root: DictConfig, key: str, node: DictConfig, signature_of: Callable[[str], Signature | None]
) -> list[str]:
    """Return the error messages for the object that the config describes at ``key``.

    The possible errors are a class that cannot be imported, an unknown or missing argument, and a value of the wrong
    type.
    """
    try:
        signature = signature_of(node._target_)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        message = one_line(error)
        return [f"{join(key, '_target_')}: {node._target_} cannot be imported ({message}); correct the name."]
    if signature is None:
        return []
    names = [name for name in keys(node) if name not in HYDRA_KEYS]
    parameters = signature.parameters
    unknown = [name for name in names if name not in parameters and not signature.accepts_any]
    errors = [
        f"{join(key, name)}: unknown key of {signature.name}; {nearest(name, list(parameters))}." for name in unknown
    ]
    if not node.get("_partial_", False) and "_args_" not in node:
        missing = [name for name, parameter in parameters.items() if parameter.required and name not in names]
        errors += [
            f"{join(key, name)}: has no value; set it, because {signature.name} requires it." for name in missing
        ]
    for name in names:
        parameter = parameters.get(name)
        if parameter is None or parameter.hint is MISSING or _is_instantiated(root, join(key, name)):
            continue
        path, child = resolve(root, join(key, name))
        try:
            value = _plain_value(child)
        except OmegaConfBaseException as error:
            errors.append(f"{path}: {child._value()} cannot be resolved ({one_line(error)}); correct the value.")
            continue
        if parameter.required or type(value) is not type(parameter.default) or value != parameter.default:
            errors.append(_value_error(path, value, parameter.hint))
    return errors


def _is_instantiated(root: DictConfig, key: str) -> bool:
    """Return whether ``key`` or a key below ``key`` describes an object, that is, whether it has the key ``_target_``.

    The arguments of such objects are checked separately.
    """
    path, node = resolve(root, key)
    return "_target_" in keys(node) or any(_is_instantiated(root, join(path, name)) for name in keys(node))


def _plain_value(node: Node) -> Any:
    """Return the value of a config node as a plain Python object, with interpolations resolved."""
    if isinstance(node, DictConfig | ListConfig):
        return OmegaConf.to_container(node, resolve=True)
    return (node._dereference_node() if node._is_interpolation() else node)._value()


def _value_error(key: str, value: Any, hint: Any) -> str | None:
    """Return an error message if a config value does not match the type ``hint``, else None.

    If pydantic cannot create a schema for the type, the value is not checked.
    """
    try:
        adapter = TypeAdapter(hint, config=STRICT)
    except PydanticSchemaGenerationError:
        return None
    except PydanticUserError:  # raised for a class that has its own pydantic configuration
        adapter = TypeAdapter(hint)
    try:
        # Validate as JSON, because pydantic's strict mode then accepts a list for a tuple.
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        return f"{key}: {describe(error)}"
    return None
