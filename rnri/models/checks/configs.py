"""Checks of values in the configs of a checkpoint's VAE, scheduler and network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real

from diffusers import DiffusionPipeline

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")

Rule = tuple[Callable[[object], bool], str]
"""A function that returns whether a value is valid, and a description of valid values for error messages."""


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: object) -> bool:
    return _is_finite(value) and value > 0  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_size(value: object) -> bool:
    sides = value if isinstance(value, list | tuple) else (value, value)
    return value is None or (len(sides) == 2 and all(map(_is_count, sides)))


def _optional(is_valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or is_valid(value)


def _list_of(is_valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or (isinstance(value, list | tuple) and all(map(is_valid, value)))


def _one_of(values: tuple[str, ...]) -> Rule:
    return lambda value: value in values, f"one of {', '.join(values)}"


POSITIVE: Rule = (_is_positive, "a finite number > 0")
OPTIONAL_POSITIVE: Rule = (_optional(_is_positive), "null or a finite number > 0")
OPTIONAL_FINITE: Rule = (_optional(_is_finite), "null or a finite number")
COUNT: Rule = (_is_count, "an integer > 0")
BETA: Rule = (lambda value: _is_positive(value) and value < 1, "a number between 0 and 1")  # type: ignore[operator]
NETWORK_RULES: dict[str, Rule] = {"sample_size": (_is_size, "null, an integer > 0, or [height, width]")}

RULES: dict[str, dict[str, Rule]] = {
    "vae": {
        "scaling_factor": POSITIVE,
        "shift_factor": OPTIONAL_FINITE,
        "latents_mean": (_list_of(_is_finite), "null or a list of finite numbers"),
        "latents_std": (_list_of(_is_positive), "null or a list of finite numbers > 0"),
        "latent_channels": COUNT,
    },
    "scheduler": {
        "num_train_timesteps": COUNT,
        "prediction_type": _one_of(PREDICTION_TYPES),
        "beta_schedule": _one_of(BETA_SCHEDULES),
        "beta_start": BETA,
        "beta_end": BETA,
        "timestep_spacing": _one_of(TIMESTEP_SPACINGS),
        "original_inference_steps": COUNT,
        "shift": POSITIVE,
        "base_shift": OPTIONAL_FINITE,
        "max_shift": OPTIONAL_FINITE,
        "shift_terminal": OPTIONAL_POSITIVE,
    },
    "unet": NETWORK_RULES,
    "transformer": NETWORK_RULES,
}
"""Maps each component of a pipeline to the rules for the values in its config."""


def check_config(component: str, config: Mapping[str, object], source: str) -> None:
    """Raise ValueError if a value in the config of a pipeline's component is invalid.

    Args:
        component: name of the component, such as ``vae``; a component without rules is not checked.
        config: the config of the component; keys without a rule are not checked.
        source: file of the config, for the error message.
    """
    for key, (is_valid, rule) in RULES.get(component, {}).items():
        if key in config and not is_valid(config[key]):
            raise ValueError(
                f"{key}={config[key]!r} in {source}: must be {rule}; restore the value of the published checkpoint."
            )


def check_pipeline_configs(pipeline: DiffusionPipeline) -> None:
    """Raise ValueError if a value in the configs of a loaded pipeline is invalid."""
    for name in RULES:
        config = getattr(getattr(pipeline, name, None), "config", None) or {}
        file = "scheduler_config.json" if name == "scheduler" else f"the config.json of the {name}"
        check_config(name, config, file)
