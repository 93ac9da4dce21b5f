"""The short keys ``methods``, ``steps``, ``images``, ``guidance``, ``nfe``, ``prompt`` and ``arms``.

An experiment defines its methods, settings and arms (compared pipelines) below the key ``task``. A short key is a
top-level key that changes the methods, settings or arms without the syntax of Hydra's config groups and lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from experiments.config.project import PROJECT
from rnri.validation import STRICT, ConfigError, describe

SHORT_KEYS = ("methods", "steps", "images", "guidance", "nfe", "prompt", "arms")
NUMBERS = {
    "steps": PositiveInt,
    "nfe": PositiveInt,
    "guidance": Annotated[float, Field(ge=1, allow_inf_nan=False)],
}
"""Types of the short keys whose values are numbers or lists of numbers."""
MAPPINGS = {
    "task.methods": "methods",
    "task.extra_methods": "methods",
    "task.inversions": "methods",
    "task.arms": "arms",
}
"""Config keys of mappings from names to methods or arms (compared pipelines).

The value of each entry is the top-level key that selects methods or arms on the command line.
"""
SPECIAL_SETTINGS = ("edit", "generated", "decoder_iterations")
"""A setting with one of these keys measures something other than the reconstruction of real images.

A setting of an inversion experiment is a combination of methods, number of steps, guidance scale and prompt.
"""
PROMPTS = ("caption", "empty", "wrong")


def apply_short_keys(config: DictConfig) -> None:
    """Change ``config.task`` according to the short keys, which are top-level config keys such as ``steps``.

    Short keys without a value have no effect, and are removed from ``config``.

    A setting of an inversion experiment is a combination of methods, number of steps, guidance scale and prompt. If
    ``methods`` has a value, new settings replace all settings of the experiment. There is one new setting per
    combination of number of steps, guidance scale and prompt, and each new setting contains all ``methods``. The
    default prompt of a new setting is the caption of an image. If ``methods`` has no value, the values of ``steps``,
    ``guidance`` and ``prompt`` are replaced in all settings of the experiment. The guidance scale of a setting with the
    empty prompt is always 1.

    Raises:
        ConfigError: the experiment has no key that the short key changes, or the value of the short key is invalid.
    """
    OmegaConf.set_struct(config, False)
    values = {name: config.pop(name, None) for name in SHORT_KEYS}
    values = {name: value for name, value in values.items() if value is not None}
    if values:
        _check_numbers(values)
        _Task(config, values).apply()
        config.update(values)
    _omit_networks(config)
    OmegaConf.set_struct(config, True)


def list_error(arguments: Sequence[str]) -> str | None:
    """Return an error message if a command-line argument sets a mapping of methods or arms to a list, else None."""
    parser = OverridesParser.create()
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key in MAPPINGS:
            try:
                names = parser.parse_override(argument).value()
            except HydraException:
                continue
            if isinstance(names, list):
                return f"{key}: must be a mapping from names to objects, got {value}; write {MAPPINGS[key]}={value}."
    return None


class _Task:
    """The section ``task`` of a config, and the values of the short keys (such as ``steps``) that change it."""

    def __init__(self, config: DictConfig, values: dict[str, Any]) -> None:
        self.name = config.get("name")
        self.task = config.task
        self.values = values

    def apply(self) -> None:
        if "arms" in self.values:
            self._select_arms(_names("arms", self.values["arms"]))
        if "methods" in self.values:
            self._select_methods(_names("methods", self.values["methods"]))
        if "images" in self.values:
            self._set_images(self.values["images"])
        if "prompt" in self.values:
            _check_prompts(self.values["prompt"])
        if "settings" in self.task:
            self.task.settings = list(self._settings())
            return
        if "nfe" in self.values:
            raise ConfigError(
                "nfe", f"the experiment {self.name} does not set the number of network evaluations; remove nfe."
            )
        if "prompt" in self.values:
            raise ConfigError("prompt", f"the experiment {self.name} does not set the prompt; remove prompt.")
        for name in ("steps", "guidance"):
            if name in self.values:
                self._require(name, name)
                self.task[name] = self.values[name]

    def _require(self, short_key: str, key: str) -> None:
        if key not in self.task:
            raise ConfigError(short_key, f"the experiment {self.name} has no key task.{key}; remove {short_key}.")

    def _select_arms(self, names: list[str]) -> None:
        self._require("arms", "arms")
        arms = self.task.arms
        for name in names:
            if name not in arms:
                choices = ", ".join(arms)
                raise ConfigError("arms", f"{name!r} is not an arm of {self.name}; choose among {choices}.")
        for name in [name for name in arms if name not in names]:
            del arms[name]

    def _select_methods(self, names: list[str]) -> None:
        """Add the selected methods that the experiment does not define; remove methods that are not selected.

        If the experiment has settings, no method is removed, because each setting selects its methods.
        """
        key = next((key for key in ("methods", "inversions") if key in self.task), None)
        if key is None:
            remedy = "choose arms=[...]" if "arms" in self.task else "remove methods"
            raise ConfigError("methods", f"the experiment {self.name} has no methods; {remedy}.")
        groups = [self.task[name] for name in (key, "extra_methods") if name in self.task]
        for name in names:
            if not any(name in group for group in groups):
                self.task[key][name] = _load_method(name, [method for group in groups for method in group])
        if "settings" not in self.task:  # each setting lists its methods by name
            for group in groups:
                for name in [name for name in group if name not in names]:
                    del group[name]

    def _set_images(self, value: object) -> None:
        if value != "all" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError("images", f"must be an integer >= 1 or all, got {value!r}.")
        if "count" in self.task:  # number of edits in an editing experiment
            self.task.count = None if value == "all" else value
            return
        if "samples" in self.task:
            raise ConfigError(
                "images", f"the experiment {self.name} has no key task.images; set data.concepts or task.samples."
            )
        self._require("images", "images")
        self.task.images = value

    def _settings(self) -> Iterator[dict[str, Any]]:
        """Yield the settings of an inversion experiment without duplicates."""
        seen: list[dict[str, Any]] = []
        for setting in self._combined() if "methods" in self.values else self._with_replaced_values():
            if setting not in seen:
                seen.append(setting)
                yield setting

    def _combined(self) -> Iterator[dict[str, Any]]:
        settings = self._plain_settings()
        ordinary = [each for each in settings if not _is_special(each)]
        prompts = self.values.get("prompt", "caption")
        conditions: list[dict[str, Any]] = []
        for each in ordinary or settings:
            base = {"_target_": each.get("_target_"), "methods": _names("methods", self.values["methods"])}
            if "images" in each:
                base["images"] = each["images"]
            if "nfe" in self.values:
                base["nfe"] = _numbers(self.values["nfe"])
            for condition in self._conditions(each, prompts):
                if condition not in conditions:
                    conditions.append(condition)
                    yield {**base, **condition}

    def _with_replaced_values(self) -> Iterator[dict[str, Any]]:
        if "nfe" in self.values:
            raise ConfigError(
                "nfe", "requires methods=[...]: list methods whose number of network evaluations (NFE) can be changed."
            )
        for each in self._plain_settings():
            prompts = self.values.get("prompt", each.pop("prompt", "caption"))
            for condition in self._conditions(each, prompts):
                yield {**each, **condition}

    def _conditions(self, setting: dict[str, Any], prompts: object) -> Iterator[dict[str, Any]]:
        """Yield every combination of a number of steps, a guidance scale and a prompt.

        The numbers of steps and the guidance scales are the values of the top-level config keys ``steps`` and
        ``guidance``. If a top-level key has no value, the value in ``setting`` is used.
        """
        all_steps = _as_list(self.values.get("steps", setting.get("steps")))
        scales = _as_list(self.values.get("guidance", setting.get("guidance", 1.0)))
        for steps, prompt in product(all_steps, _as_list(prompts)):
            for guidance in [1.0] if prompt == "empty" else scales:
                condition = {"steps": steps, "guidance": guidance}
                yield condition if prompt == "caption" else {**condition, "prompt": prompt}

    def _plain_settings(self) -> list[dict[str, Any]]:
        """Return the settings of an inversion experiment as dictionaries.

        If the top-level config key ``images`` or ``steps`` has a value, the key ``images`` of the settings is removed.
        """
        settings = OmegaConf.to_container(self.task.settings, resolve=True)
        dropped = "images" if "images" in self.values or "steps" in self.values else None
        return [{name: value for name, value in each.items() if name != dropped} for each in settings]


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Raise ConfigError if a number of steps, a number of network evaluations or a guidance scale is invalid."""
    for key, hint in NUMBERS.items():
        for number in _as_list(values[key]) if key in values else []:
            try:
                TypeAdapter(hint, config=STRICT).validate_python(number)
            except ValidationError as error:
                raise ConfigError(key, describe(error)) from None


def _check_prompts(value: object) -> None:
    prompts = _as_list(value)
    if not prompts or not all(prompt in PROMPTS for prompt in prompts):
        raise ConfigError("prompt", f"must be some of {', '.join(PROMPTS)}, got {value}; write prompt=[caption,empty].")


def _is_special(setting: Mapping[str, Any]) -> bool:
    """Return whether a setting measures something other than the reconstruction of real images from their captions."""
    has_captions = "caption" in _as_list(setting.get("prompt", "caption"))
    return not has_captions or any(setting.get(name) for name in SPECIAL_SETTINGS)


def _load_method(name: str, defined: Sequence[str]) -> DictConfig:
    folder = PROJECT / "configs" / "method"
    file = folder / f"{name}.yaml"
    if not file.is_file():
        choices = dict.fromkeys([*defined, *sorted(path.stem for path in folder.glob("*.yaml"))])
        raise ConfigError("methods", f"{name!r} is not a method; choose among {', '.join(choices)}.")
    return OmegaConf.load(file)


def _names(key: str, value: object) -> list[str]:
    names = _as_list(value)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(key, f"must be a list of names, such as {key}=[a,b], got {value}.")
    return list(dict.fromkeys(names))


def _numbers(value: object) -> Any:
    return OmegaConf.to_container(value) if isinstance(value, ListConfig) else value


def _as_list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | ListConfig) else [value]


def _omit_networks(config: DictConfig) -> None:
    """Replace the CLIP model of an inversion experiment by None if the path of the model is null.

    The path is null if the user sets ``data.clip_score=null``.
    """
    task = config.get("task")
    if isinstance(task, DictConfig) and "settings" in task and isinstance(task.get("clip"), DictConfig):
        path = task.clip._get_node("path")
        if path is not None and (path._dereference_node() if path._is_interpolation() else path)._is_none():
            task.clip = None
