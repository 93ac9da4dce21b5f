"""Training targets of the flow-matching model: velocities from a teacher that predicts noise, or from the data."""

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
"""A function that maps clean latents, noise levels and caption indices to training targets.

A training target is ``(x, sigma, velocity, features)``: a noisy latent, its noise level, the velocity that the model
has to predict, and the features of the teacher.
"""


class OutputHook:
    """Forward hook that records the latest output of ``layer``.

    The method ``take`` returns the output and removes the output from this object. Without the removal, the layer could
    not be copied with ``deepcopy``, because an output with an autograd graph cannot be copied.
    """

    def __init__(self, layer: nn.Module) -> None:
        layer.register_forward_hook(self._record)
        self._output: object = None

    def _record(self, _layer: nn.Module, _inputs: object, output: object) -> None:
        self._output = output

    def take(self) -> Tensor | tuple[Tensor, ...]:
        output, self._output = self._output, None
        return output


def feature_tokens(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the feature map ``[B, C, h, w]`` of a layer as tokens ``[B, h w, C]`` after layer normalization."""
    features = output[0] if isinstance(output, tuple) else output
    return F.layer_norm(features.flatten(2).transpose(1, 2), features.shape[1:2])


@torch.no_grad()
def hint_channels(pipeline: StableDiffusionPipeline, hint_layer: str, transformer: SD3Transformer2DModel) -> int:
    """Return the number of channels of the U-Net layer ``hint_layer``, whose features the transformer has to predict.

    Raises:
        ValueError: the layer does not exist, or its feature map does not have one position per token of the
            transformer.
    """
    unet = pipeline.unet.eval()
    config = transformer.config
    try:
        features = OutputHook(unet.get_submodule(hint_layer))
    except AttributeError:
        raise ValueError(
            f"task.hint_layer={hint_layer!r} is not a layer of the teacher's U-Net: set it to the name of a layer, "
            "such as up_blocks.1.attentions.1."
        ) from None
    z = torch.zeros(1, unet.config.in_channels, config.sample_size, config.sample_size)
    unet(z, 0, text_states(pipeline, [""]))
    _, positions, channels = feature_tokens(features.take()).shape
    tokens = (config.sample_size // config.patch_size) ** 2
    if positions != tokens:
        raise ValueError(
            f"task.hint_layer={hint_layer!r} has a feature map with {positions} positions, but the transformer has "
            f"{tokens} tokens: choose a layer whose feature map has {tokens} positions."
        )
    return channels


class VelocityTeacher:
    """Computes velocities of rectified flow from a teacher that predicts noise, without guidance.

    Rectified flow has the noisy latent ``x = (1 - sigma) x0 + sigma n``, where ``x0`` is the clean latent, ``n`` is
    noise and ``sigma`` is the noise level. Division of ``x`` by ``sqrt((1 - sigma)^2 + sigma^2)`` gives a latent ``z``
    of variance-preserving diffusion with the same signal-to-noise ratio. At the timestep of ``z``, the value of
    ``alphas_cumprod`` is ``abar = (1 - sigma)^2 / ((1 - sigma)^2 + sigma^2)``. The noise ``eps`` that the teacher
    predicts gives the clean latent ``E[x0 | z] = (z - sqrt(1 - abar) eps) / sqrt(abar)``. The clean latent gives the
    velocity ``E[n - x0 | x] = (x - E[x0 | x]) / sigma``. The usual training target of rectified flow is ``n - x0``. The
    velocity ``E[n - x0 | x]`` is the conditional mean of this target, and therefore has a smaller variance.

    If ``sigma`` is greater than the noise level of the teacher's last timestep, ``z`` is a latent at the last timestep,
    and ``x`` is obtained by adding noise to ``z``. Also in this case, the conditional mean of ``E[x0 | z]`` given ``x``
    is ``E[x0 | x]``.

    Args:
        pipeline: pipeline of the teacher.
        states: hidden states of the text encoder for every caption, ``[captions, L, D]``.
        hint_layer: name of the U-Net layer whose features are part of the targets. The feature map of the layer must
            have one position per token of the transformer.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, states: Tensor, hint_layer: str) -> None:
        self.features = OutputHook(pipeline.unet.get_submodule(hint_layer))
        self.unet = pipeline.unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        a = pipeline.scheduler.alphas_cumprod.double()
        self.alpha = a.sqrt()
        self.noise_level = (1 - a).sqrt()
        self.sigma = self.noise_level / (self.alpha + self.noise_level)  # in ascending order
        self.states = states

    @torch.no_grad()
    def __call__(self, z0: Tensor, sigma: Tensor, captions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the targets ``(x, sigma, velocity, features [B, tokens, C])`` for clean latents ``z0``.

        The returned noise levels ``sigma [B]`` are rounded down to noise levels of the teacher. A noise level that is
        greater than all noise levels of the teacher is not rounded.
        """
        t = (torch.searchsorted(self.sigma, sigma.double(), right=True) - 1).clamp(min=0)
        beyond = sigma.double() > self.sigma[-1]
        sigma = torch.where(beyond, sigma.double(), self.sigma[t])
        alpha, level = (values[t].view(-1, 1, 1, 1).float() for values in (self.alpha, self.noise_level))
        z = alpha * z0 + level * torch.randn_like(z0)
        clean = (z - level * self.unet(z, t, self.states[captions]).sample.float()) / alpha
        # Rescale z and add the missing noise, so that x = (1 - sigma) x0 + sigma n.
        sigma = sigma.view(-1, 1, 1, 1)
        scale = (1 - sigma) / self.alpha[t].view(-1, 1, 1, 1)
        missing = (sigma**2 - (scale * self.noise_level[t].view(-1, 1, 1, 1)) ** 2).clamp(min=0).sqrt()
        x = scale.float() * z + missing.float() * torch.randn_like(z)
        return x, sigma.flatten().float(), (x - clean) / sigma.float(), feature_tokens(self.features.take())


def data_targets(z0: Tensor, sigma: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the training targets of rectified flow without a teacher (Liu et al. 2023, arXiv 2209.03003).

    The velocity of a target is ``n - z0``, where ``z0`` is the clean latent and ``n`` is the noise.
    """
    noise = torch.randn_like(z0)
    level = sigma.view(-1, 1, 1, 1)
    return (1 - level) * z0 + level * noise, sigma, noise - z0, torch.empty(len(z0), 0)
