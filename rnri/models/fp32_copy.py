"""A network in single precision beside one in half precision, which stays as it is."""

from __future__ import annotations

import copy

import torch
from torch import nn

SETTINGS = ("use_slicing", "use_tiling")
"""Switches of a diffusers autoencoder that are neither weights nor configuration; tiles' sizes begin with ``tile_``."""


class Float32Copy:
    """The float32 copy of a diffusers network, made once and made anew when the network has changed.

    A change is another network, another weight, or one that was written in place, as ``load_state_dict`` and
    optimizers write. What is written through ``weight.data`` leaves no sign, and is not seen.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._copy: nn.Module | None = None

    def get(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The copy of ``network`` on ``device``, in evaluation mode and without gradients to its weights.

        Raises:
            ValueError: the weights lie offloaded where they cannot be read.
        """
        weights = network.state_dict(keep_vars=True)
        key = (network, device, *((name, id(weight), weight._version) for name, weight in weights.items()))
        if self._copy is None or key != self._key:
            self._copy, self._key = _single(network, weights).to(device), key
        for name, value in vars(network).items():
            if name in SETTINGS or name.startswith("tile_"):
                setattr(self._copy, name, copy.copy(value))
        return self._copy


def _single(network: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    if any(weight.is_meta for weight in weights.values()):
        raise ValueError(
            "the VAE overflows in half precision and lies offloaded where no copy can be made: load it in float32, "
            "or use enable_model_cpu_offload."
        )
    single = type(network).from_config(network.config)
    single.load_state_dict(weights)
    return single.float().eval().requires_grad_(False)
