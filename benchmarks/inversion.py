"""What inversion costs beside its network: ``python -m benchmarks.inversion``.

For each method, batch size and number of steps: evaluations a step and sample, forward and backward; seconds; the
ratio of that time to what the evaluations would take as bare calls of the same network on the full batch, and to what
the very calls take that were made, some of them on the samples still being solved; and peak memory above that of the
loaded model. A method's backward passes are in its time and not in the bare one.

Each network call of the inversion is preceded by a bare one on as many latents, whose time is taken out of the
inversion's, so that a ratio compares times under the same load. Each case has a process of its own.

    python -m benchmarks.inversion --methods accelerated aidi --batches 1 8 64 --steps 4 50
    python -m benchmarks.inversion --model emoji_lcm --methods accelerated --batches 1 8 --steps 4
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from experiments.cache.store import synchronize
from experiments.config.project import embedded
from rnri import Denoiser, Inverter, LatentDiffusion, NoisePredictor

CONFIGS = Path(embedded("configs"))
METHODS = CONFIGS / "method"
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


@dataclass(frozen=True)
class Twinned:
    """A denoiser whose every call is preceded by a bare one on as many of ``latents [B,C,h,w]``.

    Attributes:
        calls: batch size and seconds of each bare call.
        aside: seconds spent on bare calls, those included that prepare the libraries for a new batch size.
    """

    denoiser: Denoiser
    latents: Tensor
    calls: list[tuple[int, float]] = field(default_factory=list)
    aside: list[float] = field(default_factory=list)

    def __call__(self, z: Tensor, t: int) -> Tensor:
        begun = _now(z.device)
        if len(z) not in dict(self.calls):
            self._bare(len(z), t)
        start = _now(z.device)
        self._bare(len(z), t)
        end = _now(z.device)
        self.calls.append((len(z), end - start))
        self.aside.append(end - begun)
        return self.denoiser(z, t)

    @torch.no_grad()
    def _bare(self, rows: int, t: int) -> None:
        self.denoiser(self.latents[:rows], t)

    def select(self, rows: Tensor) -> Twinned:
        return replace(self, denoiser=self.denoiser.select(rows))

    def unguided(self) -> Twinned:
        return replace(self, denoiser=self.denoiser.unguided())


def method(name: str) -> Inverter:
    return instantiate(OmegaConf.load(METHODS / f"{name}.yaml"))


def single_latent_methods() -> list[str]:
    """Those of configs/method; editors, which invert nothing, have no latent."""
    names = sorted(path.stem for path in METHODS.glob("*.yaml"))
    return [name for name in names if getattr(method(name), "seed_only", False)]


def load(name: str, device: str, dtype: str) -> LatentDiffusion:
    """The model of a file in configs/model, such as emoji_lcm, or of a checkpoint's folder or hub id."""
    if not (CONFIGS / "model" / f"{name}.yaml").is_file():
        return LatentDiffusion.from_pretrained(
            name, device=device, dtype=getattr(torch, dtype), local_files_only=Path(name).exists()
        )
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return instantiate(compose("train", [f"model={name}"]).model)(device=device, dtype=dtype)


def measure(case: Case, model: LatentDiffusion | None = None) -> dict[str, float]:
    """One inversion of latents that the model samples, after one that warms up. ``model`` is the case's, if loaded."""
    model = model or load(case.model, case.device, case.dtype)
    before = _peak(model.device)
    inverter, schedule = method(case.method), model.schedule(case.steps)
    predictor = model.predictor(["a drawing of a camel"] * case.batch, case.guidance)
    seeds = model.noise(list(range(case.batch)), seed=0)
    with torch.no_grad():
        z0 = model.sample(seeds, predictor, schedule)
    inverter.invert(z0[:1], predictor.select(torch.tensor([0])), model.schedule(2))
    twinned = Twinned(predictor.denoiser, seeds.double())
    start = _now(model.device)
    inversion = inverter.invert(z0, NoisePredictor(twinned), schedule)
    seconds = _now(model.device) - start - sum(twinned.aside)
    full = statistics.fmean(taken for rows, taken in twinned.calls if rows == case.batch)
    nfe = inversion.nfe.double().mean().item()
    return {
        "nfe": nfe,
        "backward": inversion.backward.double().mean().item(),
        "seconds": seconds,
        "ratio": seconds / (nfe * case.steps * full),
        "ratio_of_calls": seconds / sum(taken for _, taken in twinned.calls),
        "memory": (_peak(model.device) - before) / MEBIBYTE,
    }


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


def _peak(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of this process at its largest."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=single_latent_methods(), help="names of configs/method")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8, 64))
    parser.add_argument("--steps", nargs="+", type=int, default=(4, 50))
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--model", default="emoji", help="of configs/model, or a checkpoint's folder or hub id")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    print(f"{'method':20s} {'batch':>5s} {'steps':>5s} {'nfe':>11s} {'backward':>8s} {'seconds':>8s} "
          f"{'ratio':>6s} {'of calls':>8s} {'MiB':>7s}")  # fmt: skip
    for steps in options.steps:
        for batch in options.batches:
            for name in options.methods:
                case = Case(name, batch, steps, options.guidance, options.model, options.device, options.dtype)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found = pool.apply(measure, (case,))
                print(f"{name:20s} {batch:5d} {steps:5d} {found['nfe']:11.2f} {found['backward']:8.2f} "
                      f"{found['seconds']:8.2f} {found['ratio']:6.3f} {found['ratio_of_calls']:8.3f} "
                      f"{found['memory']:7.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
