"""Networks that are used as they should be, and left as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """``modules`` in evaluation mode, without gradients to their weights, for as long as the block runs.

    They belong to the user's pipeline, which is left as it was found, also after an exception. What is computed again
    in a backward pass has to enter the block again.
    """
    training = [part for module in modules for part in module.modules() if part.training]
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    try:
        for part in training:
            part.training = False  # of this part alone: train() would reach those below it
        for weight in weights:
            weight.requires_grad = False  # not requires_grad_(), which forward-mode differentiation refuses
        yield
    finally:
        for part in training:
            part.training = True
        for weight in weights:
            weight.requires_grad = True
