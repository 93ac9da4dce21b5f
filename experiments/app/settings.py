"""What ``configs/app.yaml`` holds besides a model and a method, checked."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le, MaxLen, MinLen

from checked import Count, Guidance, Name, Positive, dataclass


@dataclass(frozen=True)
class Settings:
    """The keys of the page, as ``configs/app.yaml`` describes them."""

    device: Name
    steps: Count | None
    guidance: Guidance
    examples: Name | None
    clip: Name
    gradient_steps: Count
    run: Name | None
    methods: Annotated[list[Name], MinLen(2), MaxLen(3)] | None
    ratings: Name
    host: Name
    port: Annotated[int, Ge(1), Le(65535)]
    megabytes: Positive
    pixels: Count
