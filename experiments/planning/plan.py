"""``plan=true``: what a run would take, stage by stage, and nothing computed."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import nn

from experiments.cache.store import synchronize
from experiments.planning.cost import Cost, Planned
from experiments.reporting.tables import markdown_table
from experiments.runtime.progress import said, timed
from experiments.runtime.run_lock import is_training
from rnri import LatentDiffusion

COLUMNS = {
    "stage": "stage", "units": "units", "done": "on disk", "forward": "forward", "backward": "backward",
    "decodings": "decodings", "decodings_backward": "of them backward", "size": "disk, MB",
}  # fmt: skip
GIGA = 1e9


@rank_zero_only
def print_plan(config: DictConfig, task: Any, trainer: Trainer) -> None:
    """Prints units, network evaluations, disk and memory; with ``plan=true``, hours, from a few calls timed here."""
    stages = planned(config, task)
    print(f"Plan of {config.name}: nothing is computed, nothing written. Evaluations are of one image each, at most.\n")
    print(table(stages))
    model = getattr(getattr(task, "networks", None), "model", None)
    if model is None:
        print(trained_size(task) if is_training(config) else "Hours are those that a run announces before it begins.")
        return
    print(f"Weights: {weights(task.networks) / GIGA:.2f} GB.", flush=True)
    if config.plan is True:
        devices = trainer.world_size
        print(hours(stages, model, task.prompts(), devices))


def planned(config: DictConfig, task: Any) -> list[Planned]:
    """The stages as the task plans them; of a training its steps; of other jobs about what each says that it costs."""
    if hasattr(task, "plan"):
        return task.plan()
    if is_training(config):
        return [training(config)]
    stages, units = {}, task.units()
    for job in task.jobs:
        done = units[job.unit].done(job.key)
        known = stages.get(job.label, Planned(job.label, 0, 0, Cost()))
        cost = known.cost if done else known.cost + job.cost
        stages[job.label] = Planned(job.label, known.units + 1, known.done + done, cost)
    return list(stages.values())


def table(stages: Sequence[Planned]) -> str:
    """The stages and their sum, as Markdown."""
    whole = Planned(
        "total", sum(s.units for s in stages), sum(s.done for s in stages), sum((s.cost for s in stages), Cost()),
        sum(s.size for s in stages),
    )  # fmt: skip
    rows = [
        {"stage": s.stage, "units": f"{s.units:,}", "done": f"{s.done:,}", "size": f"{s.size / 1e6:,.1f}"}
        | {name: f"{round(getattr(s.cost, name)):,}" for name in COLUMNS if hasattr(s.cost, name)}
        for s in [*stages, whole]
    ]
    return markdown_table(rows, COLUMNS)


def training(config: DictConfig) -> Planned:
    """A training: every step is a pass forward and one back for each image of a batch, on every device."""
    steps, batch = config.trainer.max_steps, config.task.batch_size
    return Planned(f"training, {steps:,} steps of {batch} images", steps, 0, Cost(steps * batch, 0, steps * batch, 0))


def trained_size(task: Any) -> str:
    """What is known of a training's size and time."""
    parts = [part for part in vars(task).values() if isinstance(part, nn.Module)]
    parts += list(getattr(getattr(task, "pipeline", None), "components", {}).values())
    held = sum(_bytes(part) for part in parts if isinstance(part, nn.Module))
    known = f"Weights: {held / GIGA:.2f} GB. " if held else ""
    return (
        f"{known}Checkpoints hold the trained part four times: itself, its average and AdamW's two moments. Hours are "
        "those of a trial: trainer.max_steps=20 run_dir=trial."
    )


def weights(networks: Any) -> float:
    """Bytes of all networks."""
    parts = [*networks.model.pipeline.components.values(), networks.clip.model, networks.classifier]
    return sum(_bytes(part) for part in parts if isinstance(part, nn.Module))


def _bytes(part: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in part.state_dict().values())


def hours(stages: Sequence[Planned], model: LatentDiffusion, prompts: Sequence[str], devices: int) -> str:
    """Hours on ``devices`` like this one and on others' numbers, from the times of one batch, and its peak memory."""
    cost, times = sum((stage.cost for stage in stages), Cost()), batch_times(model, prompts, stages)
    seconds = sum(getattr(cost, name) * each for name, each in times.items())
    device = model.noise([0], 0).device
    if device.type == "cuda":
        peak = f"{torch.cuda.max_memory_allocated(device) / GIGA:.2f} GB on {torch.cuda.get_device_name(device)}"
    else:
        peak = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGA:.2f} GB of this process"
    measured = ", ".join(f"{name.replace('_', ' ')} {each * 1e3:.3g} ms" for name, each in times.items())
    counts = sorted({1, devices, 8, 64})
    told = "; ".join(f"{n} {'device' if n == 1 else 'devices'}: {said(seconds / n)}" for n in counts)
    return (
        f"Peak memory while timing a batch of {len(prompts)}: {peak}.\n"
        f"Timed here on {device}, an image: {measured}.\nTime: {told}."
    )


def batch_times(model: LatentDiffusion, prompts: Sequence[str], stages: Sequence[Planned]) -> dict[str, float]:
    """Seconds an image, by the names of :class:`Cost`, of what the stages use."""
    predictor, t = model.predictor(prompts), model.schedule(1).timestep(0)
    noise = model.noise(range(len(prompts)), 0)

    def forward(call: Any) -> Any:
        def run() -> None:
            with torch.no_grad():
                call(noise)

        return run

    def both(call: Any) -> Any:
        def run() -> None:
            with torch.enable_grad():
                z = noise.detach().clone().requires_grad_()
                torch.autograd.grad(call(z).float().sum(), z)

        return run

    calls = {"forward": forward(lambda z: predictor(z, t)), "decodings": forward(model.decode)}
    derived = {"backward": both(lambda z: predictor(z, t)), "decodings_backward": both(model.decode)}
    used = {name for stage in stages for name in (*calls, *derived) if getattr(stage.cost, name)}

    def time(call: Any) -> float:
        return timed(call, lambda: synchronize(noise.device)) / len(prompts)

    found = {name: time(call) for name, call in calls.items() if name in used}
    for (name, call), plain in zip(derived.items(), calls, strict=True):
        if name in used:
            found[name] = max(0.0, time(call) - found.get(plain, 0.0))  # the pass forward is counted by itself
    return found
