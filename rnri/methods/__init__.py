"""Inversion methods; the classes of the registered methods can be imported from this package.

A new module of this package does not have to be listed here, because :mod:`rnri.methods.registry` imports all modules
of the package.
"""

from typing import Any

from rnri.methods.registry import ALL_METHODS as ALL_METHODS
from rnri.methods.registry import METHODS as METHODS
from rnri.methods.registry import Method as Method
from rnri.methods.registry import methods_table as methods_table
from rnri.methods.registry import public_classes as public_classes
from rnri.methods.registry import register_method as register_method


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return ["ALL_METHODS", "METHODS", "Method", "methods_table", "register_method", *public_classes()]
    try:
        return public_classes()[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *public_classes()})
