"""Lazy imports: the public names of a package are imported when they are first used."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` (PEP 562) of a package that imports its public names lazily.

    The public names are the names that the ``__init__.py`` of the package imports in its block ``if TYPE_CHECKING``.
    Only type checkers execute the block ``if TYPE_CHECKING``; at runtime, a name is imported when it is first used. ::

        if TYPE_CHECKING:
            from nao.norm import project as project

        __getattr__, __dir__, __all__ = lazy_names(__name__)

    Args:
        package: name of the package.
    """
    module = sys.modules[package]
    statements = ast.parse(Path(str(module.__file__)).read_bytes()).body
    block = next(node for node in statements if isinstance(node, ast.If)).body
    modules = {
        alias.name: str(node.module) for node in block if isinstance(node, ast.ImportFrom) for alias in node.names
    }

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(module, name, value)
        return value

    return get, lambda: sorted({*vars(module), *modules}), sorted(modules)
