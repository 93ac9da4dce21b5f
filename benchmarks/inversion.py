"""What inversion costs beside its network: ``python -m benchmarks.inversion``.

For each method, batch size and number of steps: evaluations a step, seconds, the ratio of that time to what as many
bare calls of the same network on the same batch take, and peak memory above that of the loaded model. Times are
ratios within one process, the bare calls measured before and after; each case has a process of its own.

    python -m benchmarks.inversion --methods accelerated aidi --batches 1 8 64 --steps 4 50
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.store import synchronise
from rnri import LatentDiffusion, NoisePredictor, Schedule

METHODS = ("ddim", "aidi", "aidi_a", "rnri_sign", "rnri_paper", "accelerated")
BARE_CALLS = 5
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Case:
    method: str
    batch: int
    steps: int
    guidance: float
    model: str
    device: str
    dtype: str


def bare_seconds(predictor: NoisePredictor, z: torch.Tensor, schedule: Schedule) -> float:
    """Median time of a network call on the batch."""
    times = []
    with torch.no_grad():
        for k in range(BARE_CALLS):
            start = _now(z.device)
            predictor(z, int(schedule.timesteps[k % len(schedule)]))
            times.append(_now(z.device) - start)
    return statistics.median(times)


def measure(case: Case) -> dict[str, float]:
    """One inversion of random latents, after one that warms up."""
    model = LatentDiffusion.from_pretrained(
        case.model, device=case.device, dtype=getattr(torch, case.dtype), local_files_only=Path(case.model).exists()
    )
    inverter = instantiate(OmegaConf.load(f"configs/method/{case.method}.yaml"))
    predictor = model.predictor(["a drawing of a camel"] * case.batch, case.guidance)
    schedule = model.schedule(case.steps)
    seeds = model.noise(list(range(case.batch)), seed=0)
    with torch.no_grad():
        z0 = model.sample(seeds, predictor, schedule)
    inverter.invert(z0[:1], predictor.select(torch.tensor([0])), model.schedule(2))
    bare = [bare_seconds(predictor, seeds.double(), schedule)]
    _reset_peak(model.device)
    before = _peak(model.device)
    start = _now(model.device)
    inversion = inverter.invert(z0, predictor, schedule)
    seconds = _now(model.device) - start
    bare.append(bare_seconds(predictor, seeds.double(), schedule))
    evaluations = inversion.evaluations.double().mean().item()
    backward = inversion.backward.double().mean().item()
    return {
        "evaluations": evaluations,
        "backward": backward,
        "seconds": seconds,
        "ratio": seconds / (evaluations * case.steps * statistics.mean(bare)),
        "memory": (_peak(model.device) - before) / MEBIBYTE,
    }


def _now(device: torch.device) -> float:
    synchronise(device)
    return time.perf_counter()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of this process at its largest."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, help="names of configs/method")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8, 64))
    parser.add_argument("--steps", nargs="+", type=int, default=(4, 50))
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--model", default="assets/models/emoji")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    print(f"{'method':20s} {'batch':>5s} {'steps':>5s} {'evaluations':>11s} {'backward':>8s} {'seconds':>8s} "
          f"{'ratio':>6s} {'MiB':>7s}")  # fmt: skip
    for steps in options.steps:
        for batch in options.batches:
            for method in options.methods:
                case = Case(method, batch, steps, options.guidance, options.model, options.device, options.dtype)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found = pool.apply(measure, (case,))
                print(f"{method:20s} {batch:5d} {steps:5d} {found['evaluations']:11.2f} {found['backward']:8.2f} "
                      f"{found['seconds']:8.2f} {found['ratio']:6.3f} {found['memory']:7.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
