"""Run a pipeline's networks in evaluation mode without changing them for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_no_grad(*modules: nn.Module) -> Iterator[None]:
    """Put ``modules`` in evaluation mode and disable gradients of their weights inside the block.

    Modes and ``requires_grad`` flags are restored on exit, also after an exception. Gradients to the inputs still
    flow. A backward pass that recomputes the forward pass must enter the block again. The modules are scanned on every
    entry, so changes that the user makes between two entries are respected.
    """
    submodules = _submodules(modules)
    training = [module for module in submodules if module.training]
    weights = [w for module in submodules for w in module._parameters.values() if w is not None and w.requires_grad]
    try:
        for module in training:
            module.training = False  # train() would also change the submodules
        for weight in weights:
            weight.requires_grad = False  # forward-mode differentiation rejects requires_grad_()
        yield
    finally:
        for module in training:
            module.training = True
        for weight in weights:
            weight.requires_grad = True


def _submodules(modules: tuple[nn.Module, ...]) -> list[nn.Module]:
    """Return ``modules`` and all their submodules; a shared submodule may appear twice.

    ``nn.Module.modules()`` builds a name for each submodule and is ten times slower, which matters because this runs
    at every network evaluation.
    """
    result = list(modules)
    for module in result:  # the list grows during the loop
        if module._modules:
            result += [child for child in module._modules.values() if child is not None]
    return result
