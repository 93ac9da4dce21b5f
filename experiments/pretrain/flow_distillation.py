"""Training targets of the flow-matching model: the velocities of a noise-predicting teacher, or of the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import (
    SD3Transformer2DModel,
    StableDiffusionPipeline,
)
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.pretrain.distillation import text_states

Targets = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""Maps clean latents, noise levels and caption indices to ``(x, sigma, velocity, features)``."""


class OutputHook:
    """The latest output of a layer, given once: kept, its graph would keep the layer from being copied."""

    def __init__(self, layer: nn.Module) -> None:
        layer.register_forward_hook(self._record)
        self._output: object = None

    def _record(self, _layer: nn.Module, _inputs: object, output: object) -> None:
        self._output = output

    def take(self) -> Tensor | tuple[Tensor, ...]:
        output, self._output = self._output, None
        return output


def feature_tokens(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A layer's map ``[B, C, h, w]`` as ``[B, h w, C]`` of equal norm."""
    features = output[0] if isinstance(output, tuple) else output
    return F.layer_norm(features.flatten(2).transpose(1, 2), features.shape[1:2])


@torch.no_grad()
def hint_channels(pipeline: StableDiffusionPipeline, hint: str, transformer: SD3Transformer2DModel) -> int:
    """Channels of the layer ``hint`` of the pipeline's UNet. ValueError unless its map has a place for every token."""
    unet, config = pipeline.unet.eval(), transformer.config
    try:
        features = OutputHook(unet.get_submodule(hint))
    except AttributeError:
        raise ValueError(
            f"task.hint_layer={hint!r} is no layer of the teacher's UNet: name one, such as up_blocks.1.attentions.1."
        ) from None
    unet(
        torch.zeros(1, unet.config.in_channels, config.sample_size, config.sample_size), 0, text_states(pipeline, [""])
    )
    _, places, channels = feature_tokens(features.take()).shape
    tokens = (config.sample_size // config.patch_size) ** 2
    if places != tokens:
        raise ValueError(
            f"task.hint_layer={hint!r} has a map of {places} places, the transformer {tokens} tokens: name another layer."
        )
    return channels


class Teacher:
    """Velocities of a model that predicts noise, at the same signal-to-noise ratio.

    ``x = (1 - sigma) x0 + sigma n`` divided by ``sqrt((1 - sigma)^2 + sigma^2)`` is the latent ``z`` that a model of
    variance-preserving diffusion knows at the timestep whose ``abar`` is ``(1 - sigma)^2 / ((1 - sigma)^2 + sigma^2)``.
    Its noise prediction gives ``E[x0 | z] = (z - sqrt(1 - abar) eps) / sqrt(abar)``, and the velocity that rectified
    flow learns is ``E[n - x0 | x] = (x - E[x0 | x]) / sigma``: the same mean as that of the data target ``n - x0``,
    without its variance. No guidance is in it.

    The model knows nothing noisier than its last timestep. There ``x`` gets further noise on top of a latent of that
    timestep, whose ``E[x0 | z]`` has the right mean given ``x``.

    Args:
        pipeline: the model.
        states: what its text encoder says of every caption, ``[captions, L, D]``.
        hint: name of the layer whose map, one place a token, is to be told as well.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, states: Tensor, hint: str) -> None:
        self.features = OutputHook(pipeline.unet.get_submodule(hint))
        self.unet = pipeline.unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        a = pipeline.scheduler.alphas_cumprod.double()
        self.alpha, self.level = a.sqrt(), (1 - a).sqrt()
        self.sigma = self.level / (self.alpha + self.level)  # ascending
        self.states = states

    @torch.no_grad()
    def __call__(self, z0: Tensor, sigma: Tensor, captions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(x, sigma, velocity, features [B, tokens, C])`` for latents ``z0``.

        ``sigma [B]`` is moved to that of the timestep below or equal.
        """
        t = (torch.searchsorted(self.sigma, sigma.double(), right=True) - 1).clamp(min=0)
        beyond = sigma.double() > self.sigma[-1]
        sigma = torch.where(beyond, sigma.double(), self.sigma[t])
        alpha, level = (values[t].view(-1, 1, 1, 1).float() for values in (self.alpha, self.level))
        z = alpha * z0 + level * torch.randn_like(z0)
        clean = (z - level * self.unet(z, t, self.states[captions]).sample.float()) / alpha
        # x = (1 - sigma) x0 + sigma n out of z: what z lacks in noise is added.
        sigma = sigma.view(-1, 1, 1, 1)
        share = (1 - sigma) / self.alpha[t].view(-1, 1, 1, 1)
        rest = (sigma**2 - (share * self.level[t].view(-1, 1, 1, 1)) ** 2).clamp(min=0).sqrt()
        x = share.float() * z + rest.float() * torch.randn_like(z)
        return x, sigma.flatten().float(), (x - clean) / sigma.float(), feature_tokens(self.features.take())


def data_targets(z0: Tensor, sigma: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(x, sigma, n - z0, no features)``: the target of rectified flow (Liu et al. 2023, arXiv 2209.03003) itself."""
    noise, level = torch.randn_like(z0), sigma.view(-1, 1, 1, 1)
    return (1 - level) * z0 + level * noise, sigma, noise - z0, torch.empty(len(z0), 0)
