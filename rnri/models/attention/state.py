"""State that the attention processors of an edit share: the batch rows of the edits, and the current sampling step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class EditState:
    """The batch rows of source images and edited images, and the index of the current sampling step.

    Args:
        sources: for each prompt of the batch, the batch row of its source prompt; the source of a source prompt is the
            prompt itself.
        steps: function without arguments that returns the number of sampling steps; the function is called during
            sampling.
    """

    def __init__(self, sources: Sequence[int], steps: Callable[[], int]) -> None:
        self.count = len(sources)
        source_of_row = torch.tensor(list(sources))
        self.edits = (source_of_row != torch.arange(self.count)).nonzero()[:, 0]  # [E]
        self.sources = source_of_row[self.edits]  # [E]
        self.step = 0
        self._steps = steps
        self._rows_cache: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return self._steps()

    def rows(self, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the batch rows of the E edits and of their sources in a call of the network, each int64 ``[E]``.

        With classifier-free guidance, the second half of the batch contains the conditional rows. The unconditional
        rows in the first half are not edited.
        """
        if batch_size not in (self.count, 2 * self.count):
            raise ValueError(
                f"the network was called with {batch_size} rows for {self.count} prompts: editing needs a pipeline "
                "that calls the network with one row per prompt, or with two rows per prompt if guidance is on."
            )
        if (batch_size, device) not in self._rows_cache:  # copied to the device once, not in every layer
            first_row = batch_size - self.count
            edits = (self.edits + first_row).to(device)
            sources = (self.sources + first_row).to(device)
            self._rows_cache[batch_size, device] = (edits, sources)
        return self._rows_cache[batch_size, device]
