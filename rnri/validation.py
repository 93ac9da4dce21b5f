"""Strict validation of dataclass fields by pydantic, with one-line errors, and the types that fields share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from os.path import commonprefix
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import pydantic.dataclasses
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, ConfigDict, ValidationError

Class = TypeVar("Class", bound=type)

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, extra="forbid")
"""No str → number, no 2.0 → int, no bool → number; NaN and infinity are rejected."""

UnitInterval = Annotated[float, Ge(0), Le(1)]
HalfOpenUnitInterval = Annotated[float, Gt(0), Le(1)]
OpenUnitInterval = Annotated[float, Gt(0), Lt(1)]
IntAtLeast2 = Annotated[int, Ge(2)]
NonEmptyStr = Annotated[str, MinLen(1)]
RandomSeed = Annotated[int, Ge(0), Lt(2**32)]
"""Seed of a random generator; NumPy accepts no larger one."""
GuidanceScale = Annotated[float, Ge(1)]
"""Classifier-free guidance scale; 1 disables guidance."""
Dtype = Literal["float16", "bfloat16", "float32", "float64"]
"""Name of a torch dtype, as written in a config."""


def _reject_duplicates(values: Sequence[Any]) -> Sequence[Any]:
    if len(set(values)) < len(values):
        raise ValueError("must not contain duplicates")
    return values


unique_items = AfterValidator(_reject_duplicates)
"""Annotation of a sequence whose items must differ."""


class ConfigError(ValueError):
    """An invalid value.

    Attributes:
        key: name of the value, relative to the object that rejects it.
        message: the rule and the value.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key = key
        self.message = message

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


@dataclass_transform(field_specifiers=(dataclasses.field,))
def dataclass(cls: Class | None = None, /, **options: bool) -> Class | Callable[[Class], Class]:
    """Decorate a class as a strict ``pydantic.dataclasses.dataclass`` with one-line errors.

    An invalid field raises :class:`ConfigError` with the field, pydantic's message and the value. Errors of
    ``__post_init__`` are raised unchanged.
    """
    if cls is None:
        return functools.partial(dataclass, **options)
    validated = pydantic.dataclasses.dataclass(cls, config=STRICT, **options)
    construct = validated.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise _one_line(error, type(self)) from None

    validated.__init__ = __init__
    return validated


def _one_line(error: ValidationError, cls: type) -> Exception:
    """Return the exception to raise for ``error``: of one line, with the name of the field of ``cls``."""
    details = error.errors()[0]
    if not details["loc"]:  # raised by __post_init__
        return details["ctx"]["error"]
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    first = details["loc"][0]
    # Alternatives of a union have different locations, which end in pydantic's tags of the alternatives.
    rest = commonprefix([entry["loc"] for entry in error.errors() if entry["loc"][0] == first])[1:]
    name = names[first] if isinstance(first, int) and first < len(names) else first
    if name not in names:
        return TypeError(f"{cls.__name__} got an unexpected argument {name!r}; its arguments are {', '.join(names)}.")
    if details["type"] == "missing":
        return TypeError(f"{cls.__name__} is missing the argument {name!r}.")
    return ConfigError(".".join(map(str, (name, *rest))), describe(error))


def describe(error: ValidationError) -> str:
    """Return pydantic's messages for the first invalid field, joined by "or" for a union, and the value."""
    details = [entry for entry in error.errors() if entry["loc"][:1] == error.errors()[0]["loc"][:1]]
    messages = dict.fromkeys(entry["msg"].removeprefix("Value error, ") for entry in details)
    return f"{', or '.join(messages)}, got {details[0]['input']!r:.80}."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
