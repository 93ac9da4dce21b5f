"""Prints the cost of each stage of a run without running it, if ``plan=true`` or ``plan=counts``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import Tensor, nn

from experiments.config.trainer_options import is_training
from experiments.planning.cost import Cost, StagePlan
from experiments.planning.gpu_times import format_hours, load_times
from experiments.reporting.tables import markdown_table
from experiments.runtime.device import peak_memory, synchronize
from experiments.runtime.progress import format_duration, timed
from rnri import LatentDiffusion

COLUMNS = {
    "stage": "stage", "units": "units", "done": "on disk", "forward": "forward", "backward": "backward",
    "decodings": "decodings", "decodings_backward": "of which backward", "size": "disk, MB",
}  # fmt: skip
BYTES_PER_GB = 1e9


@rank_zero_only
def print_plan(config: DictConfig, task: Any, trainer: Trainer) -> None:
    """Print the number of network evaluations of a run, its disk space and the size of the weights.

    With ``plan=true``, network calls are timed on this device to estimate the duration of the run. With
    ``plan=counts``, no network is called.
    """
    stages = task.plan(trainer)
    print(
        f"Plan of {config.name}: nothing is computed or written. The numbers of network evaluations are upper bounds; "
        "a batch of n images counts as n evaluations.\n"
    )
    print(table(stages))
    model = getattr(getattr(task, "networks", None), "model", None)
    if model is None:
        print(training_size(task) if is_training(config) else "The run prints its estimated duration when it starts.")
        return
    print(f"Weights: {weight_bytes(task.networks) / BYTES_PER_GB:.2f} GB.", flush=True)
    if config.plan is True:
        print(format_time_estimate(stages, model, task.prompts(), trainer.world_size))
    print(format_hours(sum((stage.cost for stage in stages), Cost()), load_times()))


def table(stages: Sequence[StagePlan]) -> str:
    """Return a Markdown table of costs, with one row per stage of the run and one row with the total."""
    total = StagePlan(
        "total",
        sum(s.units for s in stages),
        sum(s.done for s in stages),
        sum((s.cost for s in stages), Cost()),
        sum(s.size for s in stages),
    )
    rows = [
        {"stage": s.stage, "units": f"{s.units:,}", "done": f"{s.done:,}", "size": f"{s.size / 1e6:,.1f}"}
        | {name: f"{round(getattr(s.cost, name)):,}" for name in COLUMNS if hasattr(s.cost, name)}
        for s in [*stages, total]
    ]
    return markdown_table(rows, COLUMNS)


def training_size(task: Any) -> str:
    """Return a sentence with the size of the trained networks and of their checkpoints."""
    modules = [part for part in vars(task).values() if isinstance(part, nn.Module)]
    modules += list(getattr(getattr(task, "pipeline", None), "components", {}).values())
    size = sum(_bytes(module) for module in modules if isinstance(module, nn.Module))
    weights = f"Weights: {size / BYTES_PER_GB:.2f} GB. " if size else ""
    return (
        f"{weights}A checkpoint takes four times the size of the trained weights: the weights, their moving average, "
        "and AdamW's two moments. To measure the duration, run with trainer.max_steps=20 run_dir=trial."
    )


def weight_bytes(networks: Any) -> float:
    """Return the total size of the weights of all networks, in bytes."""
    clip = None if networks.clip is None else networks.clip.model
    classifiers = [networks.classifier, getattr(networks, "second_classifier", None)]
    modules = [*networks.model.pipeline.components.values(), clip, *classifiers]
    return sum(_bytes(module) for module in modules if isinstance(module, nn.Module))


def _bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def format_time_estimate(
    stages: Sequence[StagePlan], model: LatentDiffusion, prompts: Sequence[str], devices: int
) -> str:
    """Time one batch; return text with the estimated duration of the run and the peak memory of the timed batch.

    The duration is estimated for 1, ``devices``, 8 and 64 devices of the same type as this device.
    """
    cost = sum((stage.cost for stage in stages), Cost())
    times = seconds_per_image(model, prompts, stages)
    seconds = sum(getattr(cost, name) * time for name, time in times.items())
    device = model.noise([0], 0).device
    owner = f"on {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "of this process"
    peak = f"{peak_memory(device) / BYTES_PER_GB:.2f} GB {owner}"
    measured = ", ".join(f"{name.replace('_', ' ')} {time * 1e3:.3g} ms" for name, time in times.items())
    durations = "; ".join(
        f"{n} {'device' if n == 1 else 'devices'}: {format_duration(seconds / n)}" for n in sorted({1, devices, 8, 64})
    )
    return (
        f"Peak memory while timing a batch of {len(prompts)}: {peak}.\n"
        f"Timed on {device}, per image: {measured}.\nTime: {durations}."
    )


def seconds_per_image(model: LatentDiffusion, prompts: Sequence[str], stages: Sequence[StagePlan]) -> dict[str, float]:
    """Measure the time in seconds per image of each kind of network evaluation that the stages need.

    The keys of the returned dict are field names of :class:`Cost`, such as ``forward`` and ``decodings_backward``.
    """
    predictor = model.predictor(prompts)
    t = model.schedule(2).timestep(0)  # some schedulers need at least 2 steps
    noise = model.noise(range(len(prompts)), 0)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "forward": lambda z: predictor(z, t),
        "decodings": model.decode,
    }
    gradients = {"backward": "forward", "decodings_backward": "decodings"}
    used = {name for stage in stages for name in (*functions, *gradients) if getattr(stage.cost, name)}

    def forward(function: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            function(noise)

    def forward_and_backward(function: Callable[[Tensor], Tensor]) -> None:
        with torch.enable_grad():
            z = noise.detach().clone().requires_grad_()
            torch.autograd.grad(function(z).float().sum(), z)

    def time(run: Callable[[Callable[[Tensor], Tensor]], None], name: str) -> float:
        return timed(lambda: run(functions[name]), lambda: synchronize(noise.device)) / len(prompts)

    times = {name: time(forward, name) for name in functions if name in used}
    for gradient, name in gradients.items():
        if gradient in used:  # subtract the time of the forward pass, because Cost counts forward passes separately
            times[gradient] = max(0.0, time(forward_and_backward, name) - times.get(name, 0.0))
    return times
