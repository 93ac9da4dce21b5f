"""Validation of trainer options of Lightning; the rules depend on whether an experiment trains a network.

An experiment that trains no network runs prediction loops, which compute the units (pieces of work) of the experiment.
An experiment that trains no network must compute all units, and must not set the options of a training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from annotated_types import Interval
from omegaconf import DictConfig, OmegaConf
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from experiments.config.paths import keys, resolve
from rnri.validation import NonEmptyStr

UNIT_PRECISIONS = (None, 32, "32", "32-true", 16, "16", "16-mixed", "bf16", "bf16-mixed")
"""Values of ``trainer.precision`` for which Lightning does not convert the weights of the networks to another dtype."""
TRAINING_OPTIONS = (
    "accumulate_grad_batches",
    "barebones",
    "check_val_every_n_epoch",
    "fast_dev_run",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_predict_batches",
    "limit_test_batches",
    "limit_train_batches",
    "limit_val_batches",
    "log_every_n_steps",
    "max_epochs",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "num_sanity_val_steps",
    "overfit_batches",
    "reload_dataloaders_every_n_epochs",
    "sync_batchnorm",
    "val_check_interval",
)
"""Trainer options that control a training. An experiment that trains no network must not set these options."""
Fraction = Annotated[float, Interval(gt=0, le=1)]
"""Fraction of the batches of an epoch."""
TRAINING_TYPES: dict[str, Any] = {
    "accumulate_grad_batches": PositiveInt,
    "check_val_every_n_epoch": PositiveInt | None,
    "fast_dev_run": Literal[False],
    "gradient_clip_val": PositiveFloat | None,
    "inference_mode": Literal[False],
    "limit_train_batches": PositiveInt | Fraction | None,
    "log_every_n_steps": NonNegativeInt | None,
    "max_epochs": PositiveInt | Literal[-1] | None,
    "max_steps": PositiveInt,
    "val_check_interval": PositiveInt | Fraction | NonEmptyStr | dict | None,
}
"""Types of trainer options for experiments that train a network; the types are stricter than Lightning's type hints."""


def is_training(config: DictConfig) -> bool:
    """Return whether the experiment trains a network, that is, whether its trainer saves checkpoints."""
    callbacks = OmegaConf.select(config, "trainer.callbacks")
    targets = [str(entry.get("_target_")) for entry in callbacks or [] if isinstance(entry, DictConfig)]
    return any(target.endswith(".ModelCheckpoint") for target in targets)


def precision_error(precision: object, dtype: object) -> str | None:
    """Return an error message if ``trainer.precision`` would convert the networks to another dtype, else None.

    Args:
        precision: value of ``trainer.precision``.
        dtype: value of ``model.dtype``, the dtype of the networks.
    """
    if precision in UNIT_PRECISIONS:
        return None
    names = {"16-true": "float16", "bf16-true": "bfloat16", "64-true": "float64", "64": "float64"}
    wanted = names.get(str(precision), str(dtype))
    return (
        f"trainer.precision: must be 32-true, 16-mixed or bf16-mixed, because the networks have the dtype model.dtype, "
        f"got {precision!r}; set model.dtype={wanted} and trainer.precision=32-true."
    )


def option_errors(config: DictConfig, value_error: Callable[[str, Any, Any], str | None]) -> list[str]:
    """Return the error messages for invalid options of the trainer.

    Args:
        value_error: function of a key, a value and a type that returns an error message if the value is invalid, else
            None.
    """
    names = [name for name in keys(resolve(config, "trainer")[1]) if config.trainer[name] is not None]
    if is_training(config):
        types = {name: hint for name, hint in TRAINING_TYPES.items() if name in names}
        errors = [value_error(f"trainer.{name}", _value(config, name), hint) for name, hint in types.items()]
        return [error for error in errors if error]
    errors = [
        f"trainer.{name}: must not be set in an experiment that trains no network, "
        f"got {_value(config, name)!r}; remove it. To shorten the run, set task.images or data.concepts."
        for name in names
        if name in TRAINING_OPTIONS
    ]
    for name in ("inference_mode", "use_distributed_sampler"):
        if name in names and (error := value_error(f"trainer.{name}", _value(config, name), Literal[False])):
            errors.append(error)
    if "precision" in names and (error := precision_error(_value(config, "precision"), _dtype(config))):
        errors.append(error)
    return errors


def _value(config: DictConfig, name: str) -> Any:
    value = config.trainer[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _dtype(config: DictConfig) -> str:
    return str(OmegaConf.select(config, "model.dtype") or "float32")
