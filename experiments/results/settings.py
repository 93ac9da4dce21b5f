"""What an object was built with, as plain data: the part of a cache key that tells one method from another."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any


def describe(value: Any) -> Any:
    """JSON-able description of dataclasses, partial functions and containers, defaults included.

    Two objects have the same description only if they compute the same. Raises TypeError for anything whose
    settings cannot be seen.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"_class_": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, partial):
        return {**describe(value.func), "args": describe(list(value.args)), **describe(dict(value.keywords))}
    if callable(value) and hasattr(value, "__qualname__"):
        return {"_function_": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, dict):
        return {str(name): describe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} cannot be part of a cache key: use dataclasses, functions and plain values.")
