"""What ``configs/app.yaml`` holds besides a model and a method, checked."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import PositiveFloat, PositiveInt

from rnri.validation import GuidanceScale, NonEmptyStr, dataclass


@dataclass(frozen=True)
class Settings:
    """The keys of the page, as ``configs/app.yaml`` describes them."""

    device: NonEmptyStr
    steps: PositiveInt | None
    guidance: GuidanceScale
    examples: NonEmptyStr | None
    clip: NonEmptyStr
    gradient_steps: PositiveInt
    run: NonEmptyStr | None
    methods: Annotated[list[NonEmptyStr], MinLen(2), MaxLen(3)] | None
    ratings: NonEmptyStr
    host: NonEmptyStr
    port: Annotated[int, Ge(1), Le(65535)]
    megabytes: PositiveFloat
    pixels: PositiveInt
