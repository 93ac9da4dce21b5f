"""Measure speed and memory at the size of public checkpoints: ``python -m benchmarks.full_size``.

The networks have the architectures of Stable Diffusion 1.5, SDXL, SDXL-turbo, Stable Diffusion 3, FLUX.1 schnell, SANA
and Z-Image-Turbo. Their weights are random, because speed and memory do not depend on the weights. The networks are
built on the device, and nothing is downloaded.

A case is a measurement, such as an inversion with a certain batch size. The most important cases are measured first,
and no case is started after ``--minutes`` minutes. If a case fails, for example because of a lack of memory, the error
is printed, and the other cases are measured. ``--json`` writes the results to a file after every case.

The output contains:

- ``seconds``: median duration of one run of the whole batch;
- ``evaluations``: number of network evaluations per image;
- ``ratio``: median ratio of the duration of a run to the duration of its *bare calls*. The bare calls are the same
  calls of the networks without the other code of this project, with a backward pass if the run has a backward pass. The
  bare calls are measured directly after the run, under the same load of the machine. A ratio of 1 means that the other
  code takes no time;
- ``images/h``: number of images per hour;
- ``peak GiB``: peak memory of the GPU including the weights.

Without ``--tiny``, the command also prints which goals of the project are met.

``--write`` stores the seconds per image in the file from which ``plan=true`` estimates the duration of runs. ``--tiny``
reduces the networks to a size that a CPU evaluates in milliseconds, in order to test this benchmark.

    python -m benchmarks.full_size --minutes 13 --json full_size.json --write
    python -m benchmarks.full_size --device cpu --tiny --models sd15 --minutes 1
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from diffusers import DDIMInverseScheduler
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import CLIPConfig, CLIPModel

from benchmarks import arguments
from benchmarks.random_checkpoints import CHECKPOINTS, CLIP_L, TINY_TEXT, Checkpoint, clip_tokenizer, randomize
from experiments.cache.atomic import atomic_write
from experiments.planning.cost import Cost, StagePlan
from experiments.planning.gpu_times import GpuTimes, store_times
from experiments.planning.plan import seconds_per_image
from experiments.runtime.device import synchronize
from nao import centroid
from rnri import FixedPoint, ImplicitInverter, Inverter, LatentDiffusion, RNRISign, anderson_inverter, invert
from rnri.models.compilation import CUDA_GRAPHS, check_compiler
from rnri.models.sampling import trajectory
from rnri.validation import first_line
from seedselect import ClipFeatures, Problem, SeedSelect, Targets

PROMPT = "a photo of a cat"
EDITED_PROMPT = "a photo of a dog"
GIBIBYTE = 2**30
MAX_REPEATS = 5
SECONDS_PER_CASE = 6.0
"""Approximate total duration of the repetitions of one measurement. At least one repetition is measured."""
NAO_SEEDS = 5
NAO_POINTS = 8
PLANNING_BATCH = 4
OUT_OF_TIME = "not measured: the time limit --minutes has passed"
COLUMNS = ("model", "case", "batch", "steps", "seconds", "evaluations", "ratio", "images/h", "peak GiB", "note")

INVERTERS: dict[str, Callable[[], Inverter]] = {
    "accelerated, 2 NFE": partial(anderson_inverter, 2),
    "ddim": lambda: ImplicitInverter(FixedPoint(1, 0)),
    "accelerated, 1 NFE": partial(anderson_inverter, 1),
    "accelerated, 5 NFE": partial(anderson_inverter, 5),
    "rnri_sign": lambda: ImplicitInverter(RNRISign(2, 0)),
    "fixed point, 5 NFE": lambda: ImplicitInverter(FixedPoint(5, 0)),
}
"""The measured inversion methods. The tolerance of the fixed-point methods is 0, so that no sample stops early."""


@dataclass
class Row:
    """One row of the table of results. The docstring of the module describes the columns.

    A value that does not apply to a case is None.

    Attributes:
        note: additional results of the case, or the reason why the case was not measured.
        extra_gib: peak memory of ``rnri.invert`` minus the peak memory of a pipeline call, only in the JSON file.
    """

    model: str
    case: str
    batch: int = 1
    steps: int | None = None
    seconds: float | None = None
    evaluations: float | None = None
    ratio: float | None = None
    images_per_hour: float | None = None
    peak_gib: float | None = None
    note: str = ""
    extra_gib: float | None = None

    def cells(self) -> list[str]:
        """Return the texts of the table cells, which are empty for values that are None."""
        return [
            self.model,
            self.case,
            str(self.batch),
            _text(self.steps, "d"),
            _text(self.seconds, ".4f"),
            _text(self.evaluations, "g"),
            _text(self.ratio, ".3f"),
            _text(self.images_per_hour, ",.0f"),
            _text(self.peak_gib, ".2f"),
            self.note,
        ]


def _text(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


@dataclass
class Bench:
    """The model that is being measured.

    Attributes:
        name: key of :data:`CHECKPOINTS`.
        checkpoint: the architecture.
        model: the model with random weights.
        tiny: whether the networks are reduced to a small size.
    """

    name: str
    checkpoint: Checkpoint
    model: LatentDiffusion
    tiny: bool

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def network(self) -> nn.Module:
        return self.model.family.network

    def latents(self, batch: int) -> Tensor:
        """Return noise ``[B,C,h,w]``, which replaces the clean latents of images."""
        return self.model.noise([f"z0 {k}" for k in range(batch)], seed=0)

    def images(self, batch: int) -> Tensor:
        """Return random images ``[B,3,H,W]`` on the CPU."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(batch, 3, *self.model.image_size, generator=generator)


@dataclass(frozen=True)
class Case:
    """One measurement of the benchmark.

    Attributes:
        name: name of the measurement in the column ``case``.
        measure: function that runs the measurement and writes the results to a row of the table.
        rank: order of the measurements; cases with a smaller rank are measured first.
        batch: batch size.
        steps: number of sampling steps; None for the default number of the model.
        applies: function that returns whether the case can be measured with a checkpoint.
        needs_gpu: whether the case can only be measured on a GPU.
    """

    name: str
    measure: Callable[[Bench, Row], None]
    rank: int
    batch: int = 1
    steps: int | None = None
    applies: Callable[[Checkpoint], bool] = lambda _: True
    needs_gpu: bool = False


@dataclass(frozen=True)
class NetworkCall:
    """A recorded call of a network.

    Attributes:
        network: the network.
        args: the positional arguments, detached from the autograd graph.
        kwargs: the keyword arguments, detached from the autograd graph.
        differentiated: position of the tensor whose gradient was computed, in the list of all leaves (tensors and other
            values) of ``(args, kwargs)``; None if the call had no backward pass.
    """

    network: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    differentiated: int | None

    def run(self) -> None:
        """Call the network again. If the recorded call had a backward pass, the backward pass is also repeated."""
        if self.differentiated is None:
            with torch.no_grad():
                self.network(*self.args, **self.kwargs)
            return
        z = tree_leaves((self.args, self.kwargs))[self.differentiated].requires_grad_()
        with torch.enable_grad():
            output = self.network(*self.args, **self.kwargs)
            torch.autograd.grad(_first_tensor(output).float().sum(), z)


@dataclass
class CallRecorder:
    """Records the calls of networks, and repeats the calls without other code.

    Attributes:
        calls: the recorded calls.
        rows: batch size of each call of the first network, which predicts noise or velocity.
    """

    calls: list[NetworkCall] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    @contextmanager
    def record(self, *networks: nn.Module, recomputes: bool = False) -> Iterator[None]:
        """Context manager that records all calls of ``networks`` in the ``with`` block.

        Args:
            networks: the networks. The first network predicts noise or velocity.
            recomputes: whether gradient checkpointing is used. If True, the first network is called again during the
                backward pass, and only the second call is recorded with a backward pass.
        """

        def hook(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            leaves = tree_leaves((args, kwargs))
            has_grad = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
            is_first_pass = recomputes and network is networks[0] and torch._C._current_graph_task_id() == -1
            has_backward = torch.is_grad_enabled() and any(has_grad) and not is_first_pass
            differentiated = has_grad.index(True) if has_backward else None
            detached_args, detached_kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
            self.calls.append(NetworkCall(network, detached_args, detached_kwargs, differentiated))
            if network is networks[0]:
                self.rows.append(len(args[0] if args else kwargs["hidden_states"]))

        handles = [network.register_forward_pre_hook(hook, with_kwargs=True) for network in networks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def replay(self) -> None:
        """Repeat the recorded calls."""
        for call in self.calls:
            call.run()


def _first_tensor(output: Any) -> Tensor:
    """Return the first tensor in the output of a network, which may be a tensor, a tuple or a dataclass."""
    if isinstance(output, Tensor):
        return output
    parts = output if isinstance(output, tuple) else tuple(output.values())
    return next(leaf for leaf in tree_leaves(parts) if isinstance(leaf, Tensor))


def compare(bench: Bench, row: Row, run: Callable[[], object], *networks: nn.Module, recomputes: bool = False) -> None:
    """Measure a function and its bare calls (its network calls without other code), and write the results to ``row``.

    The first run of the function records the network calls and is the warm-up.

    Args:
        bench: the model.
        row: row of the table for the results.
        run: the measured function.
        networks: networks that ``run`` calls in addition to the network that predicts noise or velocity.
        recomputes: whether ``run`` uses gradient checkpointing.
    """
    recorder = CallRecorder()
    with recorder.record(bench.network, *networks, recomputes=recomputes):
        run()
    recorder.replay()
    _reset_peak(bench.device)
    seconds = []
    ratios = []
    started = time.perf_counter()
    repeats = 1 if bench.tiny else MAX_REPEATS
    while not seconds or (len(seconds) < repeats and time.perf_counter() - started < SECONDS_PER_CASE):
        seconds.append(_seconds(bench.device, run))
        ratios.append(seconds[-1] / _seconds(bench.device, recorder.replay))
    row.seconds = statistics.median(seconds)
    row.ratio = statistics.median(ratios)
    row.evaluations = sum(recorder.rows) / row.batch
    row.images_per_hour = 3600 * row.batch / row.seconds
    row.peak_gib = _peak(bench.device)


def _seconds(device: torch.device, run: Callable[[], object]) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / GIBIBYTE if device.type == "cuda" else None


def bare_call(bench: Bench, row: Row) -> None:
    """Measure one call of the network without the other code of this project."""
    recorder = CallRecorder()
    with torch.no_grad(), recorder.record(bench.network):
        bench.model.predictor([PROMPT] * row.batch)(bench.latents(row.batch), bench.model.schedule(1).timestep(0))
    recorder.replay()
    _reset_peak(bench.device)
    row.seconds = statistics.median(_seconds(bench.device, recorder.replay) for _ in range(2 * MAX_REPEATS))
    row.steps, row.evaluations, row.ratio = None, 1, 1.0
    row.images_per_hour = 3600 * row.batch / row.seconds
    row.peak_gib = _peak(bench.device)


def inversion(bench: Bench, row: Row, *, inverter: Callable[[], Inverter]) -> None:
    """Measure the inversion of clean latents, without the VAE."""
    predictor = bench.model.predictor([PROMPT] * row.batch)
    schedule = bench.model.schedule(row.steps)
    z0 = bench.latents(row.batch)
    method = inverter()
    compare(bench, row, lambda: method.invert(z0, predictor, schedule))


def diffusers_inversion(bench: Bench, row: Row) -> None:
    """Measure DDIM inversion with the scheduler ``DDIMInverseScheduler`` of diffusers."""
    denoiser: Any = bench.model.predictor([PROMPT] * row.batch).denoiser
    scheduler = DDIMInverseScheduler.from_config(bench.model.pipeline.scheduler.config)
    z0 = bench.latents(row.batch).to(bench.model.dtype)
    added = dict(denoiser.positive.added) or None

    @torch.no_grad()
    def run() -> Tensor:
        scheduler.set_timesteps(row.steps, device=bench.device)
        z = z0
        for t in scheduler.timesteps:
            noise = bench.network(
                z, t, encoder_hidden_states=denoiser.positive.text, added_cond_kwargs=added, return_dict=False
            )[0]
            z = scheduler.step(noise, t, z).prev_sample
        return z

    compare(bench, row, run)


def invert_and_edit(bench: Bench, row: Row, *, with_vae: bool) -> None:
    """Measure an inversion with two network evaluations per step, followed by sampling with another prompt."""
    model = bench.model
    source = model.predictor([PROMPT] * row.batch)
    target = model.predictor([EDITED_PROMPT] * row.batch)
    schedule = model.schedule(row.steps)
    method = anderson_inverter(2)
    images = bench.images(row.batch).to(bench.device)
    z0 = bench.latents(row.batch)

    @torch.no_grad()
    def run() -> None:
        clean = model.encode(images) if with_vae else z0
        edited = model.sample(method.invert(clean, source, schedule).seed, target, schedule)
        if with_vae:
            model.decode(edited).cpu()

    vae = model.pipeline.vae
    compare(bench, row, run, *((vae.encoder, vae.decoder) if with_vae else ()))


def seedselect_update(bench: Bench, row: Row, *, checkpoint: bool) -> None:
    """Measure one update of SeedSelect with random CLIP weights, and the evaluation of the loss after the update."""
    model = bench.model
    clip = random_clip(bench)
    predictor = model.predictor([PROMPT] * row.batch)
    schedule = model.schedule(row.steps)
    seeds = model.noise(range(row.batch), seed=0)
    with torch.no_grad():
        z0 = bench.latents(row.batch)
        targets = Targets(clip(model.decode(z0)), z0)

    def last_latents(z: Tensor, rows: Tensor) -> list[Tensor]:
        keep = min(3, len(schedule))
        return trajectory(z, predictor.select(rows), schedule, keep_last=keep, checkpoint=checkpoint)

    method = SeedSelect(iterations=1).with_steps(len(schedule))
    problem = Problem(last_latents, model.decode, clip, targets)
    networks = (model.pipeline.vae.decoder, clip.model.vision_model)
    compare(bench, row, lambda: method(seeds, problem), *networks, recomputes=checkpoint)


def random_clip(bench: Bench) -> ClipFeatures:
    """Return CLIP ViT-L/14 with random weights on the device of ``bench``."""
    text = CLIP_L | (TINY_TEXT if bench.tiny else {})
    vision = {"image_size": 224, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096,
              "num_hidden_layers": 24, "num_attention_heads": 16}  # fmt: skip
    if bench.tiny:
        vision |= {"image_size": 28, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                   "num_attention_heads": 4}  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=text["projection_dim"])
    with torch.device(bench.device):
        network = randomize(CLIPModel(config).to(bench.model.dtype))
    return ClipFeatures(network, clip_tokenizer(text["vocab_size"]))


def nao_centroid(bench: Bench, row: Row) -> None:
    """Measure NAO's centroid of five seeds, which needs no network evaluations."""
    seeds = bench.model.noise(range(row.batch * NAO_SEEDS), seed=0).unflatten(0, (row.batch, NAO_SEEDS))
    centroid(seeds, NAO_POINTS)
    _reset_peak(bench.device)
    row.steps = None
    row.seconds = statistics.median(
        _seconds(bench.device, lambda: centroid(seeds, NAO_POINTS)) for _ in range(MAX_REPEATS)
    )
    row.images_per_hour = 3600 * row.batch / row.seconds
    row.peak_gib = _peak(bench.device)


def compiled_inversion(bench: Bench, row: Row, *, mode: str | None) -> None:
    """Measure an inversion with a network that ``torch.compile`` has compiled for static shapes."""
    check_compiler(bench.device)
    bench.network.compile(dynamic=False, mode=mode)
    try:
        predictor = bench.model.predictor([PROMPT] * row.batch)
        schedule = bench.model.schedule(row.steps)
        z0 = bench.latents(row.batch)
        method = anderson_inverter(2)
        start = time.perf_counter()
        method.invert(z0, predictor, schedule)
        synchronize(bench.device)
        first = time.perf_counter() - start
        compare(bench, row, lambda: method.invert(z0, predictor, schedule))
        row.note = f"first run {first:.1f} s"
    finally:
        bench.network._compiled_call_impl = None


def offload(bench: Bench, row: Row, *, mode: str) -> None:
    """Measure the peak memory of ``rnri.invert`` and of a call of the pipeline, with the same offloading to the CPU."""
    pipeline = bench.model.pipeline
    image = bench.images(1)
    if mode == "model":
        pipeline.enable_model_cpu_offload()
    elif mode == "group":
        pipeline.enable_group_offload(
            onload_device=torch.device("cuda"), offload_type="block_level", num_blocks_per_group=1
        )
    calls = {
        "pipeline": lambda: pipeline(PROMPT, num_inference_steps=2, guidance_scale=0.0 if bench.name == "z_image_turbo"
                                     else 1.0),
        "rnri.invert": lambda: invert(pipeline, image, PROMPT, num_inference_steps=2, fit="exact"),
    }  # fmt: skip
    peaks = {}
    for name, call in calls.items():
        gc.collect()
        torch.cuda.empty_cache()
        _reset_peak(bench.device)
        call()
        peaks[name] = torch.cuda.max_memory_allocated() / GIBIBYTE
    row.steps = 2
    row.peak_gib = peaks["rnri.invert"]
    row.extra_gib = peaks["rnri.invert"] - peaks["pipeline"]
    row.note = f"pipeline {peaks['pipeline']:.2f} GiB, difference {row.extra_gib:+.2f} GiB"


def planning_times(bench: Bench, row: Row, *, times: list[GpuTimes]) -> None:
    """Measure the seconds per image from which ``plan=true`` estimates the duration of a run."""
    row.steps = None
    stage = StagePlan("all", 1, 0, Cost(1, 1, 1, 1))
    seconds = seconds_per_image(bench.model, [PROMPT] * row.batch, [stage])
    dtype = str(bench.model.dtype).removeprefix("torch.")
    gpu = device_name(bench.device)
    times.append(GpuTimes(gpu, bench.checkpoint.hub_id, dtype, row.batch, seconds, torch.__version__))
    row.seconds = seconds["forward"] * row.batch
    row.note = ", ".join(f"{name} {1e3 * value:.4g} ms/image" for name, value in seconds.items())


def all_cases(times: list[GpuTimes]) -> list[Case]:
    """Return all cases in the order in which they are measured. The case ``planning`` appends results to ``times``."""

    def is_unet(checkpoint: Checkpoint) -> bool:
        return checkpoint.network[0] == "unet"

    def is_turbo(checkpoint: Checkpoint) -> bool:
        return checkpoint.is_turbo

    cases = [Case("bare call", bare_call, 0)]
    ranks = {"accelerated, 2 NFE": 0, "ddim": 0}
    cases += [Case(name, partial(inversion, inverter=make), ranks.get(name, 1)) for name, make in INVERTERS.items()]
    for steps, with_vae in product((2, 1, 4), (False, True)):
        name = f"invert and edit{' with VAE' if with_vae else ''}"
        rank = 0 if steps == 2 else 1
        cases.append(Case(name, partial(invert_and_edit, with_vae=with_vae), rank, steps=steps, applies=is_turbo))
    cases.append(Case("planning", partial(planning_times, times=times), 0, batch=PLANNING_BATCH))
    cases.append(Case("DDIM inversion of diffusers", diffusers_inversion, 1, applies=is_unet))
    for batch in (4, 8):
        cases.append(Case("bare call", bare_call, 1, batch=batch))
        cases.append(Case("accelerated, 2 NFE", partial(inversion, inverter=INVERTERS["accelerated, 2 NFE"]), 1, batch))
    for mode, name in ((None, "torch.compile"), (CUDA_GRAPHS, "torch.compile, CUDA graphs")):
        cases.append(Case(name, partial(compiled_inversion, mode=mode), 2, needs_gpu=mode is not None))
    for checkpoint in (True, False):
        name = f"SeedSelect update, {'with' if checkpoint else 'without'} checkpointing"
        cases.append(Case(name, partial(seedselect_update, checkpoint=checkpoint), 2))
    cases.append(Case("NAO centroid of 5 seeds", nao_centroid, 2))
    for mode in ("none", "model", "group"):
        cases.append(Case(f"offload: {mode}", partial(offload, mode=mode), 2, needs_gpu=True))
    return sorted(cases, key=lambda case: case.rank)


@dataclass
class Session:
    """A run of the benchmark: builds one model after the other and measures the cases.

    Attributes:
        device: device of the networks.
        dtype: dtype of the networks.
        tiny: whether the networks are reduced to a small size.
        steps: number of sampling steps; None selects the default number of each checkpoint.
        deadline: value of ``time.perf_counter()`` after which no case is started.
        rows: the results.
        bench: the model that is being measured; None if no model is loaded.
    """

    device: str
    dtype: torch.dtype
    tiny: bool
    steps: int | None
    deadline: float
    rows: list[Row] = field(default_factory=list)
    bench: Bench | None = None

    def measure(self, name: str, case: Case) -> Row:
        """Measure ``case`` on the model ``name``. An error message is stored as the note of the returned row."""
        checkpoint = CHECKPOINTS[name]
        row = Row(name, case.name, case.batch, case.steps or self.steps or checkpoint.steps)
        self.rows.append(row)
        if time.perf_counter() > self.deadline:
            row.note = OUT_OF_TIME
            return row
        try:
            case.measure(self._bench(name, checkpoint), row)
        except Exception as error:  # for example a lack of memory, or a feature that the device does not support
            row.note = f"not measured: {first_line(error)}"
            self.bench = None
        if case.name.startswith("offload"):
            self.bench = None  # the model cannot be used again, because offloading hooks remain in the pipeline
        return row

    def _bench(self, name: str, checkpoint: Checkpoint) -> Bench:
        if self.bench is None or self.bench.name != name:
            self.bench = None
            gc.collect()
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()
            model = checkpoint.build(self.device, self.dtype, tiny=self.tiny)
            self.bench = Bench(name, checkpoint, model, self.tiny)
        return self.bench


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of the results, followed by the number of cases that were not started, if any."""
    late = sum(row.note == OUT_OF_TIME for row in rows)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row.cells() for row in rows if row.note != OUT_OF_TIME)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + (f"\n\n{late} cases were not measured, because the time limit --minutes had passed." if late else "")


def goals(rows: Sequence[Row]) -> dict[str, str]:
    """Return, for each goal of the project at full size, whether the goal is met, and the largest measured value."""
    turbo = [row for row in rows if row.model == "sdxl_turbo" and row.steps == 2 and row.batch == 1]
    seconds = {row.case: row.seconds for row in turbo}
    values = {
        "ratio of every inversion at most 1.03": (1.03, [row.ratio for row in rows if row.case in INVERTERS]),
        "SDXL-turbo, invert and edit in 2 steps, at most 0.3 s": (0.3, [seconds.get("invert and edit")]),
        "the same with the VAE, at most 0.5 s": (0.5, [seconds.get("invert and edit with VAE")]),
        "rnri.invert needs at most 0.5 GiB more than the pipeline": (0.5, [row.extra_gib for row in rows]),
    }
    verdicts = {}
    for goal, (limit, measured) in values.items():
        largest = max((value for value in measured if value is not None), default=None)
        verdicts[goal] = (
            "not measured" if largest is None else f"{'met' if largest <= limit else 'missed'} ({largest:.3g})"
        )
    return verdicts


def main() -> int:
    """Print the table. The exit status is 1 if a case failed; cases that were not started do not count as failed."""
    parser = arguments.Arguments(__doc__)
    parser.add_argument("--device", type=arguments.device, default=arguments.default_device())
    parser.add_argument("--dtype", choices=arguments.DTYPES, default="bfloat16")
    parser.add_argument("--models", nargs="+", choices=list(CHECKPOINTS), default=list(CHECKPOINTS))
    names = list(dict.fromkeys(case.name for case in all_cases([])))
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--steps", type=arguments.steps, help="number of sampling steps (default: see CHECKPOINTS)")
    parser.add_argument(
        "--minutes", type=arguments.integer(), default=13, help="minutes after which no case is started"
    )
    parser.add_argument("--tiny", action="store_true", help="reduce the networks, in order to test this benchmark")
    parser.add_argument("--json", type=arguments.output_file, help="file to write the results to, after every case")
    parser.add_argument("--write", action="store_true", help="store the times that plan=true uses")
    options = parser.parse_args()
    if options.write and (options.tiny or options.dtype != "bfloat16" or not options.device.startswith("cuda")):
        parser.error(
            "--write: the times must be measured at full size in bfloat16 on a CUDA GPU, got "
            f"{options.device}, {options.dtype}{', tiny' * options.tiny}; omit --write."
        )
    times: list[GpuTimes] = []
    on_gpu = options.device.startswith("cuda")
    cases = [case for case in all_cases(times) if case.name in options.cases and (on_gpu or not case.needs_gpu)]
    deadline = time.perf_counter() + 60 * options.minutes
    session = Session(options.device, getattr(torch, options.dtype), options.tiny, options.steps, deadline)
    for rank, name in product(sorted({case.rank for case in cases}), options.models):
        for case in cases:
            if case.rank == rank and case.applies(CHECKPOINTS[name]):
                row = session.measure(name, case)
                if row.note != OUT_OF_TIME:
                    print(" ".join(filter(None, row.cells())), flush=True)
                if options.json:
                    content = {"device": device_name(torch.device(options.device)), "dtype": options.dtype,
                               "tiny": options.tiny, "torch": torch.__version__,
                               "goals": None if options.tiny else goals(session.rows),
                               "rows": [asdict(row) for row in session.rows]}  # fmt: skip
                    text = json.dumps(content, indent=1)
                    atomic_write(options.json, lambda path, text=text: path.write_text(f"{text}\n"))
                if options.write:
                    store_times(times)
    print(f"\n{table(session.rows)}")
    if not options.tiny:
        print("\n" + "\n".join(f"Goal: {goal}: {verdict}" for goal, verdict in goals(session.rows).items()))
    return int(any(row.note.startswith("not measured") and row.note != OUT_OF_TIME for row in session.rows))


if __name__ == "__main__":
    arguments.run(main)
