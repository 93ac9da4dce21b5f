"""Settings whose type, range and finiteness are checked when an object is made of them; it knows nothing of ours."""

from checked.settings import CONFIG, SettingError, dataclass
from checked.types import (
    AtLeastTwo,
    Count,
    Dtype,
    Fraction,
    Guidance,
    Name,
    NotNegative,
    OpenFraction,
    Positive,
    Seed,
    Share,
    Whole,
    distinct,
)
from checked.words import expected, parameter_hints, refusal

__all__ = [
    "CONFIG",
    "AtLeastTwo",
    "Count",
    "Dtype",
    "Fraction",
    "Guidance",
    "Name",
    "NotNegative",
    "OpenFraction",
    "Positive",
    "Seed",
    "SettingError",
    "Share",
    "Whole",
    "dataclass",
    "distinct",
    "expected",
    "parameter_hints",
    "refusal",
]
