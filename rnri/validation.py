"""Strict validation of dataclass fields by pydantic, with one-line error messages, and common field types."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, overload

import pydantic.dataclasses
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, ConfigDict, ValidationError

T = TypeVar("T")

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, extra="forbid")
"""Pydantic configuration of all validated dataclasses.

Values are not converted: a string or a bool is not accepted as a number, and 2.0 is not accepted as an int. NaN and
infinity are rejected.
"""

UnitInterval = Annotated[float, Ge(0), Le(1)]
HalfOpenUnitInterval = Annotated[float, Gt(0), Le(1)]
OpenUnitInterval = Annotated[float, Gt(0), Lt(1)]
IntAtLeast2 = Annotated[int, Ge(2)]
NonEmptyStr = Annotated[str, MinLen(1)]
RandomSeed = Annotated[int, Ge(0), Lt(2**32)]
"""Seed of a random generator; it must be less than 2^32 because NumPy does not accept larger seeds."""
GuidanceScale = Annotated[float, Ge(1)]
"""Classifier-free guidance scale; 1 disables guidance."""
Dtype = Literal["float16", "bfloat16", "float32", "float64"]
"""Name of a torch dtype, as written in a config."""


def _reject_duplicates(values: Sequence[Any]) -> Sequence[Any]:
    if len(set(values)) < len(values):
        raise ValueError("must not contain duplicates")
    return values


unique_items = AfterValidator(_reject_duplicates)
"""Annotation of a sequence field that must not contain duplicates."""


OMIT_DEFAULT = {"omit_default": True}
"""Metadata of a dataclass field that was added to a class after results of this class had been cached.

A cache key contains a field with this metadata only if the field's value differs from its default. Results that were
cached before the field was added therefore remain valid.
"""


class ConfigError(ValueError):
    """An error for an invalid value of a dataclass field or of a config key.

    Attributes:
        key: dotted name of the invalid field, relative to the object that raises the error.
        message: the rule that the invalid value violates, followed by the value.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key = key
        self.message = message

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


@overload
@dataclass_transform(field_specifiers=(dataclasses.field,))
def dataclass(cls: type[T], /) -> type[T]: ...


@overload
@dataclass_transform(field_specifiers=(dataclasses.field,))
def dataclass(*, frozen: bool = False, kw_only: bool = False) -> Callable[[type[T]], type[T]]: ...


def dataclass(
    cls: type[T] | None = None, /, *, frozen: bool = False, kw_only: bool = False
) -> type[T] | Callable[[type[T]], type[T]]:
    """Decorate a class as a strict ``pydantic.dataclasses.dataclass`` with one-line error messages.

    An invalid field raises :class:`ConfigError` with the field's name, pydantic's message and the value. Errors that
    ``__post_init__`` raises are not changed.
    """
    if cls is None:
        return functools.partial(_strict_dataclass, frozen=frozen, kw_only=kw_only)
    return _strict_dataclass(cls, frozen=frozen, kw_only=kw_only)


def _strict_dataclass(cls: type[T], *, frozen: bool, kw_only: bool) -> type[T]:
    validated: Any = pydantic.dataclasses.dataclass(cls, config=STRICT, frozen=frozen, kw_only=kw_only)
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
    """Convert ``error`` to an exception whose message is a single line and names the invalid field of ``cls``."""
    details = error.errors()[0]
    if not details["loc"]:  # raised by __post_init__
        return details["ctx"]["error"]
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    first = details["loc"][0]
    locations = [entry["loc"] for entry in error.errors() if entry["loc"][0] == first]
    # A field whose type is a union has one error per member of the union. The location of each error contains
    # pydantic's name of the union member, which the message must not show.
    rest = locations[0][1:] if len(locations) == 1 else ()
    name = names[first] if isinstance(first, int) and first < len(names) else first
    if name not in names:
        return TypeError(f"{cls.__name__} got an unexpected argument {name!r}; its arguments are {', '.join(names)}.")
    if details["type"] == "missing":
        return TypeError(f"{cls.__name__} is missing the argument {name!r}.")
    return ConfigError(".".join(map(str, (name, *rest))), describe(error))


def describe(error: ValidationError) -> str:
    """Return pydantic's message for the first invalid value, followed by the value.

    For a field whose type is a union, the messages of all members of the union are joined by "or".
    """
    entries = error.errors()
    value = entries[0]["input"]
    same_value = [entry for entry in entries if entry["input"] is value or entry["input"] == value]
    specific = [entry for entry in same_value if entry["type"] not in ("needs_python_object", "is_instance_of")]
    messages = dict.fromkeys(entry["msg"].removeprefix("Value error, ") for entry in specific or same_value)
    return f"{', or '.join(messages)}, got {value!r:.80}."


def first_line(error: BaseException) -> str:
    """Return the first line of the message of ``error``, or the name of the error's type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
