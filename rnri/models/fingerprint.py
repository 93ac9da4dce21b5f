"""What a checkpoint is, as one number: the same wherever it lies, another for whatever changes its output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

FREE_U = ("b1", "b2", "s1", "s2")
TILES = ("use_tiling",)
SAME_MATHEMATICS = ("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "FusedAttnProcessor2_0")
OFFLOAD_HOOKS = ("group_offloading", "lazy_prefetch_group_offloading", "lazy_leafs", "layer_execution_tracker")
"""Hooks of diffusers that say where weights lie, and change no output."""
OFFLOAD_PREFIX = "accelerate."
"""The module of hooks that move weights between devices."""


def fingerprint(modules: Mapping[str, nn.Module], settings: Mapping[str, object]) -> str:
    """A stable SHA-256 of weights (values and dtype), network configs and ``settings``, wherever they lie."""
    digest = hashlib.sha256()
    for name, module in sorted(modules.items()):
        digest.update(f"{name} {_canonical(_config(module))}".encode())
        digest.update(_canonical(runtime_flags(module)).encode())
        for key, tensor in sorted(module.state_dict().items()):
            digest.update(f"{key} ".encode() + _content(tensor))
    digest.update(_canonical(settings).encode())
    return digest.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Hexadecimal SHA-256 of dtype, shape and values."""
    return hashlib.sha256(_content(tensor)).hexdigest()


def _content(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return f"{tensor.dtype} {tuple(tensor.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes()


def _config(module: nn.Module) -> dict[str, object]:
    config = getattr(module, "config", {})
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def _canonical(settings: Mapping[str, object]) -> str:
    """JSON without what says only where or by which version the file was written."""
    kept = {k: v for k, v in settings.items() if not k.startswith("_") and k not in ("transformers_version", "dtype")}
    return json.dumps(kept, sort_keys=True, default=str)


def runtime_flags(module: nn.Module) -> dict[str, object]:
    """What changes a network's output and is no weight: adapters, FreeU, attention processors, hooks, tiling.

    Attributes are those of ``peft``'s layers, diffusers' attention processors and blocks; they are read, not imported.
    """
    found: dict[str, object] = {}
    for name, part in module.named_modules():
        state = _adapters(part)
        state |= {key: getattr(part, key, None) for key in FREE_U if hasattr(part, "resnets")}
        if hasattr(part, "processor"):
            state["processor"] = _processor(part.processor)
        state["hooks"] = _hooks(part) or None
        state = {key: value for key, value in state.items() if value is not None}
        if state:
            found[f"{name}:"] = state
    return found | {key: True for key in TILES if getattr(module, key, False)}


def _processor(processor: object) -> object:
    """An attention processor's class and settings; None for the usual mathematics, however it is computed."""
    kind, settings = _name(processor), _settings(processor)
    return None if type(processor).__name__ in SAME_MATHEMATICS and not settings else [kind, settings]


def _settings(thing: object) -> dict[str, object]:
    """The values that an object holds: numbers, text and tensors, and what is made of them."""
    held = getattr(thing, "__dict__", {})
    found = {key: _plain(value) for key, value in held.items() if not key.startswith("_")}
    return {key: value for key, value in found.items() if value is not None and key != "training"}


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return None


def _hooks(part: nn.Module) -> list[object]:
    """What stands before, behind or in place of a module's ``forward``, but for what only moves weights."""
    given = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
    found: list[object] = [_name(hook) for hook in given if not _name(hook).startswith(OFFLOAD_PREFIX)]
    registry = getattr(part, "_diffusers_hook", None)
    for name, hook in getattr(registry, "hooks", {}).items():
        if name not in OFFLOAD_HOOKS:
            config = getattr(hook, "config", None)
            found.append([name, _name(hook), _settings(hook), {} if config is None else _settings(config)])
    return found


def _name(thing: object) -> str:
    """The place and name of a function, or of an object's class."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _adapters(part: nn.Module) -> dict[str, object]:
    """The adapters of one layer that take part in its output, with their scales."""
    if not hasattr(part, "active_adapters") or not hasattr(part, "scaling"):
        return {}
    active = [] if getattr(part, "disable_adapters", False) else list(part.active_adapters)
    return {"scales": {name: part.scaling.get(name) for name in active}, "merged": getattr(part, "merged_adapters", [])}
