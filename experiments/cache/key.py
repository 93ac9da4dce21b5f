"""What an object was built with, as plain data: the part of a cache key that tells one method from another."""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from typing import Any


def describe(value: Any) -> Any:
    """JSON-able description of dataclasses, partial functions and containers, defaults included.

    Two objects have the same description only if they compute the same, as long as no function's code changes (see
    :data:`experiments.cache.store.RULES`).

    Raises:
        TypeError: anything whose settings cannot be seen; a lambda or a function within another, for its name does not
            tell it from others.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"_class_": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, partial):
        return {
            "_partial_": describe(value.func),
            "args": describe(list(value.args)),
            "keywords": describe(dict(value.keywords)),
        }
    if inspect.ismethod(value):
        return {"_method_": value.__name__, "of": describe(value.__self__)}
    if callable(value) and getattr(value, "__module__", None) and "<" not in getattr(value, "__qualname__", "<"):
        return {"_function_": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, dict):
        return {str(name): describe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} cannot be part of a cache key: use dataclasses, named functions and plain values.")
