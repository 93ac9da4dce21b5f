"""What a setting may be. Numbers are finite wherever they are checked; a truth value is no number, nor is a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, Field

Count = Annotated[int, Ge(1)]
"""A whole number of at least 1."""
AtLeastTwo = Annotated[int, Ge(2)]
"""A whole number of at least 2: of a path's points, which has two ends."""
Whole = Annotated[int, Ge(0)]
"""A whole number of at least 0."""
Seed = Annotated[int, Ge(0), Lt(2**32)]
"""Of a random generator; NumPy takes no larger one."""
Positive = Annotated[float, Gt(0)]
"""Above 0."""
NotNegative = Annotated[float, Ge(0)]
"""At least 0."""
Fraction = Annotated[float, Gt(0), Le(1)]
"""Above 0, at most 1."""
Share = Annotated[float, Ge(0), Le(1)]
"""From 0 to 1."""
OpenFraction = Annotated[float, Gt(0), Lt(1)]
"""Above 0, below 1."""
Guidance = Annotated[
    float, Ge(1), Field(description="a number of at least 1, which is off; Stable Diffusion's default is 7.5")
]
"""At least 1, which is off."""
Dtype = Literal["float16", "bfloat16", "float32", "float64"]
"""The name of a network's dtype, as a config gives it."""
Name = Annotated[str, MinLen(1), Field(description="a non-empty text")]
"""A text that is not empty: a name, a path, a prompt."""


def _without_repeats(values: Sequence[Any]) -> Sequence[Any]:
    if len(set(values)) < len(values):
        raise ValueError("an item stands twice")
    return values


distinct = AfterValidator(_without_repeats)
"""Of a sequence: no item twice."""
