"""Dataclasses that check their fields by pydantic and say in one sentence what is wrong."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin

import pydantic.dataclasses
from pydantic import ConfigDict, ValidationError

from checked.words import parameter_hints, refusal

Class = TypeVar("Class", bound=type)

CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, extra="forbid")
"""A text is no number, 2.0 is no whole one, true is neither; NaN and infinities are none."""


class SettingError(ValueError):
    """A setting that cannot be: ``key`` is its name within the object that it belongs to, ``fault`` the rest."""

    def __init__(self, key: str, fault: str) -> None:
        super().__init__(key, fault)
        self.key, self.fault = key, fault

    def __str__(self) -> str:
        return f"{self.key}{self.fault}"


@dataclass_transform(field_specifiers=(dataclasses.field,))
def dataclass(cls: Class | None = None, /, **options: bool) -> Class | Callable[[Class], Class]:
    """``dataclasses.dataclass`` whose fields must be what their annotations say, constraints of pydantic's included.

    An object that cannot be raises ValueError with one sentence that names the field, its value and what it may be;
    ``__post_init__`` runs on valid fields only, and what it raises passes as it is.
    """
    if cls is None:
        return functools.partial(dataclass, **options)
    made = pydantic.dataclasses.dataclass(cls, config=CONFIG, **options)
    construct = made.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise _explained(error, type(self), args, kwargs) from None

    made.__init__ = __init__
    return made


def _explained(error: ValidationError, cls: type, args: tuple, kwargs: Mapping[str, Any]) -> Exception:
    """The first of the faults, as a caller should see it."""
    fault = error.errors()[0]
    if not fault["loc"]:  # raised by __post_init__
        return fault["ctx"]["error"]
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    place, *deeper = fault["loc"]
    given = dict(zip(names, args, strict=False)) | kwargs
    name = names[place] if isinstance(place, int) and place < len(names) else place
    if name not in names:
        return TypeError(f"{cls.__name__} has no argument {name}: it takes {', '.join(names)}.")
    if fault["type"] == "missing":
        return TypeError(f"{cls.__name__} needs {name}.")
    value, hint = given[name], parameter_hints(cls)[name]
    entry = _values_hint(hint)
    if deeper and entry is not None and deeper[0] in value:  # name the entry, not all of them
        return SettingError(f"{name}.{deeper[0]}", refusal(value[deeper[0]], entry))
    return SettingError(name, refusal(value, hint))


def _values_hint(hint: Any) -> Any:
    """What a mapping's values are; None for any other hint."""
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    origin = get_origin(base)
    return get_args(base)[1] if isinstance(origin, type) and issubclass(origin, Mapping) else None
