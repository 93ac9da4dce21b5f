"""What SeedSelect costs beside its networks: ``python -m benchmarks.seedselect``.

For each way to the gradient, batch size and number of steps: seconds of an iteration, its ratio to the bare passes
that it needs, and the most memory that tensors took at once. The bare passes are calls of the same networks on the
same batch, forward and backward where the iteration goes back and forward alone where it does not: the UNet once a
step, twice where a checkpointed step is computed again; decoder and CLIP once for each latent that the loss sees.
They are measured right before and after the iterations, in CPU time on a CPU. Memory is that of tensors made during
an iteration; on a GPU the allocator says it, elsewhere the buffers inside a kernel are not seen.

    python -m benchmarks.seedselect --ways plain checkpoint last5 --batches 1 8 --steps 10 20 50
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

from experiments.cache.store import synchronize
from experiments.config.project import embedded
from rnri import LatentDiffusion, Schedule
from rnri.models.sampling import trajectory
from seedselect import ClipFeatures, SeedSelect, Selection, Targets

MEBIBYTE = 2**20


class TensorMemory(TorchDispatchMode):
    """``peak``: most bytes of tensors that were made inside and alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._note((args, kwargs), made=False)
        result = function(*args, **(kwargs or {}))
        self._note(result, made=True)
        return result

    def _note(self, tree: object, *, made: bool) -> None:
        for tensor in tree_leaves(tree):
            if not isinstance(tensor, Tensor) or tensor.untyped_storage()._cdata in self.known:
                continue
            storage = tensor.untyped_storage()
            size = storage.nbytes() if made else 0
            self.known.add(storage._cdata)
            weakref.finalize(storage, self._forget, storage._cdata, size)
            self.alive += size
            self.peak = max(self.peak, self.alive)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


@dataclass(frozen=True)
class Case:
    """``way``: ``plain``, ``checkpoint``, or ``lastK`` for a gradient through the last K steps."""

    way: str
    batch: int
    steps: int
    guidance: float
    iterations: int

    @property
    def gradient_steps(self) -> int | None:
        return int(self.way.removeprefix("last")) if self.way.startswith("last") else None


class Bench:
    """The networks and what a case of the benchmark does with them."""

    def __init__(self, model: LatentDiffusion, clip: ClipFeatures, case: Case) -> None:
        self.model, self.clip, self.case = model, clip, case
        self.predictor = model.predictor(["a drawing of a camel"] * case.batch, case.guidance)
        self.schedule: Schedule = model.schedule(case.steps)
        self.seeds = model.noise(list(range(case.batch)), seed=0)
        with torch.no_grad():
            z0 = model.sample(model.noise(["a"] * case.batch, seed=1), self.predictor, self.schedule)
            self.targets = Targets(clip(model.decode(z0)), z0)

    def select(self, iterations: int) -> Selection:
        return SeedSelect(iterations=iterations)(
            self.seeds,
            trajectory=lambda z, rows: trajectory(
                z, self.predictor.select(rows), self.schedule, keep_last=3,
                checkpoint=self.case.way == "checkpoint", gradient_steps=self.case.gradient_steps,
            ),
            decode=self.model.decode,
            features=self.clip,
            targets=self.targets,
        )  # fmt: skip

    def bare(self) -> dict[str, float]:
        """Seconds of the UNet forward, of it forward and backward, of decoder and CLIP both ways, and forward."""
        t, z = self.schedule.timestep(len(self.schedule) // 2), self.seeds.double()
        networks = {"unet": lambda x: self.predictor(x, t), "loss": lambda x: self.clip(self.model.decode(x))}
        found = {}
        for name, network in networks.items():
            found[f"{name} forward"] = self._seconds(lambda f=network: _forward(f, z))
            found[f"{name} both"] = self._seconds(lambda f=network: _both(f, z))
        return found

    def _seconds(self, call: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            start = self.now()
            call()
            times.append(self.now() - start)
        return statistics.median(times)

    def now(self) -> float:
        """Wall time on a GPU; on a CPU that of this process, which its neighbors do not lengthen as much."""
        synchronize(self.model.device)
        return time.process_time() if self.model.device.type == "cpu" else time.perf_counter()

    def needed(self, bare: dict[str, float], iterations: int) -> float:
        """Seconds of the bare passes of so many updates and the evaluation after the last of them."""
        steps, back = self.case.steps, min(self.case.steps, self.case.gradient_steps or self.case.steps)
        again = steps if self.case.way == "checkpoint" else 0
        update = back * bare["unet both"] + (steps - back + again) * bare["unet forward"] + 3 * bare["loss both"]
        return iterations * update + steps * bare["unet forward"] + 3 * bare["loss forward"]

    def memory(self) -> float:
        """Most bytes of an update's tensors."""
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
    """Iterations after one that warms up, between two measurements of the bare passes."""
    bench = Bench(model, clip, case)
    memory = bench.memory()
    before = bench.bare()
    start = bench.now()
    bench.select(case.iterations)
    seconds = bench.now() - start
    after = bench.bare()
    bare = {name: (before[name] + after[name]) / 2 for name in before}
    return {
        "seconds": seconds / case.iterations,
        "ratio": seconds / bench.needed(bare, case.iterations),
        "memory": memory / MEBIBYTE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=("plain", "checkpoint", "last5"))
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--steps", nargs="+", type=int, default=(10, 20, 50))
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--model", default=embedded("assets/models/emoji"))
    parser.add_argument("--clip", default=embedded("assets/models/clip"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    model, clip = (
        kind.from_pretrained(
            path, device=options.device, dtype=getattr(torch, options.dtype), local_files_only=Path(path).exists()
        )
        for kind, path in ((LatentDiffusion, options.model), (ClipFeatures, options.clip))
    )
    print(f"{'way':12s} {'batch':>5s} {'steps':>5s} {'s/iteration':>11s} {'ratio':>6s} {'MiB':>8s}")
    for batch in options.batches:
        for way in options.ways:
            for steps in options.steps:
                found = measure(Case(way, batch, steps, options.guidance, options.iterations), model, clip)
                print(f"{way:12s} {batch:5d} {steps:5d} {found['seconds']:11.2f} {found['ratio']:6.3f} "
                      f"{found['memory']:8.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
