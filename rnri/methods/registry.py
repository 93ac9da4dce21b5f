"""Registry of the inversion methods: the name, factory, paper and supported models of each method.

Each module of ``rnri.methods`` registers its methods when it is imported. When methods are listed, or a method is
looked up that is not registered yet, the registry imports all modules of ``rnri.methods``. The registry determines the
content of ``METHODS``, the classes that can be imported from ``rnri.methods``, and the table of methods in the
documentation.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal

from rnri.inversion import ImplicitInverter, Inverter

Requirement = Literal["any", "flow", "noise"]
MODELS: dict[Requirement, str] = {"any": "all", "flow": "flow matching", "noise": "noise prediction"}
"""Maps each value of ``Method.requires`` to the text in the column "models" of the table of methods."""

NO_CODE = "no public code"
"""Value of ``Method.source`` for methods for which no public code is known."""
NO_LICENSE = "public code without a license"
"""Value of ``Method.source`` for methods whose public code has no license."""
NOT_COMPARED = "public code, not compared"
"""Value of ``Method.source`` for methods whose public code was not compared with the implementation in this package."""


@dataclass(frozen=True)
class Method:
    """A registered inversion method; calling a ``Method`` returns an inverter with the default settings.

    Attributes:
        name: name of the method in ``rnri.invert(method=...)``, and of the method's config file in ``configs/method``.
        factory: function without arguments that returns the inverter; often the class of the inverter.
        paper: authors, year and arXiv identifier of the paper; ``ours`` for the unpublished methods of this project.
        source: the public code with which the implementation was compared, as ``owner/name@commit path:lines``. If the
            implementation was not compared with code, ``source`` is the reason, such as :data:`NO_CODE`.
        requires: models that the method supports: ``any``, ``flow`` (only flow matching) or ``noise`` (only noise
            prediction).
    """

    name: str
    factory: Callable[[], Inverter]
    paper: str
    source: str = ""
    requires: Requirement = "any"

    def __call__(self) -> Inverter:
        return self.factory()


_REGISTERED: dict[str, Method] = {}
"""Maps the names of the methods that are registered so far to the methods."""


class MethodRegistry(Mapping[str, Method]):
    """Maps the names of registered methods to the methods, in alphabetical order.

    Modules of ``rnri.methods`` that are not imported yet are imported when their methods are needed.

    Args:
        seed_only: if True, the mapping contains only methods whose seed alone regenerates the image.
    """

    def __init__(self, seed_only: bool) -> None:
        self.seed_only = seed_only

    def __getitem__(self, name: str) -> Method:
        if name not in _REGISTERED:
            import_methods()
        method = _REGISTERED[name]
        if self.seed_only and not method().seed_only:
            raise KeyError(name)
        return method

    def __iter__(self) -> Iterator[str]:
        import_methods()
        return (name for name in sorted(_REGISTERED) if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@functools.cache
def import_methods() -> None:
    """Import all modules of ``rnri.methods``, so that their methods are registered."""
    package = importlib.import_module("rnri.methods")
    for module in pkgutil.iter_modules(package.__path__, "rnri.methods."):
        importlib.import_module(module.name)


ALL_METHODS = MethodRegistry(seed_only=False)
"""Maps the name of every registered method to the method."""

METHODS = MethodRegistry(seed_only=True)
"""Maps the name of every method whose seed alone regenerates the image to the method.

``rnri.invert`` accepts the names in ``METHODS`` as ``method=``.
"""


def register_method(
    name: str,
    factory: Callable[[], Inverter] | None = None,
    *,
    paper: str,
    source: str = "",
    requires: Requirement = "any",
) -> Any:
    """Register an inversion method; without ``factory``, return a decorator for the method's class or factory function.

    ::

        @register_method("edict", paper="Wallace et al. 2023, arXiv 2211.12446")
        class EDICT(Inverter): ...

    Args:
        name: unique name of the method.
        factory: function without arguments that returns an inverter with the default settings. If ``factory`` is None,
            ``register_method`` returns a decorator.
        paper: authors, year and arXiv identifier of the paper; ``ours`` for unpublished methods.
        source: the public code with which the implementation was compared, see :class:`Method`.
        requires: models that the method supports, see :class:`Method`.

    Returns:
        ``factory``. If ``source`` is given, ``paper`` and ``source`` are appended to the docstring of ``factory``.

    Raises:
        ValueError: a method with this name is already registered.
    """
    if factory is None:
        return functools.partial(register_method, name, paper=paper, source=source, requires=requires)
    if not factory.__module__.startswith("rnri.methods."):
        import_methods()  # the name may belong to a method whose module is not imported yet
    if name in _REGISTERED:
        raise ValueError(f"method {name!r} is already registered by {_REGISTERED[name].factory}; choose another name.")
    _REGISTERED[name] = Method(name, factory, paper, source, requires)
    _document_source(factory, paper, source)
    return factory


def _document_source(factory: Callable[[], Inverter], paper: str, source: str) -> None:
    """Append ``paper`` and ``source`` to the docstring of a class or function, so that ``help`` shows them."""
    is_named = isinstance(factory, type | FunctionType) and factory.__name__ != "<lambda>"
    code = f"steps computed by hand ({source})" if source in (NO_CODE, NO_LICENSE, NOT_COMPARED) else source
    lines = f"    Paper: {paper}.\n    Checked against: {code}.\n"
    # There is no docstring with the option -OO of Python. A class that is registered twice has the lines already.
    if is_named and source and factory.__doc__ and lines not in factory.__doc__:
        factory.__doc__ = f"{factory.__doc__.rstrip()}\n\n{lines}    "


def unregister_method(name: str) -> None:
    """Remove a method from the registry, for tests and interactive sessions."""
    del _REGISTERED[name]


def public_classes() -> dict[str, type[Inverter]]:
    """Return the classes of all registered methods by class name, except ``ImplicitInverter``."""
    classes = {type(method()) for method in ALL_METHODS.values()} - {ImplicitInverter}
    return {cls.__name__: cls for cls in sorted(classes, key=lambda cls: cls.__name__)}


def methods_table() -> str:
    """Return a Markdown table of all registered methods, with one row per method, sorted by name."""
    lines = [
        "| method | class | paper | compared with | seed-only | NFE per step | models |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, method in ALL_METHODS.items():
        inverter = method()
        seed_only = "yes" if inverter.seed_only else "no"
        cells = (
            f"`{name}`",
            f"`{_class_label(inverter)}`",
            method.paper,
            method.source or "–",
            seed_only,
            f"{inverter.nfe_per_step:g}",
            MODELS[method.requires],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _class_label(inverter: Inverter) -> str:
    """Return the class name of ``inverter`` and, in brackets, the class name of its solver or wrapped inverter."""
    inner = getattr(inverter, "solver", None) or getattr(inverter, "inverter", None)
    if inner is None:
        return type(inverter).__name__
    return f"{type(inverter).__name__}({_class_label(inner)})"
