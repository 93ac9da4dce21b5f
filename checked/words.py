"""What an annotation allows, said in words for whoever gave something else."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from checked.types import distinct

PLAIN = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
    Any: "anything",
}
LONGEST_VALUE = 80  # signs


def expected(hint: Any) -> str:
    """``a whole number of at least 1 or null``, of a type hint; what a hint says of itself goes before."""
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        own = next((limit.description for limit in limits if isinstance(limit, FieldInfo) and limit.description), None)
        return own or _limited(base, limits)
    return _unlimited(hint)


def _limited(base: Any, limits: Sequence[Any]) -> str:
    words = expected(base)
    bounds = [text for limit in limits for text in _bound(limit)]
    if any(limit is distinct for limit in limits):
        words += ", none twice"
    if any(isinstance(limit, MinLen) for limit in limits):
        words += ", at least one"
    return f"{words} {' and '.join(bounds)}" if bounds else words


def _bound(limit: Any) -> list[str]:
    named = {Ge: ("of at least", "ge"), Gt: ("above", "gt"), Le: ("of at most", "le"), Lt: ("below", "lt")}
    word, attribute = named.get(type(limit), ("", ""))
    return [f"{word} {getattr(limit, attribute)}"] if word else []


def _unlimited(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Literal, Union, types.UnionType):
        return _either(list(dict.fromkeys(_alternatives(hint))))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping of names to {_plural(expected(arguments[1]))}"
    if isinstance(origin, type) and issubclass(origin, Sequence | set | frozenset):
        return f"a list of {_plural(expected(arguments[0]))}"
    if origin is Callable or hint is Callable:
        return "a function"
    return PLAIN.get(hint) or getattr(hint, "__name__", str(hint))


def _alternatives(hint: Any) -> list[str]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return [str(argument) for argument in arguments]
    if origin not in (Union, types.UnionType):
        return [expected(hint)]
    typed = [argument for argument in arguments if not _is_foreign(argument)]
    choices = arguments if typed in ([], [type(None)]) else typed
    return [word for choice in choices for word in _alternatives(choice)]


def _is_foreign(hint: Any) -> bool:
    """Whether it is a class of which no value can be typed."""
    return inspect.isclass(hint) and hint not in PLAIN and get_origin(hint) is None


def _plural(words: str) -> str:
    return re.sub(r"^an? ((?:[\w-]+ )*?)(number|text|list|function)\b", r"\1\2s", words)


def _either(words: Sequence[str]) -> str:
    return " or ".join([*([", ".join(words[:-1])] if words[:-1] else []), words[-1]])


def refusal(value: Any, hint: Any) -> str:
    """What to say behind the name of a setting whose ``value`` is not what ``hint`` allows."""
    return f"={shown(value)}: give {expected(hint)}."


def shown(value: Any) -> str:
    """``value`` as one types it, cut where it is long."""
    text = _typed(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_typed(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_typed, value))}]"
    return repr(value)


def parameter_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The type hints of a callable's parameters that can be resolved, by name; of a dataclass those of its fields."""
    if dataclasses.is_dataclass(target):
        return typing.get_type_hints(target, include_extras=True)
    function = target.__init__ if inspect.isclass(target) else inspect.unwrap(getattr(target, "__func__", target))
    function = inspect.unwrap(function)
    space = vars(sys.modules.get(getattr(function, "__module__", None) or "", types))
    found = {}
    for name, hint in getattr(function, "__annotations__", {}).items():
        try:  # one by one: some libraries name types that they import for type checkers only
            found |= typing.get_type_hints(
                types.SimpleNamespace(__annotations__={name: hint}), space, include_extras=True
            )
        except (NameError, TypeError, AttributeError):
            continue
    found.pop("return", None)
    return found
