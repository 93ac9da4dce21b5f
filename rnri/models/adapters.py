"""Changes to a pipeline right after loading: replace its scheduler, or fuse a LoRA into its weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Container, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten

import diffusers
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.lora_base import _fetch_state_dict
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from torch import Tensor, nn

from rnri.models.diffusers_schedulers import base_scheduler, is_flow
from rnri.models.family import components

SHIFT_NAMES = ("shift", "flow_shift")
"""Names of the shift of the flow-matching noise levels in the configs of diffusers' schedulers."""

IGNORED_WEIGHTS = ("dora_scale", ".diff", "position_embedding")
"""Parts of the names of weights in LoRA files that diffusers ignores with a warning."""

TEXT_ENCODER_LAYER = re.compile(r"^(lora_te|text_encoder).*(lora_down|lora\.down|lora_A|lora_linear_layer\.down)")
"""Pattern of the names of LoRA weights of text encoders; the pattern matches one weight per layer."""


def check_scheduler_name(name: str | None) -> None:
    """Raise ValueError unless ``name`` is None or the name of a scheduler class of diffusers."""
    if name is None:
        return
    scheduler_class = getattr(diffusers, name, None)
    if not isinstance(scheduler_class, type) or not issubclass(scheduler_class, SchedulerMixin):
        raise ValueError(f"scheduler={name!r}: must be a scheduler class of diffusers, such as LCMScheduler.")


def set_scheduler(pipeline: DiffusionPipeline, name: str) -> None:
    """Set ``pipeline.scheduler`` to a scheduler of the class ``name``, created from the old scheduler's config.

    Settings that have another name in the new class are renamed: the shift of flow matching (``shift`` or
    ``flow_shift``), and the setting that the network predicts a flow-matching velocity. As in diffusers, a setting that
    only the new class has gets the default value of the new class. For example, the last step of a new
    ``DPMSolverMultistepScheduler`` ends at noise level 0 (``final_sigmas_type``), independent of ``set_alpha_to_one``
    of an old ``DDIMScheduler``.

    Raises:
        ValueError: the old scheduler rescales its betas to zero terminal SNR, which the new class does not support.
    """
    new_class = getattr(diffusers, name)
    config = pipeline.scheduler.config
    parameters = inspect.signature(new_class).parameters
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in parameters:
        raise ValueError(
            f"scheduler={name!r}: the checkpoint's betas are rescaled (rescale_betas_zero_snr), which {name} does not "
            "support; use a scheduler with this setting, such as DDIMScheduler."
        )
    pipeline.scheduler = new_class.from_config(config, **_renamed_settings(pipeline.scheduler, parameters))


def _renamed_settings(scheduler: SchedulerMixin, parameters: Container[str]) -> dict[str, object]:
    """Return the settings of ``scheduler`` that have another name in the new scheduler's class, under the new names.

    ``parameters`` are the names of the arguments of the new class. ``from_config`` of diffusers would replace these
    settings by the defaults of the new class.
    """
    scheduler = base_scheduler(scheduler)
    old_parameters = inspect.signature(type(scheduler)).parameters
    settings: dict[str, object] = {}
    # If the scheduler replaced an older scheduler, its config may contain the shift under both names. Only the name
    # that is an argument of the scheduler's own class is in effect.
    old_name = next((key for key in SHIFT_NAMES if key in old_parameters), None)
    new_name = next((key for key in SHIFT_NAMES if key in parameters), None)
    if old_name is not None and new_name is not None:
        settings[new_name] = scheduler.config[old_name]
    if is_flow(scheduler) and "use_flow_sigmas" in parameters:  # the class FlowMatch... implies these settings
        settings |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    return settings


def check_lora(path: str | Path | None) -> None:
    """Raise ValueError if ``path`` is not None and the package ``peft``, which loads LoRAs, is not installed."""
    if path is not None and find_spec("peft") is None:
        raise ValueError(f"lora={str(path)!r} needs the package peft: install it with pip install peft.")


def load_lora(pipeline: DiffusionPipeline, path: str | Path, *, local_files_only: bool) -> None:
    """Load a LoRA by ``pipeline.load_lora_weights(path)`` and fuse it into the pipeline's weights.

    Without fusing, each call of a small network would take more than 1.5 times as long.

    Raises:
        ValueError: the LoRA cannot be found or read, has weights that diffusers ignores (DoRA), or has a layer that the
            pipeline does not have.
    """
    try:
        raw = _read_file(path, local_files_only=local_files_only)
        layers = _layers(_convert(pipeline, path, local_files_only=local_files_only))
    except Exception as error:  # damaged files raise errors of various types
        raise ValueError(f"lora {str(path)!r} could not be loaded: {shorten(str(error), 300)}") from error
    _check_no_ignored_weights(path, raw)
    _check_layers(path, layers, _modules(pipeline))
    try:
        pipeline.load_lora_weights(str(path), local_files_only=local_files_only)
    except Exception as error:  # weights of a wrong shape raise errors of various types
        raise ValueError(f"lora {str(path)!r} could not be loaded: {shorten(str(error), 300)}") from error
    adapted = {name: module for name, module in _modules(pipeline).items() if getattr(module, "lora_A", None)}
    _check_layers(path, layers, adapted)
    in_text_encoders = [name for name in raw if TEXT_ENCODER_LAYER.search(name)]
    _check_layers(path, in_text_encoders[sum(name.startswith("text_encoder") for name in adapted) :], ())
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def _read_file(path: str | Path, *, local_files_only: bool) -> dict[str, Tensor]:
    """Return the tensors of a LoRA file, with the names in the file."""
    return _fetch_state_dict(
        str(path),
        weight_name=None,
        use_safetensors=True,
        local_files_only=local_files_only,
        cache_dir=None,
        force_download=False,
        proxies=None,
        token=None,
        revision=None,
        subfolder=None,
        user_agent={},
        allow_pickle=True,
    )[0]


def _convert(pipeline: DiffusionPipeline, path: str | Path, *, local_files_only: bool) -> dict[str, Tensor]:
    """Return the tensors of a LoRA file, with the names to which diffusers' ``load_lora_weights`` converts them."""
    is_xl = isinstance(pipeline, StableDiffusionXLPipeline)
    options = {"unet_config": pipeline.unet.config} if is_xl else {}
    converted = pipeline.lora_state_dict(str(path), local_files_only=local_files_only, **options)
    return converted[0] if isinstance(converted, tuple) else converted


def _check_no_ignored_weights(path: str | Path, raw: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a LoRA file has nonzero weights that diffusers ignores with a warning.

    ``raw`` maps the names of the weights in the file ``path`` to the weights.
    """
    ignored = [name for name, weight in raw.items() if any(map(name.__contains__, IGNORED_WEIGHTS)) and weight.any()]
    if ignored:
        kind = " (it is a DoRA)" if "dora_scale" in ignored[0] else ""
        raise ValueError(
            f"lora {str(path)!r} has {len(ignored)} weights that diffusers ignores, such as {ignored[0]}{kind}: use "
            "a LoRA without these weights."
        )


def _layers(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the layers of a LoRA, such as ``unet.mid_block.attentions.0.proj_in``.

    The names in ``weights`` may have any format that diffusers supports; they are converted to the format of the
    package ``peft``.
    """
    layers: dict[str, None] = {}
    for component in dict.fromkeys(name.partition(".")[0] for name in weights):
        state = {name.partition(".")[2]: weight for name, weight in weights.items() if name.startswith(f"{component}.")}
        state = {name: weight for name, weight in state.items() if "lora" in name}
        if component.startswith("text_encoder"):
            state = convert_state_dict_to_peft(convert_state_dict_to_diffusers(state))
        elif not any("lora_A" in name for name in state):
            state = convert_unet_state_dict_to_peft(state)
        layers |= dict.fromkeys(_module_name(component, name.rpartition(".lora_")[0]) for name in state)
    if not layers:
        raise ValueError("the file has no LoRA weights")
    return sorted(layers)


def _modules(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    return {
        _module_name(component, name): module
        for component, network in components(pipeline).items()
        for name, module in network.named_modules()
    }


def _module_name(component: str, name: str) -> str:
    """Return ``component.name`` without the prefix ``text_model.`` of ``name``, which not all versions of CLIP use."""
    return f"{component}.{name.removeprefix('text_model.')}"


def _check_layers(path: str | Path, layers: Sequence[str], available: Container[str]) -> None:
    """Raise ValueError if a layer in ``layers`` of the LoRA at ``path`` is not in ``available``.

    ``available`` contains the names of the pipeline's modules.
    """
    missing = [layer for layer in layers if layer not in available]
    if missing:
        raise ValueError(
            f"lora {str(path)!r} does not fit this checkpoint: {len(missing)} of its {len(layers)} layers, "
            f"such as {missing[0]}, do not exist in the checkpoint; use a LoRA of the same architecture."
        )
