"""Networks that are used as they should be, and left as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_no_grad(*modules: nn.Module) -> Iterator[None]:
    """``modules`` in evaluation mode, without gradients to their weights, for as long as the block runs.

    They belong to the user's pipeline, which is left as it was found, also after an exception. What is computed again
    in a backward pass has to enter the block again. Every entry looks anew, so that a mode, a gradient or an adapter
    that the user changes between two entries is seen.
    """
    parts = _parts(modules)
    training = [part for part in parts if part.training]
    weights = [w for part in parts for w in part._parameters.values() if w is not None and w.requires_grad]
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


def _parts(modules: tuple[nn.Module, ...]) -> list[nn.Module]:
    """``modules`` and all below them; one that is reached twice may stand twice.

    ``nn.Module``'s own walks make a name for each part, which took ten times as long: they stand in every evaluation
    of the network.
    """
    found = list(modules)
    for part in found:  # which grows while it is read
        if part._modules:
            found += [child for child in part._modules.values() if child is not None]
    return found
