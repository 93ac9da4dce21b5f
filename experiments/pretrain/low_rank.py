"""Low-rank updates (LoRA) of the weights of a frozen network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import Tensor, nn
from torch.func import functional_call

from rnri.loading import read_weights

EXCLUDED_LAYERS = ("conv_in", "conv_out")  # without LoRA, because these layers have only four input or output channels


class LowRank(nn.Module):
    """LoRA: replaces the weight ``W`` of linear and convolutional layers by ``W + B A`` with trainable ``A`` and ``B``.

    The method is LoRA (Hu et al. 2022, arXiv 2106.09685) with alpha equal to the rank. All linear and convolutional
    layers of the network are updated, except the first and the last layer. The sum ``W + B A`` is computed once per
    training step, because separate layers ``A`` and ``B`` would be slower for a batch of images. The network is not
    changed, and is not part of the state dict of this module.

    Args:
        network: the frozen network.
        rank: rank of the updates. In each layer, the rank is limited to the smaller dimension of the weight matrix.
    """

    def __init__(self, network: nn.Module, rank: int) -> None:
        super().__init__()
        self.layers = [
            name
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and name not in EXCLUDED_LAYERS
        ]
        shapes = [network.get_submodule(name).weight.shape for name in self.layers]
        self.down = nn.ParameterList(torch.empty(_rank(shape, rank), *shape[1:]) for shape in shapes)
        self.up = nn.ParameterList(torch.zeros(shape[0], _rank(shape, rank)) for shape in shapes)
        for down in self.down:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        self.frozen = _Frozen(network)

    def weights(self) -> dict[str, Tensor]:
        """Return a dict from the name of each updated weight in the network to its value ``W + B A``."""
        layers = zip(self.layers, self.down, self.up, strict=True)
        return {f"{name}.weight": self._base(name) + _product(up, down) for name, down, up in layers}

    def _base(self, layer: str) -> Tensor:
        return self.frozen.network.get_submodule(layer).weight

    def run(self, weights: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        """Return the output of the network with the weights ``weights`` for ``inputs``, float32 ``[B, C, h, w]``."""
        return functional_call(self.frozen.network, dict(weights), inputs, {"return_dict": False})[0].float()

    @torch.no_grad()
    def update_average(self, other: LowRank, decay: float) -> None:
        """Update the parameters of this module as an exponential moving average of the parameters of ``other``.

        Each parameter ``p`` becomes ``decay * p + (1 - decay) * q``, where ``q`` is the same parameter of ``other``.
        """
        torch._foreach_lerp_(list(self.parameters()), list(other.parameters()), 1 - decay)

    def peft_state_dict(self) -> dict[str, Tensor]:
        """Return the float16 state dict for ``StableDiffusionPipeline.save_lora_weights``."""
        state = {}
        for name, down, up in zip(self.layers, self.down, self.up, strict=True):
            kernel = (1, 1) * (down.dim() == 4)
            state[f"{name}.lora_A.weight"] = down.detach().half().contiguous()
            state[f"{name}.lora_B.weight"] = up.detach().reshape(*up.shape, *kernel).half().contiguous()
        return state

    @torch.no_grad()
    def load(self, folder: str) -> None:
        """Load the LoRA in ``folder``, which was saved from :meth:`peft_state_dict`.

        Raises:
            ValueError: the file cannot be read, or a weight is missing or has another shape.
        """
        try:
            state = read_weights(Path(folder) / LORA_WEIGHT_NAME_SAFE)
            for name, down, up in zip(self.layers, self.down, self.up, strict=True):
                _copy(down, state.pop(f"unet.{name}.lora_A.weight"))
                _copy(up, state.pop(f"unet.{name}.lora_B.weight").flatten(1))
            if state:
                raise ValueError(f"the model has no weight {next(iter(state))}")
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"task.init_from={folder!r} does not contain a LoRA for this model with the rank task.rank ({error}): "
                "set it to the folder of such a LoRA."
            ) from None


def _copy(target: Tensor, values: Tensor) -> None:
    if target.shape != values.shape:  # Tensor.copy_ would broadcast a tensor of another shape
        raise ValueError(f"got a weight of shape {list(values.shape)} instead of {list(target.shape)}")
    target.copy_(values)


class _Frozen:
    """Wraps a frozen network, so that the network is not registered as a submodule of the module that contains it.

    A deep copy of the wrapper contains the same network object instead of a copy of the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict) -> _Frozen:
        return self


def _rank(shape: torch.Size, rank: int) -> int:
    return min(rank, shape[0], math.prod(shape[1:]))


def _product(up: Tensor, down: Tensor) -> Tensor:
    return (up @ down.flatten(1)).view(up.shape[0], *down.shape[1:])
