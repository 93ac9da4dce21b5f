"""Inversion methods. Importing this package imports all of its modules, which register their methods.

A new module of this package is imported automatically. The class of each method that the module registers becomes a
public name of ``rnri.methods``.
"""

import importlib
import pkgutil
from typing import Any

from rnri.methods.registry import ALL_METHODS, METHODS, Method, methods_table, public_classes, register_method

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = ["ALL_METHODS", "METHODS", "Method", "methods_table", "register_method", *public_classes()]


def __getattr__(name: str) -> Any:
    try:
        return public_classes()[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
