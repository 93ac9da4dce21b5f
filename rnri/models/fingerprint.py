"""Fingerprint of a checkpoint: a hash of all weights and settings that change the model's output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

FREE_U = ("b1", "b2", "s1", "s2")
TILING_FLAGS = ("use_tiling",)
EQUIVALENT_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "FusedAttnProcessor2_0")
"""Attention processors that compute the same result; replacing one by another does not change the fingerprint."""
OFFLOAD_HOOKS = ("group_offloading", "lazy_prefetch_group_offloading", "lazy_leafs", "layer_execution_tracker")
"""Names of diffusers hooks that move weights between devices and do not change the model's output."""
OFFLOAD_PREFIX = "accelerate."
"""Prefix of the Python modules that define accelerate's hooks, which move weights between devices."""


def fingerprint(modules: Mapping[str, nn.Module], settings: Mapping[str, object]) -> str:
    """Return the hexadecimal SHA-256 hash of weights, dtypes, network configs, runtime flags and ``settings``."""
    digest = hashlib.sha256()
    for name, module in sorted(modules.items()):
        digest.update(f"{name} {_canonical_json(_config(module))}".encode())
        digest.update(_canonical_json(runtime_flags(module)).encode())
        for key, tensor in sorted(module.state_dict().items()):
            digest.update(f"{key} ".encode() + _tensor_bytes(tensor))
    digest.update(_canonical_json(settings).encode())
    return digest.hexdigest()


def is_compiled(network: nn.Module) -> bool:
    """Return whether ``network.compile`` was called."""
    return network._compiled_call_impl is not None


def tensor_digest(tensor: Tensor) -> str:
    """Return the hexadecimal SHA-256 hash of the tensor's dtype, shape and values."""
    return hashlib.sha256(_tensor_bytes(tensor)).hexdigest()


def runtime_flags(module: nn.Module) -> dict[str, object]:
    """Return the settings of a loaded network that change the network's output but are neither weights nor config.

    The returned settings are adapters, FreeU, attention processors, hooks and tiling. The settings are read from
    attributes of ``peft`` layers, of diffusers' attention processors and of diffusers' blocks, without importing
    ``peft`` or diffusers.
    """
    flags: dict[str, object] = {}
    for name, submodule in module.named_modules():
        state = _adapters(submodule)
        state |= {key: getattr(submodule, key, None) for key in FREE_U if hasattr(submodule, "resnets")}
        if hasattr(submodule, "processor"):
            state["processor"] = _processor(submodule.processor)
        state["hooks"] = _hooks(submodule) or None
        state = {key: value for key, value in state.items() if value is not None}
        if state:
            flags[f"{name}:"] = state
    return flags | {key: True for key in TILING_FLAGS if getattr(module, key, False)}


def _tensor_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return f"{tensor.dtype} {tuple(tensor.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes()


def _config(module: nn.Module) -> dict[str, object]:
    config = getattr(module, "config", {})
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def _canonical_json(settings: Mapping[str, object]) -> str:
    """Return ``settings`` as sorted JSON, without private keys, the dtype and the transformers version."""
    ignored = ("transformers_version", "dtype")
    settings = {key: value for key, value in settings.items() if not key.startswith("_") and key not in ignored}
    return json.dumps(settings, sort_keys=True, default=str)


def _processor(processor: object) -> object:
    """Return the class and attributes of an attention processor; None if the processor computes standard attention."""
    attributes = _attributes(processor)
    if type(processor).__name__ in EQUIVALENT_PROCESSORS and not attributes:
        return None
    return [_qualified_name(processor), attributes]


def _attributes(instance: object) -> dict[str, object]:
    """Return the public attributes of ``instance`` that are numbers, strings, tensors, or lists or dicts of these."""
    attributes = getattr(instance, "__dict__", {})
    values = {key: _to_json(value) for key, value in attributes.items() if not key.startswith("_")}
    return {key: value for key, value in values.items() if value is not None and key != "training"}


def _to_json(value: object) -> object:
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    return None


def _hooks(module: nn.Module) -> list[object]:
    """Return the names of the module's forward hooks and the names and settings of its diffusers hooks.

    Hooks that only move weights between devices are not included.
    """
    forward_hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    names = [_qualified_name(hook) for hook in forward_hooks]
    hooks: list[object] = [name for name in names if not name.startswith(OFFLOAD_PREFIX)]
    registry = getattr(module, "_diffusers_hook", None)
    for name, hook in getattr(registry, "hooks", {}).items():
        if name not in OFFLOAD_HOOKS:
            config = getattr(hook, "config", None)
            config_attributes = {} if config is None else _attributes(config)
            hooks.append([name, _qualified_name(hook), _attributes(hook), config_attributes])
    return hooks


def _qualified_name(instance: object) -> str:
    """Return ``module.qualname`` of a function or, for any other object, of the object's class."""
    definition = instance if hasattr(instance, "__qualname__") else type(instance)
    return f"{definition.__module__}.{definition.__qualname__}"


def _adapters(module: Any) -> dict[str, object]:
    """Return the active and merged adapters (LoRAs) of one layer, and the scales of the active adapters."""
    if not hasattr(module, "active_adapters") or not hasattr(module, "scaling"):
        return {}
    active = [] if getattr(module, "disable_adapters", False) else list(module.active_adapters)
    scales = {name: module.scaling.get(name) for name in active}
    return {"scales": scales, "merged": getattr(module, "merged_adapters", [])}
