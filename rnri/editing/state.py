"""What the attention processors of one edit share: which rows are edits of which, and where the sampler is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class EditState:
    """Rows of a batch, and the sampler's step, which the sampler says: calls are not counted.

    Args:
        sources: for each prompt of the batch the row of its source; a source has its own.
        steps: the sampler's number of steps, asked while it runs.
    """

    def __init__(self, sources: Sequence[int], steps: Callable[[], int]) -> None:
        self.count = len(sources)
        rows = torch.tensor(list(sources))
        self.edits = (rows != torch.arange(self.count)).nonzero()[:, 0]  # [E]
        self.sources = rows[self.edits]  # [E]
        self.step = 0
        self._steps = steps
        self._found: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def progress(self) -> float:
        """The share of the steps that lies behind, in [0, 1)."""
        return self.step / self._steps()

    def rows(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Edits and their sources among the rows of a network's call, int64 ``[E]``.

        With guidance the conditional rows are the second half; the unconditional ones before them are left alone.
        """
        if batch not in (self.count, 2 * self.count):
            raise ValueError(
                f"the network was called with {batch} rows for {self.count} prompts: editing needs a pipeline that "
                "calls it with the prompts' rows, or with as many unconditional rows before them."
            )
        if (batch, device) not in self._found:  # moved once, not in every layer
            first = batch - self.count
            self._found[batch, device] = (self.edits + first).to(device), (self.sources + first).to(device)
        return self._found[batch, device]
