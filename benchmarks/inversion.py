"""Measure how much time inversion methods need beyond their network calls: ``python -m benchmarks.inversion``.

A *bare call* is a call of the network by the benchmark, outside of the inversion method. For each method, batch size
and number of steps, the output contains:

- ``nfe`` and ``backward``: number of forward and backward network evaluations per step and sample;
- ``seconds``: duration of the inversion;
- ``ratio``: ratio of the duration of the inversion to the duration of ``nfe`` bare calls per step with the full batch;
  1 means that the inversion takes no time beyond its network calls;
- ``of calls``: ratio of the duration of the inversion to the duration of bare calls with the same batch sizes as in the
  inversion. The batch sizes decrease during the inversion, because converged samples are removed from the batch;
- ``MiB``: peak memory during the inversion minus the memory of the loaded model.

Backward passes are part of the duration of the inversion, but bare calls have no backward pass. Before each network
call of the inversion, a bare call with the same batch size is measured under the same load of the machine. The duration
of the bare calls is subtracted from the duration of the inversion. Each combination of method, batch size and number of
steps runs in a new process.

    python -m benchmarks.inversion --methods accelerated aidi --batches 1 8 64 --steps 4 50
    python -m benchmarks.inversion --model emoji_lcm --methods accelerated --batches 1 8 --steps 4
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks import arguments
from experiments.config.project import project_path
from experiments.runtime.device import peak_memory, synchronize
from rnri import Denoiser, Inverter, LatentDiffusion, NoisePredictor

CONFIGS = Path(project_path("configs"))
METHODS = CONFIGS / "method"
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Case:
    """Settings of one measurement of the inversion benchmark.

    Attributes:
        method: name of a file in configs/method.
        batch: batch size.
        steps: number of sampling steps.
        guidance: guidance scale.
        model: name of a model for :func:`load`.
        device: PyTorch device.
        dtype: name of the PyTorch dtype of the weights.
    """

    method: str
    batch: int
    steps: int
    guidance: float
    model: str
    device: str
    dtype: str


@dataclass(frozen=True)
class BareCallTimer:
    """A denoiser that, before each network call, times a bare call with the same batch size.

    Attributes:
        denoiser: the denoiser that is called.
        latents: inputs of the bare calls, ``[B,C,h,w]``.
        calls: batch size and duration in seconds of each bare call.
        overheads: for each network call, the total duration in seconds of the bare calls that precede the network call,
            including warm-up calls.
    """

    denoiser: Denoiser
    latents: Tensor
    calls: list[tuple[int, float]] = field(default_factory=list)
    overheads: list[float] = field(default_factory=list)

    def __call__(self, z: Tensor, t: int) -> Tensor:
        entered = _now(z.device)
        if len(z) not in dict(self.calls):
            self._bare(len(z), t)
        start = _now(z.device)
        self._bare(len(z), t)
        end = _now(z.device)
        self.calls.append((len(z), end - start))
        self.overheads.append(end - entered)
        return self.denoiser(z, t)

    @torch.no_grad()
    def _bare(self, rows: int, t: int) -> None:
        self.denoiser(self.latents[:rows], t)

    def select(self, rows: Tensor) -> BareCallTimer:
        return replace(self, denoiser=self.denoiser.select(rows))

    def unguided(self) -> BareCallTimer:
        return replace(self, denoiser=self.denoiser.unguided())


def load_method(name: str) -> Inverter:
    """Instantiate the inversion method that is configured in ``configs/method/NAME.yaml``."""
    return instantiate(OmegaConf.load(METHODS / f"{name}.yaml"))


def inverters() -> dict[str, Inverter]:
    """Return the inversion methods in configs/method by name."""
    methods = {name: load_method(name) for name in sorted(path.stem for path in METHODS.glob("*.yaml"))}
    return {name: method for name, method in methods.items() if isinstance(method, Inverter)}


def seed_only_methods() -> list[str]:
    """Return the names of the methods in configs/method that reconstruct an image from its seed alone."""
    return [name for name, method in inverters().items() if method.seed_only]


def load(name: str, device: str, dtype: str) -> LatentDiffusion:
    """Load a model.

    Args:
        name: name of a file in configs/model, such as ``emoji_lcm``, or the folder or Hugging Face Hub id of a model.
        device: PyTorch device.
        dtype: name of the PyTorch dtype of the weights.
    """
    if not (CONFIGS / "model" / f"{name}.yaml").is_file():
        return LatentDiffusion.from_pretrained(
            name, device=device, dtype=getattr(torch, dtype), local_files_only=Path(name).exists()
        )
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return instantiate(compose("train", [f"model={name}"]).model)(device=device, dtype=dtype)


def measure(case: Case, model: LatentDiffusion | None = None) -> dict[str, float]:
    """Measure one inversion of sampled latents, after a warm-up inversion of two steps.

    Args:
        case: settings of the measurement.
        model: the model of ``case``; None if the model has to be loaded.
    """
    model = model or load(case.model, case.device, case.dtype)
    before = peak_memory(model.device)
    inverter = load_method(case.method)
    schedule = model.schedule(case.steps)
    predictor = model.predictor(["a drawing of a camel"] * case.batch, case.guidance)
    seeds = model.noise(list(range(case.batch)), seed=0)
    with torch.no_grad():
        z0 = model.sample(seeds, predictor, schedule)
    inverter.invert(z0[:1], predictor.select(torch.tensor([0])), model.schedule(2))
    timer = BareCallTimer(predictor.denoiser, seeds.double())
    start = _now(model.device)
    inversion = inverter.invert(z0, NoisePredictor(timer), schedule)
    seconds = _now(model.device) - start - sum(timer.overheads)
    full_batch_call = statistics.fmean(duration for rows, duration in timer.calls if rows == case.batch)
    nfe = inversion.nfe.double().mean().item()
    return {
        "nfe": nfe,
        "backward": inversion.backward.double().mean().item(),
        "seconds": seconds,
        "ratio": seconds / (nfe * case.steps * full_batch_call),
        "ratio_of_calls": seconds / sum(duration for _, duration in timer.calls),
        "memory": (peak_memory(model.device) - before) / MEBIBYTE,
    }


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


def main() -> None:
    parser = arguments.Arguments(__doc__)
    parser.add_argument(
        "--methods", nargs="+", default=seed_only_methods(), choices=list(inverters()), help="names in configs/method"
    )
    parser.add_argument("--batches", nargs="+", type=arguments.integer(), default=(1, 8, 64))
    parser.add_argument("--steps", nargs="+", type=arguments.steps, default=(4, 50))
    parser.add_argument("--guidance", type=arguments.guidance, default=1.0)
    parser.add_argument("--model", default="emoji", help="name in configs/model, or folder or Hub id of a model")
    parser.add_argument("--device", type=arguments.device, default=arguments.default_device())
    parser.add_argument("--dtype", choices=arguments.DTYPES, default="float32")
    options = parser.parse_args()
    model = load(options.model, "cpu", options.dtype)  # reports an invalid model before the first measurement
    for steps in options.steps:
        model.schedule(steps)
    print(f"{'method':20s} {'batch':>5s} {'steps':>5s} {'nfe':>11s} {'backward':>8s} {'seconds':>8s} "
          f"{'ratio':>6s} {'of calls':>8s} {'MiB':>7s}")  # fmt: skip
    for steps in options.steps:
        for batch in options.batches:
            for name in options.methods:
                case = Case(name, batch, steps, options.guidance, options.model, options.device, options.dtype)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    result = pool.apply(measure, (case,))
                print(f"{name:20s} {batch:5d} {steps:5d} {result['nfe']:11.2f} {result['backward']:8.2f} "
                      f"{result['seconds']:8.2f} {result['ratio']:6.3f} {result['ratio_of_calls']:8.3f} "
                      f"{result['memory']:7.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    arguments.run(main)
