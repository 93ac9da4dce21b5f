"""What a NAO centroid costs: ``python -m benchmarks.nao``.

For each number of seeds, size and batch: milliseconds a problem (median; wall and processor time), reduction to the
seeds' cosines and the points of all paths included, and how many times longer the published procedure takes for one
problem, plain descent of K points a path in all d dimensions, measured in the same process.

    python -m benchmarks.nao --seeds 5 --sizes 16384 --batches 1 32
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch

from nao import centroid
from nao.polyline import descend_centroid


def timed(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median wall and processor milliseconds of a call, after one that warms up unless there is a single one."""
    if repeats > 1:
        call()
    wall, processor = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        call()
        wall.append(1e3 * (time.perf_counter() - start))
        processor.append(1e3 * (time.process_time() - used))
    return statistics.median(wall), statistics.median(processor)


def measure(n: int, d: int, batch: int, *, points: int, repeats: int, iterations: int) -> dict[str, float]:
    """Times of centroids of ``n`` seeds; ``iterations`` 0 leaves out the published procedure."""
    side = math.isqrt(d // 4)
    seeds = torch.randn(batch, n, 4, side, side, generator=torch.Generator().manual_seed(0))
    wall, processor = timed(lambda: centroid(seeds, points), repeats)
    found = {"wall": wall / batch, "processor": processor / batch}
    if iterations:
        plain = timed(lambda: descend_centroid(seeds[0], points, iterations), 1)[1]
        found["ratio"] = plain / found["processor"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=(2, 3, 5, 10))
    parser.add_argument("--sizes", nargs="+", type=int, default=(1024, 16_384, 65_536), help="4 times a square")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 32))
    parser.add_argument("--points", type=int, default=8, help="of each path")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--iterations", type=int, default=300, help="most of the published procedure; 0: leave it out")
    options = parser.parse_args()
    print(f"{'seeds':>5s} {'size':>6s} {'batch':>5s} {'wall ms':>8s} {'CPU ms':>8s} {'ratio':>7s}")
    for n in options.seeds:
        for d in options.sizes:
            for batch in options.batches:
                found = measure(
                    n, d, batch, points=options.points, repeats=options.repeats, iterations=options.iterations
                )
                ratio = f"{found['ratio']:7.0f}" if "ratio" in found else f"{'':7s}"
                print(f"{n:5d} {d:6d} {batch:5d} {found['wall']:8.2f} {found['processor']:8.2f} {ratio}", flush=True)


if __name__ == "__main__":
    main()
