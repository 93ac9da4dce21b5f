"""State that the attention processors of one edit share: which rows are edits, and the current step of the sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class EditState:
    """Source and edit rows of a batch, and the current step, which the sampler sets.

    Args:
        sources: for each prompt of the batch the row of its source; for a source its own row.
        steps: returns the sampler's number of steps; called during sampling.
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
    def progress(self) -> float:
        """Share of the steps that are finished, in [0, 1)."""
        return self.step / self._steps()

    def rows(self, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rows of edits and of their sources in a call of the network, int64 ``[E]`` each.

        Under classifier-free guidance the conditional rows are the second half; the unconditional ones are not edited.
        """
        if batch_size not in (self.count, 2 * self.count):
            raise ValueError(
                f"the network was called with {batch_size} rows for {self.count} prompts: editing needs a pipeline "
                "that calls it with the rows of the prompts, or with as many unconditional rows before them."
            )
        if (batch_size, device) not in self._rows_cache:  # copied once, not in every layer
            first_row = batch_size - self.count
            edits = (self.edits + first_row).to(device)
            sources = (self.sources + first_row).to(device)
            self._rows_cache[batch_size, device] = (edits, sources)
        return self._rows_cache[batch_size, device]
