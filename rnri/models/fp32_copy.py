"""A cached float32 copy of a network that overflows in float16."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import ModelMixin

RUNTIME_OPTIONS = ("use_slicing", "use_tiling")
"""Attributes of a diffusers autoencoder, neither weights nor config, that are copied to the float32 copy.

All attributes whose names start with ``tile_`` (the tile sizes) are also copied to the float32 copy.
"""


class Float32Copy:
    """Stores a float32 copy of a diffusers network and creates a new copy when the network has changed.

    ``Float32Copy`` detects a different network, a replaced weight, and in-place changes that PyTorch counts in
    ``tensor._version``, such as changes by ``load_state_dict`` and by optimizers. Changes through ``weight.data``, and
    in-place changes of weights that were created under ``torch.inference_mode``, are not detected.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._copy: ModelMixin | None = None

    def get(self, network: ModelMixin, device: torch.device) -> ModelMixin:
        """Return the float32 copy of ``network`` on ``device``, in evaluation mode and with frozen weights.

        Raises:
            ValueError: the weights are offloaded to the meta device and cannot be read.
        """
        weights = network.state_dict(keep_vars=True)
        key = (network, device, *((name, id(weight), _version(weight)) for name, weight in weights.items()))
        if self._copy is None or key != self._key:
            self._copy = _to_float32(network, weights).to(device)
            self._key = key
        for name, value in vars(network).items():
            if name in RUNTIME_OPTIONS or name.startswith("tile_"):
                setattr(self._copy, name, copy.copy(value))
        return self._copy


def _version(weight: torch.Tensor) -> int | None:
    """Return PyTorch's counter of in-place changes; None for inference tensors, which have no counter."""
    return None if weight.is_inference() else weight._version


@torch.inference_mode(False)
def _to_float32(network: ModelMixin, weights: dict[str, torch.Tensor]) -> ModelMixin:
    if any(weight.is_meta for weight in weights.values()):
        raise ValueError(
            "the VAE overflows in float16, and an offloaded VAE cannot be copied to float32: load the VAE in float32, "
            "or use enable_model_cpu_offload."
        )
    result = type(network).from_config(network.config)
    result.load_state_dict(weights)
    return result.float().eval().requires_grad_(False)
