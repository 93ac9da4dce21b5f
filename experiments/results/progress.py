"""One progress bar for a long experiment: which unit, which stage of it."""

from __future__ import annotations

from tqdm import tqdm


class Progress:
    """Counts finished units and names the stage of the present one; silent until started."""

    def __init__(self, description: str, unit: str = "concept") -> None:
        self.description, self.unit = description, unit
        self.bar = tqdm(disable=True)

    def start(self, total: int, done: int, visible: bool) -> None:
        self.bar = tqdm(
            total=total, initial=done, desc=self.description, unit=self.unit, disable=not visible, dynamic_ncols=True
        )

    def stage(self, text: str) -> None:
        self.bar.set_postfix_str(text)

    def finish(self, units: int) -> None:
        self.bar.update(units)

    def close(self) -> None:
        self.bar.set_postfix_str("done")
        self.bar.close()
