"""Checked dataclasses: what they accept, and the sentence for what they do not."""

import dataclasses
import math
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import pytest
from annotated_types import MinLen
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from rnri.validation import GuidanceScale, HalfOpenUnitInterval, NonEmptyStr, RandomSeed, dataclass, unique_items


@dataclass(frozen=True)
class Part:
    steps: PositiveInt = 2
    rate: NonNegativeFloat = 0.5

    kind: ClassVar[str] = "part"

    def __post_init__(self) -> None:
        if self.rate > self.steps:
            raise ValueError(f"rate={self.rate} is above steps={self.steps}.")


@dataclass(frozen=True)
class NonNegativeInt(Part):
    start: Literal["plain", "fitted"] = "plain"
    counts: PositiveInt | Sequence[PositiveInt] | None = None
    names: Annotated[Sequence[NonEmptyStr], MinLen(1), unique_items] = ("a",)
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    function: Callable[[int], int] | None = None
    on: bool = True
    share: HalfOpenUnitInterval = 1.0
    step: PositiveFloat = 1.0
    guidance: GuidanceScale = 1.0
    seed: RandomSeed = 0


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 1}, {"rate": 0}, {"rate": 1}, {"counts": 3}, {"counts": [1, 2]}, {"counts": (1,)}, {"counts": None},
        {"names": ["a", "b"]}, {"parts": {"x": Part()}}, {"function": abs}, {"on": False}, {"share": 0.3},
        {"start": "fitted"}, {"seed": 2**32 - 1},
    ],
)  # fmt: skip
def test_what_an_annotation_allows_is_kept(given):
    made = NonNegativeInt(**given)
    ((name, value),) = given.items()
    assert getattr(made, name) == value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps=0: give a whole number of at least 1."),
        ({"steps": 2.0}, "steps=2.0: give a whole number of at least 1."),
        ({"steps": "3"}, "steps='3': give a whole number of at least 1."),
        ({"steps": True}, "steps=true: give a whole number of at least 1."),
        ({"steps": None}, "steps=null: give a whole number of at least 1."),
        ({"rate": math.nan}, "rate=nan: give a number of at least 0."),
        ({"rate": math.inf}, "rate=inf: give a number of at least 0."),
        ({"rate": -0.5}, "rate=-0.5: give a number of at least 0."),
        ({"rate": "0.5"}, "rate='0.5': give a number of at least 0."),
        ({"start": "middle"}, "start='middle': give plain or fitted."),
        ({"counts": [1, 0]}, "counts=[1, 0]: give a whole number of at least 1, a list of whole numbers of at least "
                             "1 or null."),
        ({"names": []}, "names=[]: give a list of non-empty texts, none twice, at least one."),
        ({"names": ["a", "a"]}, "names=['a', 'a']: give a list"),
        ({"names": "ab"}, "names='ab': give a list"),
        ({"names": ["a", ""]}, "names=['a', '']: give a list"),
        ({"parts": {"x": 3}}, "parts.x=3: give Part."),
        ({"function": 3}, "function=3: give a function or null."),
        ({"on": 1}, "on=1: give true or false."),
        ({"share": 0}, "share=0: give a number above 0 and of at most 1."),
        ({"step": 0.0}, "step=0.0: give a number above 0."),
        ({"guidance": 0.5}, "guidance=0.5: give a number of at least 1, which is off; Stable Diffusion's"),
        ({"seed": -1}, "seed=-1: give a whole number of at least 0 and below 4294967296."),
        ({"steps": 1, "rate": 2}, "rate=2.0 is above steps=1."),
    ],
)  # fmt: skip
def test_what_it_does_not_is_one_sentence(given, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        NonNegativeInt(**given)
    assert "\n" not in str(caught.value)


def test_positional_arguments_are_named():
    with pytest.raises(ValueError, match=re.escape("rate=-1: give a number of at least 0.")):
        Part(2, -1)


@pytest.mark.parametrize(
    ("args", "given", "said"),
    [((), {"stepz": 1}, "Part has no argument stepz: it takes steps, rate"), ((1, 1, 1), {}, "Part has no argument 2")],
)
def test_unknown_arguments_are_refused_as_pythons_own(args, given, said):
    with pytest.raises(TypeError, match=re.escape(said)):
        Part(*args, **given)


def test_a_missing_argument_is_refused_as_pythons_own():
    @dataclass
    class Needs:
        steps: PositiveInt

    with pytest.raises(TypeError, match="Needs needs steps"):
        Needs()


def test_it_is_a_dataclass_like_any_other():
    made = dataclasses.replace(NonNegativeInt(), steps=3)
    assert made.steps == 3 and made == NonNegativeInt(3) and pickle.loads(pickle.dumps(made)) == made
    assert [field.name for field in dataclasses.fields(Part)] == ["steps", "rate"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.steps = 4
    with pytest.raises(ValueError, match="steps=0"):
        dataclasses.replace(made, steps=0)


def test_an_error_survives_the_way_between_processes():
    with pytest.raises(ValueError) as caught:
        Part(0)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
