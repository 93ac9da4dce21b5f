"""Signatures of the classes and functions that configs name in ``_target_``.

:func:`source_signature` reads the signature from the source file of the class or function. It is fast, because no
module is imported; an import of PyTorch takes several seconds. :func:`imported_signature` imports the class or function
and returns the exact signature.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MISSING = object()
"""Placeholder for a type hint or a default value that does not exist or cannot be determined."""
IMPORTABLE = ("annotated_types", "collections", "datetime", "pathlib", "pydantic", "rnri.validation", "typing")
"""Packages that are imported to evaluate type hints in source files; importing these packages is fast."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a class or function.

    Attributes:
        required: True if the parameter has no default value.
        default: default value; ``MISSING`` if it does not exist or cannot be determined.
        hint: type hint; ``MISSING`` if it does not exist or cannot be determined.
        doc: first sentence about the parameter in the docstring; empty if the docstring does not describe the
            parameter.
    """

    required: bool
    default: Any = MISSING
    hint: Any = MISSING
    doc: str = ""


@dataclasses.dataclass(frozen=True)
class Signature:
    """The keyword parameters of a class or function.

    Attributes:
        name: name of the class or function in error messages.
        parameters: the parameters by name.
        accepts_any: True if the class or function takes ``**kwargs``.
    """

    name: str
    parameters: Mapping[str, Parameter]
    accepts_any: bool = False


def imported_signature(target: str) -> Signature | None:
    """Import the class or function ``target`` and return its signature.

    If Python cannot determine the signature, which is the case for some functions written in C, None is returned.

    Raises:
        ImportError, AttributeError, ValueError: ``target`` cannot be imported.
    """
    function = pkgutil.resolve_name(target)
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return None
    hints = parameter_hints(function)
    named = {
        name: Parameter(p.default is p.empty, MISSING if p.default is p.empty else p.default, hints.get(name, MISSING))
        for name, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return Signature(getattr(function, "__qualname__", target), named, accepts_any)


def parameter_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the type hints of the parameters of a callable, by name.

    Type hints that cannot be resolved are omitted.
    """
    if dataclasses.is_dataclass(function):
        hints = typing.get_type_hints(function, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(function)}
    if inspect.isclass(function):
        function = function.__init__
    function = inspect.unwrap(getattr(function, "__func__", function))
    namespace = vars(sys.modules.get(getattr(function, "__module__", None) or "", types))
    hints = {}
    for name, hint in getattr(function, "__annotations__", {}).items():
        single = types.SimpleNamespace(__annotations__={name: hint})
        try:  # each hint is resolved separately, because a type that is imported under TYPE_CHECKING raises NameError
            hints |= typing.get_type_hints(single, namespace, include_extras=True)
        except (NameError, TypeError, AttributeError):
            continue
    hints.pop("return", None)
    return hints


@functools.cache
def source_signature(target: str) -> Signature | None:
    """Read the signature of the class or function ``target`` from its source file, without an import.

    If the definition cannot be located in a source file, None is returned.
    """
    definition = find_definition(target)
    if definition is None:
        return None
    name = target.rpartition(".")[2]
    if isinstance(definition.node, ast.ClassDef):
        return _class_signature(name, definition)
    skip_first = definition.is_method and not _has_decorator(definition.node, "staticmethod")
    return _function_signature(name, definition, definition.node, skip_first)


@dataclasses.dataclass(frozen=True)
class Definition:
    """The definition of a class or function in a source file.

    Attributes:
        module: dotted name of the module that contains the definition.
        node: syntax tree of the definition.
        is_method: True if the definition is a member of a class.
    """

    module: str
    node: ast.ClassDef | ast.FunctionDef
    is_method: bool = False


def find_definition(target: str) -> Definition | None:
    """Return the definition of the dotted name ``target``, or None if it cannot be located.

    If the module in ``target`` only imports the name, the definition is read from the module that defines the name.
    """
    parts = target.split(".")
    for k in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:k])
        if _module_file(module) is not None:
            return _find_in_module(module, parts[k:])
    return None


def _find_in_module(module: str, names: list[str], depth: int = 0) -> Definition | None:
    node = _module_names(module).get(names[0]) if depth < 10 else None
    if isinstance(node, ast.ImportFrom):
        source = _absolute_module(module, node)
        original = next(alias.name for alias in node.names if (alias.asname or alias.name) == names[0])
        if _module_file(f"{source}.{original}") is not None and len(names) > 1:
            return _find_in_module(f"{source}.{original}", names[1:], depth + 1)
        return _find_in_module(source, [original, *names[1:]], depth + 1)
    is_method = False
    for name in names[1:]:
        members = node.body if isinstance(node, ast.ClassDef) else []
        node = next((member for member in members if getattr(member, "name", None) == name), None)
        is_method = True
    return Definition(module, node, is_method) if isinstance(node, ast.ClassDef | ast.FunctionDef) else None


@functools.cache
def _module_file(module: str) -> Path | None:
    """Return the source file of a module, or None if it does not exist. The module is not imported."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or []:
        path = Path(folder, *rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    return None


@functools.cache
def _module_names(module: str) -> dict[str, ast.stmt]:
    """Return the global names of a module, and for each name the statement that defines or imports the name."""
    file = _module_file(module)
    if file is None:
        return {}
    return {name: node for node in _statements(ast.parse(file.read_bytes()).body) for name in _defined_names(node)}


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
        else:
            yield node


def _defined_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _absolute_module(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    file = _module_file(module)
    levels = node.level - (file is not None and file.name == "__init__.py")
    package = module.rsplit(".", levels)[0] if levels else module
    return f"{package}.{node.module}" if node.module else package


def _class_signature(name: str, definition: Definition) -> Signature | None:
    """Return the signature of a class, read from the fields of a dataclass or from ``__init__``.

    If the class does not define ``__init__``, the ``__init__`` of the nearest base class is used. If no class
    defines ``__init__``, or if a base class of a dataclass cannot be located, None is returned.
    """
    if not _is_dataclass(definition.node):
        for owner in _with_bases(definition):
            if init := next((m for m in owner.node.body if getattr(m, "name", "") == "__init__"), None):
                signature = _function_signature(name, owner, init, skip_first=True)
                docs = _argument_docs(definition.node)
                parameters = {
                    key: dataclasses.replace(p, doc=p.doc or docs.get(key, ""))
                    for key, p in signature.parameters.items()
                }
                return dataclasses.replace(signature, parameters=parameters)
        return None
    if any(base is None for base in _bases(definition)):
        return None
    fields: dict[str, Parameter | None] = {}
    for owner in reversed(list(_with_bases(definition))):
        if _is_dataclass(owner.node):
            fields |= _fields(owner)
    return Signature(name, {key: parameter for key, parameter in fields.items() if parameter is not None})


def _is_dataclass(node: ast.ClassDef) -> bool:
    return _has_decorator(node, "dataclass")


def _has_decorator(node: ast.ClassDef | ast.FunctionDef, name: str) -> bool:
    return any(name in ast.unparse(decorator) for decorator in node.decorator_list)


def _bases(definition: Definition) -> list[Definition | None]:
    ignored = ("ABC", "Protocol", "Generic", "object")
    names = [ast.unparse(base).partition("[")[0] for base in definition.node.bases]
    return [_find_in_module(definition.module, name.split(".")) for name in names if name not in ignored]


def _with_bases(definition: Definition) -> Iterator[Definition]:
    yield definition
    for base in _bases(definition):
        if base is not None and isinstance(base.node, ast.ClassDef):
            yield from _with_bases(base)


def _fields(definition: Definition) -> dict[str, Parameter | None]:
    """Return the fields of a dataclass, by name. A field that is not an argument (``init=False``) is None."""
    docs = _argument_docs(definition.node)
    fields: dict[str, Parameter | None] = {}
    for node in definition.node.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        hint = ast.unparse(node.annotation)
        if "ClassVar" in hint:
            continue
        name = node.target.id
        if node.value is not None and "init=False" in ast.unparse(node.value):
            fields[name] = None
        else:
            fields[name] = _parameter(definition.module, hint, node.value, docs.get(name, ""))
    return fields


def _function_signature(name: str, definition: Definition, function: ast.FunctionDef, skip_first: bool) -> Signature:
    arguments = function.args
    docs = _argument_docs(function)
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(positional, defaults, strict=True))[int(skip_first) :]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters = {}
    for argument, default in pairs:
        hint = ast.unparse(argument.annotation) if argument.annotation else ""
        doc = docs.get(argument.arg, "")
        parameters[argument.arg] = _parameter(definition.module, hint, default, doc)
    return Signature(name, parameters, arguments.kwarg is not None)


def _parameter(module: str, hint: str, default: ast.expr | None, doc: str) -> Parameter:
    value = MISSING
    if default is not None:
        try:
            value = ast.literal_eval(default)
        except ValueError:
            hint = ""  # the type of a default value that is not a literal is not checked
    return Parameter(default is None, value, _evaluate(module, hint) if hint else MISSING, doc)


def _evaluate(module: str, hint: str) -> Any:
    """Return the type that the annotation ``hint`` denotes in ``module``.

    If the annotation cannot be evaluated without importing other modules, ``MISSING`` is returned.
    """
    # `eval` runs only code of installed packages, because type hints are read from their source files.
    try:
        return eval(hint.strip("'\""), {"__builtins__": {}}, _Names(module))
    except Exception:  # evaluating an annotation can raise any exception
        return MISSING


class _Names(dict):
    """The global names of a module as a dictionary; a name is evaluated on access, without importing the module."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        node = _module_names(self.module).get(name)
        if isinstance(node, ast.Assign):
            return eval(ast.unparse(node.value), {"__builtins__": {}}, self)
        if isinstance(node, ast.ImportFrom):
            source = _absolute_module(self.module, node)
            original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            if source in IMPORTABLE or source.partition(".")[0] in IMPORTABLE:
                return getattr(importlib.import_module(source), original)
            return _Names(source)[original]
        if node is None and hasattr(builtins, name):
            return getattr(builtins, name)
        raise NameError(name)


def _argument_docs(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    """Return, for each parameter, the first sentence in the section ``Args`` or ``Attributes`` of a docstring."""
    docs: dict[str, list[str]] = {}
    in_section = False
    names: list[str] = []
    for line in (ast.get_docstring(node) or "").splitlines():
        if re.match(r"\S", line):
            in_section = line.startswith(("Args:", "Attributes:"))
            names = []
        elif in_section and (entry := re.match(r"    (\w[\w, *]*?)(?: \([^)]*\))?: (.*)", line)):
            names = [name.strip(" *") for name in entry[1].split(",")]
            docs |= {name: [entry[2]] for name in names}
        elif in_section and line.strip():
            for name in names:
                docs[name].append(line.strip())
    return {name: _first_sentence(" ".join(lines)) for name, lines in docs.items()}


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.;]) ", text, maxsplit=1)[0].rstrip(".;")
