"""One progress bar for a long experiment: which unit, which stage of it."""

from __future__ import annotations

from tqdm import tqdm


class Progress:
    """Counts finished units and names the stage of the present one."""

    def __init__(self, total: int, done: int, description: str, disable: bool) -> None:
        self.bar = tqdm(
            total=total, initial=done, desc=description, unit="concept", disable=disable, dynamic_ncols=True
        )

    def stage(self, text: str) -> None:
        self.bar.set_postfix_str(text)

    def finish(self, units: int) -> None:
        self.bar.update(units)

    def close(self) -> None:
        self.bar.set_postfix_str("done")
        self.bar.close()
