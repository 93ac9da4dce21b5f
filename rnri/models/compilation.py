"""Compile a denoising network with ``torch.compile`` for static shapes."""

from __future__ import annotations

import torch
from torch import nn

from rnri.validation import ConfigError

CUDA_GRAPHS = "reduce-overhead"
"""Mode of ``torch.compile`` that captures the kernel launches of a network in a CUDA graph."""

MAX_BATCH_SIZES = 64
"""Maximum number of batch sizes for which a network is compiled."""


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Compile ``network`` in place; the first call for each batch size compiles, which takes up to minutes.

    On CUDA, the launches of the compiled network are captured in CUDA graphs. PyTorch compiles a network for at most
    ``torch._dynamo.config.recompile_limit`` batch sizes, 8 by default, and evaluates all other batch sizes without
    compilation. ``compile_network`` sets ``recompile_limit`` to at least 64 for the whole process.

    Raises:
        ConfigError: PyTorch finds no compiler for the device.
    """
    from torch._dynamo import config  # this import takes seconds

    check_compiler(device)
    config.recompile_limit = max(config.recompile_limit, MAX_BATCH_SIZES)
    network.compile(dynamic=False, mode=CUDA_GRAPHS if device.type == "cuda" else None)


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError if PyTorch does not find the compiler that ``torch.compile`` needs on ``device``."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # this import takes seconds
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if device.type == "cuda" and not has_triton():
        raise ConfigError("compile", "needs the package triton on CUDA; install triton, or set compile to false.")
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        raise ConfigError(
            "compile",
            "needs a C++ compiler such as g++, and PyTorch finds none; install a compiler, or set compile to false.",
        ) from None
