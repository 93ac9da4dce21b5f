"""Sphinx configuration: the pages of this folder and the API reference. ``sphinx-build -W -n docs build/docs``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from sphinx.ext import autosummary

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

project = "Seed exploration"
release = version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
html_title = f"{project} {release}"
copyright = "the authors, Apache-2.0"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_templates", "_static"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "html_image"]  # cards; images side by side need <img width>
myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "navbar_center": [],  # the sidebar lists every page
    "navbar_end": ["theme-switcher"],
    "logo": {"text": html_title},
    "show_prev_next": True,
    "secondary_sidebar_items": [],
}
html_sidebars = {"**": ["globaltoc"]}
html_static_path, html_css_files = ["_static"], ["site.css"]
html_show_sourcelink = False

add_module_names = False  # the heading already names the module
autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.",)  # does not end a summary
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_param = False  # a field of ours may list several names
napoleon_custom_sections = [("Attributes", "params_style")]

PACKAGES = ("rnri", "nao", "seedselect", "experiments")

nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"experiments\.pretrain\.training\.Model"),  # a type variable
    ("py:.*", rf"(?!({'|'.join(PACKAGES)})\.)\w+\..*"),  # names of other libraries; their inventories are online
    ("py:.*", r".*\._\w+"),  # private names have no entry
    ("py:class", r"rnri\.validation\.T"),  # a type variable
    ("py:class", r"rnri\.loading\.Network"),  # a type variable
    ("py:class", r"tuple\[.*"),  # a part of an annotation that autodoc splits at its comma
    ("py:class", r"rnri\.models\.family\.FamilyClass"),  # a type variable
    ("py:class", r"experiments\.app\.messages\.Handler"),  # a type variable
]


def below(package: str) -> list[pkgutil.ModuleInfo]:
    return list(pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."))


def packages() -> Iterator[str]:
    """Every package of the project, parents first."""
    queue = list(PACKAGES)
    while queue:
        package = queue.pop(0)
        queue += [module.name for module in below(package) if module.ispkg]
        yield package


FIRST = ("invert", "load", "PipelineInversion", "scheduler_for", "centroid", "interpolate", "SeedSelect", "edit")
"""Exported names that users need first. They are at the top of the page of their package."""


def public(package: str) -> list[str]:
    """Qualified names of the classes and functions that a package exports; their own modules document them."""
    module = importlib.import_module(package)
    names = getattr(module, "__all__", ())
    names = [name for name in FIRST if name in names] + [name for name in names if name not in FIRST]
    members = {name: getattr(module, name) for name in names}
    members = {name: member for name, member in members.items() if not isinstance(member, Mapping)}
    return [f"{home(package, name, member)}.{name}" for name, member in members.items()]


def home(package: str, name: str, member: object) -> str:
    defined_in = getattr(member, "__module__", "")
    if defined_in.partition(".")[0] in PACKAGES:
        return defined_in
    modules = [importlib.import_module(m.name) for m in below(package)]
    modules = [module for module in modules if getattr(module, name, None) is member]
    defining = [module for module in modules if f"\n{name} = " in inspect.getsource(module)]
    return (defining or modules)[0].__name__


autosummary_context = {
    "public_names": {package: public(package) for package in packages()},
    "own_modules": {package: [m.name for m in below(package) if not m.ispkg] for package in packages()},
}


def keep_colon(app, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Napoleon parses text before a colon in the first line of an attribute docstring as its type."""
    if what in ("attribute", "data", "property") and lines and ":" in lines[0]:
        lines[:0] = ["..", ""]  # an empty comment


def short_name(app, environment, node, content):
    """Link an unqualified name of this project if exactly one object has it.

    Other names in annotations are plain text; other names in explicit roles are an error.
    """
    if node.get("refdomain") != "py" or "." in node["reftarget"]:
        return None
    python = environment.domains["py"]
    role = "refexplicit" in node
    candidates = [name for name in python.objects if name.endswith(f".{node['reftarget']}")]
    if len(candidates) == 1:
        return python.resolve_xref(environment, node["refdoc"], app.builder, "obj", candidates[0], node, content)
    return None if role else content


def write_config_reference(app) -> None:
    from experiments.config.reference import config_reference  # needs the changed sys.path

    path = Path(app.srcdir, "reference", "generated", "config.md")
    path.parent.mkdir(exist_ok=True)
    text = config_reference()
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app) -> None:
    app.connect("builder-inited", write_config_reference)
    app.connect("autodoc-process-docstring", keep_colon, priority=400)  # before Napoleon's 500
    app.connect("missing-reference", short_name)
