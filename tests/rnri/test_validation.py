"""Strict dataclasses: accepted values and the one-line errors for all others."""

import dataclasses
import math
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import pytest
from annotated_types import MinLen
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from rnri.validation import (
    ConfigError,
    GuidanceScale,
    HalfOpenUnitInterval,
    NonEmptyStr,
    RandomSeed,
    dataclass,
    first_line,
    unique_items,
)


@dataclass(frozen=True)
class Part:
    steps: PositiveInt = 2
    rate: NonNegativeFloat = 0.5

    kind: ClassVar[str] = "part"

    def __post_init__(self) -> None:
        if self.rate > self.steps:
            raise ValueError(f"rate={self.rate} is above steps={self.steps}.")


@dataclass(frozen=True)
class Config(Part):
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
    "kwargs",
    [
        {"steps": 1}, {"rate": 0}, {"rate": 1}, {"counts": 3}, {"counts": [1, 2]}, {"counts": (1,)}, {"counts": None},
        {"names": ["a", "b"]}, {"parts": {"x": Part()}}, {"function": abs}, {"on": False}, {"share": 0.3},
        {"start": "fitted"}, {"seed": 2**32 - 1},
    ],
)  # fmt: skip
def test_valid_values_are_stored(kwargs):
    config = Config(**kwargs)
    ((name, value),) = kwargs.items()
    assert getattr(config, name) == value


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "steps: Input should be greater than 0, got 0."),
        ({"steps": 2.0}, "steps: Input should be a valid integer, got 2.0."),
        ({"steps": "3"}, "steps: Input should be a valid integer, got '3'."),
        ({"steps": True}, "steps: Input should be a valid integer, got True."),
        ({"steps": None}, "steps: Input should be a valid integer, got None."),
        ({"rate": math.nan}, "rate: Input should be a finite number, got nan."),
        ({"rate": math.inf}, "rate: Input should be a finite number, got inf."),
        ({"rate": -0.5}, "rate: Input should be greater than or equal to 0, got -0.5."),
        ({"rate": "0.5"}, "rate: Input should be a valid number, got '0.5'."),
        ({"start": "middle"}, "start: Input should be 'plain' or 'fitted', got 'middle'."),
        ({"counts": [1, 0]}, "counts: Input should be a valid integer"),
        ({"names": []}, "names: Value should have at least 1 item"),
        ({"names": ["a", "a"]}, "names: must not contain duplicates, got ['a', 'a']."),
        ({"names": "ab"}, "names: 'str' instances are not allowed as a Sequence value, got 'ab'."),
        ({"names": ["a", ""]}, "names.1: String should have at least 1 character, got ''."),
        ({"parts": {"x": 3}}, "parts.x: Input should be an instance of Part, got 3."),
        ({"function": 3}, "function: Input should be callable, got 3."),
        ({"on": 1}, "on: Input should be a valid boolean, got 1."),
        ({"share": 0}, "share: Input should be greater than 0, got 0."),
        ({"step": 0.0}, "step: Input should be greater than 0, got 0.0."),
        ({"guidance": 0.5}, "guidance: Input should be greater than or equal to 1, got 0.5."),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0, got -1."),
        ({"steps": 1, "rate": 2}, "rate=2.0 is above steps=1."),
    ],
)  # fmt: skip
def test_invalid_values_raise_one_line(kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Config(**kwargs)
    assert "\n" not in str(error.value)


def test_positional_arguments_are_named():
    with pytest.raises(ConfigError, match="rate: Input should be greater than or equal to 0, got -1"):
        Part(2, -1)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"stepz": 1}, "Part got an unexpected argument 'stepz'; its arguments are steps, rate."),
        ((1, 1, 1), {}, "Part got an unexpected argument 2"),
    ],
)
def test_unknown_arguments_raise_type_error(args, kwargs, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        Part(*args, **kwargs)


def test_missing_arguments_raise_type_error():
    @dataclass
    class Required:
        steps: PositiveInt

    with pytest.raises(TypeError, match="Required is missing the argument 'steps'"):
        Required()


def test_replace_equality_pickle_and_frozen_fields():
    config = dataclasses.replace(Config(), steps=3)
    assert config.steps == 3
    assert config == Config(3)
    assert pickle.loads(pickle.dumps(config)) == config
    assert [field.name for field in dataclasses.fields(Part)] == ["steps", "rate"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 4
    with pytest.raises(ConfigError, match="steps: Input should be greater than 0, got 0"):
        dataclasses.replace(config, steps=0)


def test_config_errors_can_be_pickled():
    with pytest.raises(ConfigError) as error:
        Part(0)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


@pytest.mark.parametrize(("error", "line"), [(ValueError("\n one\ntwo"), "one"), (KeyError(), "KeyError")])
def test_first_line_of_an_error(error, line):
    assert first_line(error) == line
