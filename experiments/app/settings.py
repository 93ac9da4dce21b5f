"""Types of the settings in ``configs/app.yaml``, except for the keys ``model``, ``method`` and ``select``."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import PositiveFloat, PositiveInt

from rnri.validation import GuidanceScale, NonEmptyStr, dataclass


@dataclass(frozen=True)
class Settings:
    """The settings of the page. The comments in ``configs/app.yaml`` describe the settings."""

    device: NonEmptyStr
    steps: PositiveInt | None
    guidance: GuidanceScale
    examples: NonEmptyStr | None
    clip: NonEmptyStr
    classifier: NonEmptyStr | None
    gradient_steps: PositiveInt
    run: NonEmptyStr | None
    methods: Annotated[list[NonEmptyStr], MinLen(2), MaxLen(3)] | None
    results: bool
    ratings: NonEmptyStr
    host: NonEmptyStr
    port: Annotated[int, Ge(1), Le(65535)]
    max_upload_mb: PositiveFloat
    max_upload_pixels: PositiveInt
