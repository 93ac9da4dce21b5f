"""Measure the memory of SeedSelect, and its time beyond the network calls: ``python -m benchmarks.seedselect``.

For each gradient mode, batch size and number of steps, the output contains:

- ``s/iteration``: duration of an iteration in seconds;
- ``ratio``: duration of the iterations divided by the duration of the same network calls without SeedSelect (*bare
  calls*);
- ``MiB``: peak memory of the tensors that an iteration allocates.

The bare calls are the network calls of SeedSelect, executed without SeedSelect. The U-Net is called once per sampling
step, or twice if gradient checkpointing recomputes the step. The decoder and CLIP are called once per latent in the
loss. A bare call has a backward pass if the call in SeedSelect has a backward pass. The bare calls are timed
immediately before and after SeedSelect. On a CPU, durations are CPU times, and the memory does not include temporary
buffers inside the operators of PyTorch.

    python -m benchmarks.seedselect --modes full checkpoint last5 --batches 1 8 --steps 10 20 50
"""

from __future__ import annotations

import argparse
import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import arguments
from experiments.config.project import project_path
from experiments.runtime.device import synchronize
from rnri import LatentDiffusion, Schedule
from rnri.models.sampling import trajectory
from seedselect import ClipFeatures, Problem, SeedSelect, Selection, Targets

MEBIBYTE = 2**20


class TensorMemory(TorchDispatchMode):
    """Context manager that measures the peak memory of the tensors that are created in the ``with`` block.

    Attributes:
        peak: maximum total size of the tensors that existed at the same time, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._track((args, kwargs), is_new=False)
        result = function(*args, **(kwargs or {}))
        self._track(result, is_new=True)
        return result

    def _track(self, tree: object, *, is_new: bool) -> None:
        for tensor in tree_leaves(tree):
            if not isinstance(tensor, Tensor) or tensor.untyped_storage()._cdata in self.storages:
                continue
            storage = tensor.untyped_storage()
            size = storage.nbytes() if is_new else 0
            self.storages.add(storage._cdata)
            weakref.finalize(storage, self._forget, storage._cdata, size)
            self.current += size
            self.peak = max(self.peak, self.current)

    def _forget(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.current -= size


@dataclass(frozen=True)
class Case:
    """Settings of one measurement of the SeedSelect benchmark.

    Attributes:
        mode: ``full`` for the gradient through all sampling steps, ``checkpoint`` for the same gradient with gradient
            checkpointing, or ``lastK`` for the gradient through the last K sampling steps. Example: ``last5``.
        batch: batch size.
        steps: number of sampling steps.
        guidance: guidance scale.
        iterations: number of iterations of SeedSelect.
    """

    mode: str
    batch: int
    steps: int
    guidance: float
    iterations: int

    @property
    def gradient_steps(self) -> int | None:
        return int(self.mode.removeprefix("last")) if self.mode.startswith("last") else None


class Bench:
    """The networks and the inputs with which a :class:`Case` is measured."""

    def __init__(self, model: LatentDiffusion, clip: ClipFeatures, case: Case) -> None:
        self.model, self.clip, self.case = model, clip, case
        self.predictor = model.predictor(["a drawing of a camel"] * case.batch, case.guidance)
        self.schedule: Schedule = model.schedule(case.steps)
        self.seeds = model.noise(list(range(case.batch)), seed=0)
        with torch.no_grad():
            z0 = model.sample(model.noise(["a"] * case.batch, seed=1), self.predictor, self.schedule)
            self.targets = Targets(clip(model.decode(z0)), z0)

    def select(self, iterations: int) -> Selection:
        """Run SeedSelect for ``iterations`` iterations."""
        problem = Problem(self._last_latents, self.model.decode, self.clip, self.targets)
        return SeedSelect(iterations=iterations)(self.seeds, problem)

    def _last_latents(self, seeds: Tensor, rows: Tensor) -> list[Tensor]:
        return trajectory(
            seeds,
            self.predictor.select(rows),
            self.schedule,
            keep_last=3,
            checkpoint=self.case.mode == "checkpoint",
            gradient_steps=self.case.gradient_steps,
        )

    def time_bare_calls(self) -> dict[str, float]:
        """Return the durations in seconds of calls of the U-Net ("unet"), and of the decoder and CLIP ("loss").

        Each call is timed without a backward pass ("forward") and with a backward pass ("both").
        """
        t, z = self.schedule.timestep(len(self.schedule) // 2), self.seeds.double()
        networks = {"unet": lambda x: self.predictor(x, t), "loss": lambda x: self.clip(self.model.decode(x))}
        seconds = {}
        for name, network in networks.items():
            seconds[f"{name} forward"] = self._seconds(lambda f=network: _forward(f, z))
            seconds[f"{name} both"] = self._seconds(lambda f=network: _both(f, z))
        return seconds

    def _seconds(self, call: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            start = self.now()
            call()
            times.append(self.now() - start)
        return statistics.median(times)

    def now(self) -> float:
        """Return the wall time in seconds, or the CPU time of this process if the device is a CPU.

        CPU time depends less than wall time on the load by other processes.
        """
        synchronize(self.model.device)
        return time.process_time() if self.model.device.type == "cpu" else time.perf_counter()

    def bare_seconds(self, bare: dict[str, float], iterations: int) -> float:
        """Return the duration in seconds of all network calls in a run of SeedSelect.

        The run consists of several iterations, and of the evaluation of the loss after the last iteration.

        Args:
            bare: durations of single network calls from :meth:`time_bare_calls`.
            iterations: number of iterations.
        """
        steps = self.case.steps
        backward = min(steps, self.case.gradient_steps or steps)
        recomputed = steps if self.case.mode == "checkpoint" else 0
        update = (
            backward * bare["unet both"]
            + (steps - backward + recomputed) * bare["unet forward"]
            + 3 * bare["loss both"]
        )
        return iterations * update + steps * bare["unet forward"] + 3 * bare["loss forward"]

    def memory(self) -> float:
        """Return the peak memory in bytes of the tensors that one iteration of SeedSelect allocates."""
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.model.device)
            before = torch.cuda.memory_allocated(self.model.device)
            self.select(1)
            return torch.cuda.max_memory_allocated(self.model.device) - before
        with TensorMemory() as memory:
            self.select(1)
        return memory.peak


def _forward(network: Callable[[Tensor], Tensor], z: Tensor) -> None:
    with torch.no_grad():
        network(z)


def _both(network: Callable[[Tensor], Tensor], z: Tensor) -> None:
    z = z.detach().requires_grad_()
    torch.autograd.grad(network(z).sum(), z)


def measure(case: Case, model: LatentDiffusion, clip: ClipFeatures) -> dict[str, float]:
    """Measure the memory and the duration of SeedSelect, and the duration of its network calls."""
    bench = Bench(model, clip, case)
    memory = bench.memory()
    before = bench.time_bare_calls()
    start = bench.now()
    bench.select(case.iterations)
    seconds = bench.now() - start
    after = bench.time_bare_calls()
    bare = {name: (before[name] + after[name]) / 2 for name in before}
    return {
        "seconds": seconds / case.iterations,
        "ratio": seconds / bench.bare_seconds(bare, case.iterations),
        "memory": memory / MEBIBYTE,
    }


def gradient_mode(text: str) -> str:
    """Return ``text`` if it is a valid gradient mode: ``full``, ``checkpoint``, or ``lastK`` with an integer K."""
    if text not in ("full", "checkpoint"):
        try:
            arguments.integer()(text.removeprefix("last") if text.startswith("last") else "")
        except argparse.ArgumentTypeError:
            message = f"must be full, checkpoint, or last with a number of steps, such as last5, got {text!r}."
            raise argparse.ArgumentTypeError(message) from None
    return text


def main() -> None:
    parser = arguments.Arguments(__doc__)
    parser.add_argument("--modes", nargs="+", type=gradient_mode, default=("full", "checkpoint", "last5"))
    parser.add_argument("--batches", nargs="+", type=arguments.integer(), default=(1, 8))
    parser.add_argument("--steps", nargs="+", type=arguments.steps, default=(10, 20, 50))
    parser.add_argument("--guidance", type=arguments.guidance, default=1.0)
    parser.add_argument("--iterations", type=arguments.integer(), default=2)
    parser.add_argument("--model", default=project_path("assets/models/emoji"))
    parser.add_argument("--clip", default=project_path("assets/models/clip"))
    parser.add_argument("--device", type=arguments.device, default=arguments.default_device())
    parser.add_argument("--dtype", choices=arguments.DTYPES, default="float32")
    options = parser.parse_args()
    model, clip = (
        kind.from_pretrained(
            path, device=options.device, dtype=getattr(torch, options.dtype), local_files_only=Path(path).exists()
        )
        for kind, path in ((LatentDiffusion, options.model), (ClipFeatures, options.clip))
    )
    for steps in options.steps:
        model.schedule(steps)
    print(f"{'mode':12s} {'batch':>5s} {'steps':>5s} {'s/iteration':>11s} {'ratio':>6s} {'MiB':>8s}")
    for batch in options.batches:
        for mode in options.modes:
            for steps in options.steps:
                result = measure(Case(mode, batch, steps, options.guidance, options.iterations), model, clip)
                print(f"{mode:12s} {batch:5d} {steps:5d} {result['seconds']:11.2f} {result['ratio']:6.3f} "
                      f"{result['memory']:8.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    arguments.run(main)
