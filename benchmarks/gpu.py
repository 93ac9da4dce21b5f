"""Check the accuracy and measure the speed of inversion on a GPU or another device: ``python -m benchmarks.gpu``.

For each model that ships with the repository, each precision and each batch size, the output contains:

- ``error``: latent MSE of a reconstruction (inversion followed by sampling) on the device;
- ``on CPU``: latent MSE of the same reconstruction on the CPU in float32;
- ``syncs/step``: number of device synchronizations per inversion step;
- ``seconds``: duration of an inversion;
- ``ratio``: ratio of the duration of an inversion to the duration of its network calls alone (see
  :mod:`benchmarks.inversion`).

``--compile`` compiles the network, with CUDA graphs on CUDA. The exit status is 1 if ``error`` is more than ten times
``on CPU`` plus an allowance for rounding errors. The exit status is 2 if the device does not exist.

    python -m benchmarks.gpu --models emoji emoji_lcm emoji_flow --batches 1 8 --dtypes float32 bfloat16 --compile
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks import arguments
from benchmarks.inversion import Case, load, measure
from rnri import Inversion, LatentDiffusion, anderson_inverter

STEPS = {"emoji": 10, "emoji_lcm": 4, "emoji_flow": 10}
PROMPT = "a drawing of a camel"
# The latent MSE on the device may be at most MAX_ERROR_RATIO times the latent MSE on the CPU plus ROUNDING_MSE.
MAX_ERROR_RATIO = 10.0
ROUNDING_MSE = {"float32": 1e-5, "bfloat16": 1e-1, "float16": 1e-2}
"""Latent MSE that rounding errors may cause in each precision."""


@dataclass(frozen=True)
class RoundTripResult:
    """Result of a reconstruction (inversion followed by sampling) on one device.

    Attributes:
        error: latent MSE between the original and the reconstructed latents.
        syncs_per_step: number of device synchronizations per inversion step; None on devices other than CUDA.
    """

    error: float
    syncs_per_step: float | None


def round_trip(model: LatentDiffusion, steps: int, batch: int) -> RoundTripResult:
    """Sample latents, invert the latents to seeds, and sample again from the inverted seeds."""
    schedule, predictor = model.schedule(steps), model.predictor([PROMPT] * batch)
    with torch.no_grad():
        z0 = model.sample(model.noise(range(batch), seed=0), predictor, schedule)
        inversion, syncs = _count_syncs(z0.device, lambda: anderson_inverter().invert(z0, predictor, schedule))
        reconstruction = model.sample(inversion.seed, predictor, schedule)
    error = (reconstruction.double().cpu() - z0.double().cpu()).square().mean().item()
    return RoundTripResult(error, None if syncs is None else syncs / steps)


def _count_syncs(device: torch.device, work: Callable[[], Inversion]) -> tuple[Inversion, int | None]:
    """Run ``work``; return its result and the number of device synchronizations.

    The number is None if ``device`` is not a CUDA device.
    """
    if device.type != "cuda":
        return work(), None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return result, sum("synchroniz" in str(warning.message) for warning in caught)


def main() -> int:
    parser = arguments.Arguments(__doc__)
    parser.add_argument("--device", type=arguments.device, help="PyTorch device (default: cuda)")
    parser.add_argument("--models", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--batches", nargs="+", type=arguments.integer(), default=(1, 8))
    parser.add_argument("--dtypes", nargs="+", default=("float32", "bfloat16"), choices=list(ROUNDING_MSE))
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.device is None:
        options = parser.parse_args(["--device", "cuda"], options)
    print(f"{'model':12s} {'dtype':>9s} {'batch':>5s} {'error':>9s} {'on CPU':>9s} {'syncs/step':>12s} "
          f"{'seconds':>8s} {'ratio':>6s}")  # fmt: skip
    failures = 0
    for name in options.models:
        cpu_model = load(name, "cpu", "float32")
        references = {batch: round_trip(cpu_model, STEPS[name], batch).error for batch in options.batches}
        for dtype in options.dtypes:
            model = load(name, options.device, dtype)
            if options.compile:
                model.compile_network()
            for batch in options.batches:
                result = round_trip(model, STEPS[name], batch)
                case = Case("accelerated", batch, STEPS[name], 1.0, name, options.device, dtype)
                timing = measure(case, model)
                reference = references[batch]
                is_accurate = result.error <= MAX_ERROR_RATIO * reference + ROUNDING_MSE[dtype]
                failures += not is_accurate
                syncs = "-" if result.syncs_per_step is None else f"{result.syncs_per_step:.1f}"
                print(
                    f"{name:12s} {dtype:>9s} {batch:5d} {result.error:9.1e} {reference:9.1e} {syncs:>12s} "
                    f"{timing['seconds']:8.3f} {timing['ratio']:6.3f}{'' if is_accurate else '  error too large'}",
                    flush=True,
                )
    return int(failures > 0)


if __name__ == "__main__":
    arguments.run(main)
