"""Measured times of networks on several types of GPU, from which the GPU hours of a run are estimated.

``python -m benchmarks.full_size --write`` measures the times on the GPU of the machine and stores the times in the file
``gpu_times.json``. Hours on a GPU type that was not measured are not estimated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.cache.atomic import atomic_write
from experiments.planning.cost import Cost
from experiments.reporting.tables import markdown_table

FILE = Path(__file__).with_name("gpu_times.json")
GPU_TYPES = (
    "NVIDIA GeForce RTX 4090",
    "NVIDIA L4",
    "NVIDIA L40S",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA H100 80GB HBM3",
    "NVIDIA H200",
)
"""The GPUs, by their names in PyTorch, that have a row in the table of GPU hours even if no time was measured."""
CHECKPOINTS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "SD 1.5",
    "stabilityai/sdxl-turbo": "SDXL-turbo",
    "stabilityai/stable-diffusion-3-medium-diffusers": "SD3 medium",
    "black-forest-labs/FLUX.1-schnell": "FLUX.1 schnell",
}
"""The Hub ids and the short names of the checkpoints that have a column in the table of GPU hours."""
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class GpuTimes:
    """Measured times of the networks of one checkpoint on one type of GPU.

    Attributes:
        gpu: name of the GPU.
        checkpoint: Hub id of the checkpoint.
        dtype: dtype of the networks.
        batch: batch size of the measurement.
        seconds: dict from a field name of :class:`Cost`, such as ``forward``, to the measured seconds per image.
        torch: version of PyTorch with which the times were measured.
    """

    gpu: str
    checkpoint: str
    dtype: str
    batch: int
    seconds: dict[str, float]
    torch: str

    def hours(self, cost: Cost) -> float:
        """Return the duration of ``cost`` on one GPU in hours."""
        return sum(getattr(cost, name) * value for name, value in self.seconds.items()) / 3600


def load_times() -> list[GpuTimes]:
    """Return all times that are stored in the file ``gpu_times.json``."""
    return [GpuTimes(**row) for row in json.loads(FILE.read_text())]


def store_times(times: Sequence[GpuTimes]) -> None:
    """Add ``times`` to the file ``gpu_times.json``. Earlier times of the same GPU and checkpoint are replaced."""
    rows = {(row.gpu, row.checkpoint): row for row in [*load_times(), *times]}
    text = json.dumps([asdict(rows[key]) for key in sorted(rows)], indent=1)
    atomic_write(FILE, lambda path: path.write_text(f"{text}\n"))


def format_hours(cost: Cost, times: Sequence[GpuTimes]) -> str:
    """Return a Markdown table of the estimated hours of ``cost`` on one GPU, by type of GPU and by checkpoint.

    If ``times`` is empty, the function returns a sentence that explains how to measure the times.
    """
    if not times:
        return (
            "Hours on other GPUs: not measured. To measure network times on the GPU of a machine, run "
            "python -m benchmarks.full_size --write."
        )
    hours = {(row.gpu, row.checkpoint): f"{row.hours(cost):,.1f}" for row in times}
    gpus = [*GPU_TYPES, *sorted({row.gpu for row in times} - set(GPU_TYPES))]
    rows = [{"gpu": gpu} | {key: hours.get((gpu, key), NOT_MEASURED) for key in CHECKPOINTS} for gpu in gpus]
    title = "Estimated hours of this run on one GPU, if the run uses one of these checkpoints in bfloat16:\n\n"
    return title + markdown_table(rows, {"gpu": "GPU"} | CHECKPOINTS)
