"""Packages import each other in one direction only.

The imports are read from syntax trees, without importing modules.
"""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CORE = ("rnri", "nao", "seedselect")
PACKAGES = (*CORE, "experiments")
FORBIDDEN_IN_CORE = {*CORE, "experiments", "lightning", "hydra", "omegaconf", "wandb"}
SHARED = ("rnri.lazy", "rnri.loading", "rnri.validation")
"""The core packages share lazy imports, the loading of files and the validation of fields, which load no model code."""
EXPERIMENTS = ("augmentation", "diversity", "editing", "inversion", "pretrain", "rare_concepts", "watermark")
ENTRY_POINT = "experiments.runtime.setup"
"""Creates tasks, so it imports all layers; only ``train.py`` and tests import it."""
APP_MAY_IMPORT = {"", "app", "cache", "config", "evaluation", "reporting", "runtime"}
MAX_POSITIONAL_ARGUMENTS = 4
SIGNATURES_OF_LIBRARIES = {
    ("rnri/cli.py", "main"),  # the options of a command
    ("rnri/models/attention/injection.py", "__call__"),
    ("rnri/models/attention/prompt_to_prompt.py", "__call__"),
}
"""Functions whose arguments are determined by typer or by diffusers."""
SOURCES = [path for package in PACKAGES for path in sorted(Path(package).rglob("*.py"))]

LAYERS = {  # a folder or module imports from its own folder and from lower layers
    "rnri": [
        {"lazy", "validation", "images", "words", "seed_file", "tables"},
        {"captions", "image_batch"},
        {"models"},
        {"solvers"},
        {"inversion"},
        {"pipeline_inversion"},
        {"methods"},
        {"editing"},
        {"api", "watermark"},
        {"diffusers_blocks", "command"},
        {"cli"},
        {"__main__"},
    ],
    "experiments": [
        {"naming", "imagenet_classes", "finite"},
        {"config"},
        {"cache", "evaluation", "reporting"},
        {"runtime"},
        {"counting"},
        {"data"},
        {"planning", "base"},
        set(EXPERIMENTS),
    ],
}
BUILT_ON = {("augmentation", "rare_concepts"), ("diversity", "rare_concepts")}
"""Experiments that may import another: the first imports the second."""


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path) for path in SOURCES}


def imports(source: str, name: str = "") -> set[str]:
    """Return what the module ``name`` imports, at any depth; of ``from a import b`` both ``a`` and ``a.b``."""
    result: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*name.split(".")[: -node.level], *([node.module] if node.module else [])])
            result |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return result


IMPORTS = {module_name(path): imports(path.read_text(), module_name(path)) for path in SOURCES}


def top(name: str) -> str:
    return name.split(".")[0]


def folder(name: str) -> str:
    """Return the folder or module below a package: ``data`` for ``experiments.data.emoji``."""
    return [*name.split("."), ""][1]


def layer(name: str) -> int | None:
    layers = LAYERS.get(top(name), [])
    return next((k for k, folders in enumerate(layers) if folder(name) in folders), None)


def violation(name: str, other: str) -> str | None:
    """Return which rule an import of ``other`` by the module ``name`` breaks, or None."""
    if name == ENTRY_POINT:
        return None
    shared = f"{other}.".startswith(tuple(f"{module}." for module in SHARED))
    if top(name) in CORE and top(other) in FORBIDDEN_IN_CORE - {top(name)} and not shared:
        return "a core package imports neither another one nor Lightning, Hydra or W&B"
    if top(name) == top(other) == "experiments":
        if folder(name) != "app" and folder(other) == "app":
            return "no other module imports the web page"
        if folder(name) == "app" and folder(other) not in APP_MAY_IMPORT:
            return "the web page imports only results and metrics of the experiments"
    if top(name) != top(other) or not folder(name) or folder(name) == folder(other):
        return None
    here, there = layer(name), layer(other)
    if here is None or there is None:
        return None
    if there > here:
        return "imports go from a higher to a lower layer"
    experiments = top(name) == "experiments" and folder(name) in EXPERIMENTS
    if experiments and here == there and (folder(name), folder(other)) not in BUILT_ON:
        return "an experiment imports no other one"
    return None


@pytest.mark.parametrize("name", sorted(IMPORTS))
def test_imports_respect_the_layers(name):
    violations = {other: violation(name, other) for other in IMPORTS[name] if violation(name, other)}
    assert not violations


def test_no_circular_imports():
    edges = {name: {other for other in used if other in MODULES and other != name} for name, used in IMPORTS.items()}
    for name in list(edges):  # importing a module imports its packages first, which re-export their modules
        edges[name] -= {package for package in MODULES if name.startswith(f"{package}.")}
    try:
        list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", sorted({path.parent for path in SOURCES}), ids=str)
def test_every_package_has_a_docstring(package):
    assert (ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or "").strip()


def test_train_py_is_short():
    assert len(Path("train.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_functions_have_at_most_four_positional_arguments(path):
    functions = {
        node.name: [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (str(path), node.name) not in SIGNATURES_OF_LIBRARIES
    }
    counts = {name: len(names) - (names[:1] in (["self"], ["cls"], ["ctx"])) for name, names in functions.items()}
    assert {name: count for name, count in counts.items() if count > MAX_POSITIONAL_ARGUMENTS} == {}


def test_class_names_are_unique():
    classes = [
        node.name
        for path in SOURCES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [name for name, count in Counter(classes).items() if count > 1] == []


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
        ("experiments.app.page", "experiments.data.emoji"),
        ("experiments.base", "experiments.app.page"),
    ],
)
def test_forbidden_import_is_detected(name, other):
    assert violation(name, other)


def test_nested_and_relative_imports_are_detected():
    source = "def f():\n    from experiments.data import emoji\n\nimport wandb.sdk\nfrom . import budget\n"
    assert imports(source, "rnri.solvers.newton") >= {"experiments.data.emoji", "wandb.sdk", "rnri.solvers.budget"}
