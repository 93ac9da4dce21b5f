"""Measure how long NAO takes to compute a centroid of seeds: ``python -m benchmarks.nao``.

A centroid is a kind of average of seeds (initial latents), which is computed together with the paths from the centroid
to the seeds. For each combination of the number of seeds, the number of elements of a seed tensor and the batch size,
the output contains:

- ``wall ms`` and ``CPU ms``: median wall time and median CPU time per centroid and its paths, in milliseconds;
- ``ratio``: CPU time of the published procedure divided by the CPU time of this project; above 1, this project is
  faster. The published procedure optimizes all points of the paths by gradient descent.

    python -m benchmarks.nao --seeds 5 --sizes 16384 --batches 1 32
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks import arguments
from nao import centroid
from nao.polyline import descend_centroid
from nao.radial_metric import MIN_COMPONENTS


def time_call(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median wall time and the median CPU time of a function call, in milliseconds.

    Args:
        call: the function.
        repeats: number of timed calls. If ``repeats`` is above 1, a warm-up call precedes the timed calls.
    """
    if repeats > 1:
        call()
    wall, cpu = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        call()
        wall.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - cpu_start))
    return statistics.median(wall), statistics.median(cpu)


def measure(n: int, d: int, batch: int, *, num_points: int, repeats: int, iterations: int) -> dict[str, float]:
    """Measure how long the computation of centroids of seeds takes.

    Args:
        n: number of seeds per centroid.
        d: number of elements of a seed tensor.
        batch: number of centroids that are computed in one call.
        num_points: number of points per path.
        repeats: number of timed calls.
        iterations: maximum number of iterations of the published procedure; 0 skips the published procedure.
    """
    side = math.isqrt(d // 4)
    seeds = torch.randn(batch, n, 4, side, side, generator=torch.Generator().manual_seed(0))
    wall, cpu = time_call(lambda: centroid(seeds, num_points), repeats)
    result = {"wall": wall / batch, "cpu": cpu / batch}
    if iterations:
        published = time_call(lambda: descend_centroid(seeds[0], num_points, iterations), 1)[1]
        result["ratio"] = published / result["cpu"]
    return result


def size(text: str) -> int:
    """Convert ``text`` to the number of elements of a seed tensor, which must be 4 times a square number."""
    value = arguments.integer(MIN_COMPONENTS)(text)
    if value != 4 * math.isqrt(value // 4) ** 2:
        raise argparse.ArgumentTypeError(f"must be 4 times a square number, got {text!r}.")
    return value


def main() -> None:
    parser = arguments.Arguments(__doc__)
    parser.add_argument("--seeds", nargs="+", type=arguments.integer(2), default=(2, 3, 5, 10))
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size,
        default=(1024, 16_384, 65_536),
        help="numbers of elements of a seed tensor; each must be 4 times a square number",
    )
    parser.add_argument("--batches", nargs="+", type=arguments.integer(), default=(1, 32))
    parser.add_argument("--num-points", type=arguments.integer(2), default=8, help="number of points per path")
    parser.add_argument("--repeats", type=arguments.integer(), default=9, help="number of timed calls")
    parser.add_argument(
        "--iterations",
        type=arguments.integer(0),
        default=300,
        help="maximum number of iterations of the published procedure; 0 skips the published procedure",
    )
    options = parser.parse_args()
    print(f"{'seeds':>5s} {'size':>6s} {'batch':>5s} {'wall ms':>8s} {'CPU ms':>8s} {'ratio':>7s}")
    for n in options.seeds:
        for d in options.sizes:
            for batch in options.batches:
                result = measure(
                    n, d, batch, num_points=options.num_points, repeats=options.repeats, iterations=options.iterations
                )
                ratio = f"{result['ratio']:7.0f}" if "ratio" in result else f"{'':7s}"
                print(f"{n:5d} {d:6d} {batch:5d} {result['wall']:8.2f} {result['cpu']:8.2f} {ratio}", flush=True)


if __name__ == "__main__":
    arguments.run(main)
