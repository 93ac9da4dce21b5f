"""Imports run one way: read from the sources by ``ast``, so that nothing need be importable."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CORE = ("rnri", "nao", "seedselect")
PACKAGES = (*CORE, "experiments")
FORBIDDEN_TO_CORE = {*CORE, "experiments", "lightning", "hydra", "omegaconf", "wandb"}
SHARED = {"rnri", "rnri.validation"}
"""Validation of fields is shared by the three core packages; importing it loads no model code."""
PAGE_IMPORTS = {"", "app", "cache", "config", "evaluation", "reporting", "runtime"}
EXPERIMENTS = ("augmentation", "editing", "inversion", "pretrain", "rare_concepts")
SOURCES = [path for package in PACKAGES for path in sorted(Path(package).rglob("*.py"))]

FLOORS = {  # a folder or module imports from its own floor's folder and from lower floors
    "rnri": [
        {"validation"},
        {"models"},
        {"solvers"},
        {"inversion"},
        {"methods", "editing"},
        {"api"},
        {"diffusers_blocks"},
    ],
    "experiments": [
        {"naming", "imagenet_classes", "finite"},
        {"cache", "evaluation"},
        {"runtime", "reporting"},
        {"counting"},
        {"data"},
        {"planning", "base"},
        set(EXPERIMENTS),
    ],
}
BUILT_ON = {("augmentation", "rare_concepts")}
"""The experiments that may import another: the first from the second."""


def module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path) for path in SOURCES}


def imported(source: str, name: str = "") -> set[str]:
    """What the module ``name`` imports, wherever that stands; of ``from a import b`` both ``a`` and ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*name.split(".")[: -node.level], *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


IMPORTS = {module(path): imported(path.read_text(), module(path)) for path in SOURCES}


def top(name: str) -> str:
    return name.split(".")[0]


def room(name: str) -> str:
    """The folder or module below a package: ``experiments.data.emoji`` is in the room ``data``."""
    return [*name.split("."), ""][1]


def floor(name: str) -> int | None:
    floors = FLOORS.get(top(name), [])
    return next((k for k, rooms in enumerate(floors) if room(name) in rooms), None)


def broken(name: str, other: str) -> str | None:
    """What is wrong with an import of ``other`` by the module ``name``; None if nothing is."""
    if top(name) in CORE and top(other) in FORBIDDEN_TO_CORE - {top(name)} and other not in SHARED:
        return "the core imports neither its other parts nor Lightning, Hydra or W&B, and what is below nothing of it"
    if top(name) == top(other) == "experiments" and room(name) != "app" and room(other) == "app":
        return "nothing imports the page"
    if top(name) == top(other) == "experiments" and room(name) == "app" and room(other) not in PAGE_IMPORTS:
        return "the page imports only results and metrics of the experiments"
    if top(name) != top(other) or not room(name) or room(name) == room(other):
        return None
    here, there = floor(name), floor(other)
    if here is None or there is None:
        return None
    if there > here:
        return "arrows run from the higher floor to the lower"
    if (
        top(name) == "experiments"
        and room(name) in EXPERIMENTS
        and here == there
        and (room(name), room(other)) not in BUILT_ON
    ):
        return "an experiment imports no other: what two need goes down a floor"
    return None


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_imports_keep_to_the_floors(name):
    wrong = {other: broken(name, other) for other in IMPORTS[name] if broken(name, other)}
    assert not wrong


def test_there_are_no_circles():
    edges = {name: {other for other in found if other in MODULES and other != name} for name, found in IMPORTS.items()}
    for name in list(edges):  # importing a module runs its packages first, which hand on what is below them
        edges[name] -= {package for package in MODULES if name.startswith(f"{package}.")}
    try:
        list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", sorted({path.parent for path in SOURCES}), ids=str)
def test_every_folder_says_what_lives_there(package):
    assert (ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or "").strip()


@pytest.mark.parametrize(
    "name, other",
    [
        ("rnri.solvers.anderson", "lightning"),
        ("nao.path", "rnri.models"),
        ("rnri.validation", "rnri.models.schedule"),
        ("rnri.models.schedule", "rnri.solvers"),
        ("rnri.solvers.newton", "rnri.inversion"),
        ("experiments.evaluation.metrics", "experiments.data.concepts"),
        ("experiments.cache.store", "experiments.inversion.jobs"),
        ("experiments.counting.matcher", "experiments.data.emoji"),
        ("experiments.inversion.task", "experiments.rare_concepts.task"),
        ("experiments.rare_concepts.task", "experiments.augmentation.task"),
        ("experiments.experiments.app.page", "experiments.data.emoji"),
        ("experiments.base", "experiments.app.page"),
    ],
)
def test_forbidden_imports_are_seen(name, other):
    assert broken(name, other)


def test_an_import_is_seen_wherever_it_stands():
    source = "def f():\n    from experiments.data import emoji\n\nimport wandb.sdk\nfrom . import budget\n"
    assert imported(source, "rnri.solvers.newton") >= {"experiments.data.emoji", "wandb.sdk", "rnri.solvers.budget"}
