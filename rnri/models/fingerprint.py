"""What a checkpoint is, as one number: the same wherever it lies, another for whatever changes its output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import nn

FREE_U = ("b1", "b2", "s1", "s2")
TILES = ("use_tiling",)
SAME_MATHEMATICS = ("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "FusedAttnProcessor2_0")


def fingerprint(modules: Mapping[str, nn.Module], settings: Mapping[str, object]) -> str:
    """A stable SHA-256 of weights (values and dtype), network configs and ``settings``, wherever they lie."""
    digest = hashlib.sha256()
    for name, module in sorted(modules.items()):
        digest.update(f"{name} {_canonical(_config(module))}".encode())
        digest.update(_canonical(switches(module)).encode())
        for key, tensor in sorted(module.state_dict().items()):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy())
    digest.update(_canonical(settings).encode())
    return digest.hexdigest()


def _config(module: nn.Module) -> dict[str, object]:
    config = getattr(module, "config", {})
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def _canonical(settings: Mapping[str, object]) -> str:
    """JSON without what says only where or by which version the file was written."""
    kept = {k: v for k, v in settings.items() if not k.startswith("_") and k not in ("transformers_version", "dtype")}
    return json.dumps(kept, sort_keys=True, default=str)


def switches(module: nn.Module) -> dict[str, object]:
    """What changes a network's output and is no weight: adapters (which, at what scale, on or off), FreeU, tiling.

    Attributes are those of ``peft``'s layers, diffusers' attention processors and blocks; they are read, not imported.
    """
    found: dict[str, object] = {}
    for name, part in module.named_modules():
        state = _adapters(part)
        state |= {key: getattr(part, key, None) for key in FREE_U if hasattr(part, "resnets")}
        if hasattr(part, "processor"):
            kind = type(part.processor).__name__
            state["processor"] = None if kind in SAME_MATHEMATICS else kind
            state["scale"] = getattr(part.processor, "scale", None)
        state = {key: value for key, value in state.items() if value is not None}
        if state:
            found[f"{name}:"] = state
    return found | {key: True for key in TILES if getattr(module, key, False)}


def _adapters(part: nn.Module) -> dict[str, object]:
    """The adapters of one layer that take part in its output, with their scales."""
    if not hasattr(part, "active_adapters") or not hasattr(part, "scaling"):
        return {}
    active = [] if getattr(part, "disable_adapters", False) else list(part.active_adapters)
    return {"scales": {name: part.scaling.get(name) for name in active}, "merged": getattr(part, "merged_adapters", [])}
