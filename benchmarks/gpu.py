"""Checks and times inversion on a device, beside the CPU: ``python -m benchmarks.gpu``.

For each embedded model, precision and batch: the latent MSE of a reconstruction there, and on the CPU in single
precision; how often a step waits for the device; seconds of an inversion, and their ratio to what its evaluations would
take alone. With ``--compile`` the network is compiled. Ends with status 1 where the device is off, or there is none.

    python -m benchmarks.gpu --models emoji emoji_lcm emoji_flow --batches 1 8 --dtypes float32 bfloat16 --compile
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.inversion import Case, load, measure
from rnri import Inversion, LatentDiffusion, anderson_inverter

STEPS = {"emoji": 10, "emoji_lcm": 4, "emoji_flow": 10}
PROMPT = "a drawing of a camel"
AGREES = 10.0  # times the CPU's error that a device's may have in single precision, beside rounding
ROUNDING = {"float32": 1e-5, "bfloat16": 1e-1, "float16": 1e-2}
"""Latent MSE that precision alone explains: an inversion ends where rounding is as large as its residual."""


@dataclass(frozen=True)
class Found:
    """Latent MSE of a reconstruction, and how often a step waited for the device; None where that is unknown."""

    error: float
    waits: float | None


def round_trip(model: LatentDiffusion, steps: int, batch: int) -> Found:
    """Inverts latents that the model has sampled, and samples them again."""
    schedule, predictor = model.schedule(steps), model.predictor([PROMPT] * batch)
    with torch.no_grad():
        z0 = model.sample(model.noise(range(batch), seed=0), predictor, schedule)
        found, waits = _counted(z0.device, lambda: anderson_inverter().invert(z0, predictor, schedule))
        again = model.sample(found.seed, predictor, schedule)
    error = (again.double().cpu() - z0.double().cpu()).square().mean().item()
    return Found(error, None if waits is None else waits / steps)


def _counted(device: torch.device, work: Callable[[], Inversion]) -> tuple[Inversion, int | None]:
    """What ``work`` gives, and how often it waited for the device."""
    if device.type != "cuda":
        return work(), None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return found, sum("synchroniz" in str(each.message) for each in caught)


def compiled(model: LatentDiffusion) -> LatentDiffusion:
    """The same with its network compiled in place."""
    for name in ("unet", "transformer"):
        part = getattr(model.pipeline, name, None)
        if part is not None:
            part.compile(dynamic=False)
    return model


def absent(device: str) -> str | None:
    """One sentence where there is no such device."""
    kind = torch.device(device).type
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if here.get(kind):
        return None
    return f"this machine has no {kind} device that PyTorch {torch.__version__} can use: nothing was checked."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--dtypes", nargs="+", default=("float32", "bfloat16"), choices=list(ROUNDING))
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if said := absent(options.device):
        print(said, file=sys.stderr)
        return 1
    print(f"{'model':12s} {'dtype':>9s} {'batch':>5s} {'error':>9s} {'on CPU':>9s} {'waits a step':>12s} "
          f"{'seconds':>8s} {'ratio':>6s}")  # fmt: skip
    wrong = 0
    for name in options.models:
        exact = load(name, "cpu", "float32")
        references = {batch: round_trip(exact, STEPS[name], batch).error for batch in options.batches}
        for dtype in options.dtypes:
            model = load(name, options.device, dtype)
            model = compiled(model) if options.compile else model
            for batch in options.batches:
                found = round_trip(model, STEPS[name], batch)
                case = Case("accelerated", batch, STEPS[name], 1.0, name, options.device, dtype)
                timed, reference = measure(case, model), references[batch]
                agrees = found.error <= AGREES * reference + ROUNDING[dtype]
                wrong += not agrees
                print(f"{name:12s} {dtype:>9s} {batch:5d} {found.error:9.1e} {reference:9.1e} "
                      f"{'-' if found.waits is None else format(found.waits, '.1f'):>12s} {timed['seconds']:8.3f} "
                      f"{timed['ratio']:6.3f}{'' if agrees else '  the device is off'}", flush=True)  # fmt: skip
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
