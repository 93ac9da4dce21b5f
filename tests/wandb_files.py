"""Waits for the files of W&B. W&B's process writes the end of a file shortly after ``wandb.finish`` returned."""

import time
from pathlib import Path

from tools.inspect_wandb import records


def wait_for_exit_record(path: Path, seconds: float = 600) -> None:
    """Wait until the ``.wandb`` file contains its last record."""
    deadline = time.monotonic() + seconds
    while not any(record.WhichOneof("record_type") == "exit" for record in records(path)):
        assert time.monotonic() < deadline, f"{path} is still incomplete after {seconds} s"
        time.sleep(0.05)
