"""Cache keys, by which stored results are looked up: descriptions of the settings of objects as plain data."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial, singledispatch
from typing import Any

PROJECT = ("rnri", "nao", "seedselect", "experiments")
"""Packages of this project.

In a cache key, the name of a class of these packages does not contain the module. Therefore the cache key does not
change if the class is moved to another module.
"""


def fingerprint_config(value: Any) -> Any:
    """Return a JSON-serializable description of a dataclass, partial function, function, container or plain value.

    The description contains all settings, also settings with default values. As an exception, a field with the metadata
    :data:`rnri.validation.OMIT_DEFAULT` is omitted if it has its default value. Classes and functions are described by
    their :func:`cache_name`. ``tests/experiments/cache/test_key.py`` checks that no two classes or functions of the
    project have the same name.

    Two objects with equal descriptions compute equal results, unless the code changes. If a change of the code changes
    results, increase :data:`experiments.cache.store.CACHE_VERSION`.

    Raises:
        TypeError: ``value`` contains an object whose settings cannot be read, for example a lambda or a nested
            function.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        described = {
            field.name: fingerprint_config(setting)
            for field, setting in fields.items()
            if not ("omit_default" in field.metadata and setting == field.default)
        }
        return {"_class_": cache_name(type(value)), **described}
    if inspect.ismethod(value):
        return {"_method_": value.__name__, "of": fingerprint_config(value.__self__)}
    if callable(value) and not isinstance(value, partial) and _is_importable(value):
        return {"_function_": cache_name(value)}
    return _describe(value)


def cache_name(target: Callable[..., Any]) -> str:
    """Return the name of a class or function in cache keys.

    If a class or function of this project has an attribute ``cache_name``, the name is this attribute. The names of all
    other classes and functions of this project do not contain their module. The names of classes and functions of other
    packages contain their module.
    """
    if target.__module__.partition(".")[0] in PROJECT:
        return vars(target).get("cache_name", target.__qualname__)
    return f"{target.__module__}.{target.__qualname__}"


def _is_importable(value: Any) -> bool:
    return bool(getattr(value, "__module__", None)) and "<" not in getattr(value, "__qualname__", "<")


@singledispatch
def _describe(value: Any) -> Any:
    raise TypeError(f"{value!r} cannot be part of a cache key: use dataclasses, named functions and plain values.")


@_describe.register
def _(value: partial) -> Any:
    return {
        "_partial_": fingerprint_config(value.func),
        "args": fingerprint_config(list(value.args)),
        "keywords": fingerprint_config(dict(value.keywords)),
    }


@_describe.register
def _(value: Mapping) -> Any:
    return {str(name): fingerprint_config(item) for name, item in value.items()}


@_describe.register(list)
@_describe.register(tuple)
def _(value: list | tuple) -> Any:
    return [fingerprint_config(item) for item in value]


@_describe.register(type(None))
@_describe.register(bool)
@_describe.register(int)
@_describe.register(float)
@_describe.register(str)
def _(value: Any) -> Any:
    return value
