"""Run a pipeline's networks in evaluation mode and restore their training mode afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

_PREPARED: ContextVar[frozenset[nn.Module]] = ContextVar("prepared", default=frozenset())
"""The networks that enclosing ``eval_no_grad`` blocks have already put in evaluation mode."""


@contextmanager
def eval_no_grad(*modules: nn.Module) -> Iterator[None]:
    """Put ``modules`` in evaluation mode and disable gradients of their weights inside the ``with`` block.

    Training modes and ``requires_grad`` flags are restored on exit, also after an exception. Gradients with respect to
    the inputs are still computed. A backward pass that recomputes the forward pass must enter the ``with`` block again.
    The modes and flags are read on every entry, so changes that the user makes between two entries into such blocks are
    preserved. Entering ``eval_no_grad`` again inside a block for the same modules does nothing. Reading all modes and
    flags takes about a hundredth of the running time of a small network; therefore inversion and sampling enter one
    block around all their network evaluations.
    """
    prepared = _PREPARED.get()
    modules = tuple(module for module in modules if module not in prepared)
    if not modules:
        yield
        return
    submodules = _submodules(modules)
    training = [module for module in submodules if module.training]
    weights = [w for module in submodules for w in module._parameters.values() if w is not None and w.requires_grad]
    token = _PREPARED.set(prepared | set(modules))
    try:
        for module in training:
            module.training = False  # module.train(False) would also change the submodules
        for weight in weights:
            weight.requires_grad = False  # forward-mode differentiation rejects requires_grad_()
        yield
    finally:
        _PREPARED.reset(token)
        for module in training:
            module.training = True
        for weight in weights:
            with torch.inference_mode(weight.is_inference()):  # otherwise the flag of an inference tensor is read-only
                weight.requires_grad = True


def _submodules(modules: tuple[nn.Module, ...]) -> list[nn.Module]:
    """Return ``modules`` and all their submodules; a submodule with two parents may appear twice.

    ``nn.Module.modules()`` also builds the name of each submodule and is ten times slower than this function. The speed
    matters because ``_submodules`` is called in every network evaluation outside of inversion and sampling.
    """
    result = list(modules)
    for module in result:  # the list grows during the loop
        if module._modules:
            result += [child for child in module._modules.values() if child is not None]
    return result
