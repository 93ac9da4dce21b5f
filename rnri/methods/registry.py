"""Registry of the inversion methods: the name, factory, paper and supported models of each method.

Each module of ``rnri.methods`` registers its methods when it is imported, and ``rnri.methods`` imports all of its
modules. ``METHODS``, the public names of ``rnri.methods`` and the methods table of the documentation are computed from
this registry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rnri.inversion import ImplicitInverter, Inverter

Requirement = Literal["any", "flow", "noise"]
MODELS: dict[Requirement, str] = {"any": "all", "flow": "flow matching", "noise": "noise prediction"}
"""Maps each requirement to its text in the column "models" of the methods table."""


@dataclass(frozen=True)
class Method:
    """A registered inversion method; calling a ``Method`` returns an inverter with the default settings.

    Attributes:
        name: name of the method in ``rnri.invert(method=...)``, and of the method's config file in ``configs/method``.
        factory: function without arguments that returns the inverter; often the class of the inverter.
        paper: authors, year and arXiv identifier of the paper; ``ours`` for unpublished methods.
        requires: models that the method supports: ``any``, ``flow`` (only flow matching) or ``noise`` (only noise
            prediction).
    """

    name: str
    factory: Callable[[], Inverter]
    paper: str
    requires: Requirement = "any"

    def __call__(self) -> Inverter:
        return self.factory()


ALL_METHODS: dict[str, Method] = {}
"""Maps the name of every registered method to the method."""

METHODS: dict[str, Method] = {}
"""Maps the name of every seed-only method to the method; ``rnri.invert`` accepts these names as ``method=``."""


def register_method(
    name: str, factory: Callable[[], Inverter] | None = None, *, paper: str, requires: Requirement = "any"
) -> Any:
    """Register an inversion method. Can also be used as a decorator of the method's class or factory function.

    ::

        @register_method("edict", paper="Wallace et al. 2023, arXiv 2211.12446")
        class EDICT(Inverter): ...

    Args:
        name: unique name of the method.
        factory: function without arguments that returns an inverter with the default settings. With None,
            ``register_method`` returns a decorator.
        paper: authors, year and arXiv identifier of the paper; ``ours`` for unpublished methods.
        requires: models that the method supports, see :class:`Method`.

    Returns:
        ``factory``, unchanged.

    Raises:
        ValueError: a method with this name is already registered.
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
    """Remove a method from the registry, for tests and interactive sessions."""
    del ALL_METHODS[name]
    METHODS.pop(name, None)


def public_classes() -> dict[str, type[Inverter]]:
    """Return the classes of all registered methods by class name, except ``ImplicitInverter``."""
    classes = {type(method()) for method in ALL_METHODS.values()} - {ImplicitInverter}
    return {cls.__name__: cls for cls in sorted(classes, key=lambda cls: cls.__name__)}


def methods_table() -> str:
    """Return a Markdown table of all registered methods, with one row per method, sorted by name."""
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
    """Return the class name of ``inverter``, followed by the class name of its solver or inner inverter in brackets."""
    inner = getattr(inverter, "solver", None) or getattr(inverter, "inverter", None)
    if inner is None:
        return type(inverter).__name__
    return f"{type(inverter).__name__}({_class_label(inner)})"
