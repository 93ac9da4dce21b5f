"""Register of inversion methods: names, factories, papers and requirements.

A module of ``rnri.methods`` registers its methods when it is imported, and ``rnri.methods`` imports all of its modules.
``METHODS``, the public names of ``rnri.methods`` and the table of the documentation derive from this register.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rnri.inversion import ImplicitInverter, Inverter

Requirement = Literal["any", "flow", "noise"]
MODELS: dict[Requirement, str] = {"any": "all", "flow": "flow matching", "noise": "noise prediction"}
"""Names of the requirements in the documentation's table."""


@dataclass(frozen=True)
class Method:
    """A registered method; calling it returns an inverter with the default settings.

    Attributes:
        name: the method's name in ``rnri.invert(method=...)`` and of its file in ``configs/method``.
        factory: returns the inverter; often the inverter's class.
        paper: authors, year and arXiv identifier; ``ours`` for unpublished methods.
        requires: the models that the method supports: ``any``, only ``flow`` matching, or only ``noise`` prediction.
    """

    name: str
    factory: Callable[[], Inverter]
    paper: str
    requires: Requirement = "any"

    def __call__(self) -> Inverter:
        return self.factory()


ALL_METHODS: dict[str, Method] = {}
"""Every registered method by name."""

METHODS: dict[str, Method] = {}
"""The seed-only methods by name, which ``rnri.invert`` accepts as ``method=``."""


def register_method(
    name: str, factory: Callable[[], Inverter] | None = None, *, paper: str, requires: Requirement = "any"
) -> Any:
    """Register a method; also usable as a decorator of its class or factory function.

    ::

        @register_method("edict", paper="Wallace et al. 2023, arXiv 2211.12446")
        class EDICT(Inverter): ...

    Args:
        name: unique name of the method.
        factory: returns an inverter with the default settings; None returns a decorator.
        paper: authors, year and arXiv identifier; ``ours`` for unpublished methods.
        requires: the models that the method supports.

    Returns:
        ``factory``, unchanged.

    Raises:
        ValueError: the name is already registered.
    """
    if factory is None:
        return functools.partial(register_method, name, paper=paper, requires=requires)
    if name in ALL_METHODS:
        raise ValueError(f"method {name!r} is already registered by {ALL_METHODS[name].factory}.")
    method = Method(name, factory, paper, requires)
    ALL_METHODS[name] = method
    if factory().seed_only:
        METHODS[name] = method
    return factory


def unregister_method(name: str) -> None:
    """Remove a method from the register, for tests and interactive sessions."""
    del ALL_METHODS[name]
    METHODS.pop(name, None)


def public_classes() -> dict[str, type[Inverter]]:
    """Classes of the registered inverters by name, without the classes of ``rnri.inversion``."""
    classes = {type(method()) for method in ALL_METHODS.values()} - {ImplicitInverter}
    return {cls.__name__: cls for cls in sorted(classes, key=lambda cls: cls.__name__)}


def methods_table() -> str:
    """Markdown table of all registered methods, one row per method, sorted by name."""
    lines = [
        "| method | class | paper | seed-only | NFE per step | models |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(ALL_METHODS):
        method = ALL_METHODS[name]
        inverter = method()
        seed_only = "yes" if inverter.seed_only else "no"
        cells = (
            f"`{name}`",
            f"`{_class_label(inverter)}`",
            method.paper,
            seed_only,
            f"{inverter.nfe_per_step:g}",
            MODELS[method.requires],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _class_label(inverter: Inverter) -> str:
    """Class of an inverter, followed by its solver's or inner inverter's class."""
    inner = getattr(inverter, "solver", None) or getattr(inverter, "inverter", None)
    if inner is None:
        return type(inverter).__name__
    return f"{type(inverter).__name__}({_class_label(inner)})"
