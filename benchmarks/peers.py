"""Compare the speed of this project with plain loops that compute the same methods: ``python -m benchmarks.peers``.

Each pair consists of two implementations that compute the same result with the same network. ``ours`` is the
implementation in this project. ``theirs`` is a scheduler of diffusers, or a plain loop that follows the paper of the
method. The two implementations run in one process, in alternating order. For each pair and batch size, the output
contains:

- ``theirs ms`` and ``ours ms``: median CPU time of ``theirs`` and ``ours`` per image, in milliseconds;
- ``theirs / ours``: median ratio of the CPU times of two consecutive runs. If the ratio is above 1, this project is
  faster;
- ``evaluations``: number of network evaluations per image, which must be equal for ``theirs`` and ``ours``;
- ``difference``: maximum absolute difference of the two results.

Like the published code, the plain loops process one image after the other. The scheduler of diffusers processes the
whole batch. Use one thread (``OMP_NUM_THREADS=1``) and a machine without other load.

    OMP_NUM_THREADS=1 python -m benchmarks.peers --batches 1 4 --repeats 15 --json peers.json
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import DDIMInverseScheduler
from torch import Tensor

import nao
from benchmarks import arguments
from benchmarks.inversion import load
from experiments.config.project import project_path
from rnri import FixedPoint, ImplicitInverter, LatentDiffusion, NoisePredictor, ReNoise
from rnri.models.sampling import trajectory
from seedselect import ClipFeatures, Problem, SeedSelect, Targets, text_similarity
from seedselect.gradients import clip_norm

PROMPT = "a drawing of a camel"
FIXED_POINT_EVALUATIONS = 5
RENO_UPDATES = 4
RENO_RATE = 5.0
RENO_MOMENTUM = 0.9
RENO_PENALTY = 0.01
RENO_MAX_NORM = 0.1


@dataclass(frozen=True)
class Pair:
    """Two implementations that compute the same result with the same network.

    Attributes:
        network: the network that both implementations call, whose evaluations are counted.
        theirs: function that computes the result with the other implementation.
        ours: function that computes the result with this project.
    """

    network: torch.nn.Module
    theirs: Callable[[], Tensor]
    ours: Callable[[], Tensor]


@dataclass(frozen=True)
class PairTiming:
    """Measured times of a pair of implementations. The docstring of the module describes the attributes."""

    pair: str
    batch: int
    steps: int
    theirs_ms: float
    ours_ms: float
    ratio: float
    theirs_evaluations: float
    ours_evaluations: float
    difference: float


@dataclass(frozen=True)
class Inputs:
    """The inputs of an inversion: a model, clean latents ``z0 [B,C,h,w]`` and the number of steps."""

    model: LatentDiffusion
    z0: Tensor
    steps: int

    @classmethod
    def sampled(cls, batch: int, steps: int) -> Inputs:
        model = load("emoji", "cpu", "float32")
        schedule = model.schedule(steps)
        with torch.no_grad():
            z0 = model.sample(model.noise(range(batch), seed=0), model.predictor([PROMPT] * batch), schedule)
        return cls(model, z0.float(), steps)

    @property
    def predictor(self) -> NoisePredictor:
        return self.model.predictor([PROMPT] * len(self.z0))

    def pair(self, theirs: Callable[[], Tensor], inverter: ImplicitInverter) -> Pair:
        predictor = self.predictor
        schedule = self.model.schedule(self.steps)
        ours = partial(inverter.invert, self.z0, predictor, schedule)
        return Pair(self.model.pipeline.unet, theirs, lambda: ours().seed)

    def plain_loop(self, step: Callable[..., Tensor]) -> Callable[[], Tensor]:
        """Return a function that inverts the images one after the other, in a loop over the steps.

        Args:
            step: function ``step(y, z_s, a, b, t)`` that solves the equation ``z_t = a z_s + b y(z_t)`` of one
                inversion step for the noisier latent ``z_t``. The function ``y`` returns the prediction of the network
                at timestep ``t``, ``z_s`` is the cleaner latent, and ``a`` and ``b`` are coefficients.
        """
        unet = self.model.pipeline.unet
        text = self._text()
        scheduler = DDIMInverseScheduler.from_config(self.model.pipeline.scheduler.config)
        scheduler.set_timesteps(self.steps)
        alpha_bar = scheduler.alphas_cumprod
        levels = [scheduler.initial_alpha_cumprod, *(alpha_bar[t] for t in scheduler.timesteps)]

        def invert(z: Tensor) -> Tensor:
            for t, before, after in zip(scheduler.timesteps, levels[:-1], levels[1:], strict=True):
                a = (after / before).sqrt()
                b = (1 - after).sqrt() - a * (1 - before).sqrt()
                z = step(lambda x, t=t: unet(x, t, encoder_hidden_states=text[:1], return_dict=False)[0], z, a, b, t)
            return z

        return torch.no_grad()(lambda: torch.cat([invert(z) for z in self.z0.split(1)]))

    def _text(self) -> Tensor:
        encode = self.model.pipeline.encode_prompt
        with torch.no_grad():
            return encode([PROMPT] * len(self.z0), self.model.device, 1, do_classifier_free_guidance=False)[0]


def ddim(batch: int, steps: int) -> Pair:
    """Return the pair for DDIM inversion: this project, and a loop with ``DDIMInverseScheduler`` of diffusers."""
    inputs = Inputs.sampled(batch, steps)
    unet = inputs.model.pipeline.unet
    text = inputs._text()
    scheduler = DDIMInverseScheduler.from_config(inputs.model.pipeline.scheduler.config)

    @torch.no_grad()
    def theirs() -> Tensor:
        scheduler.set_timesteps(steps)
        z = inputs.z0
        for t in scheduler.timesteps:
            noise = unet(z, t, encoder_hidden_states=text, return_dict=False)[0]
            z = scheduler.step(noise, t, z).prev_sample
        return z

    return inputs.pair(theirs, ImplicitInverter(FixedPoint(1, 0)))


def fixed_point(batch: int, steps: int) -> Pair:
    """Return the pair for a fixed-point iteration with 5 evaluations per step (AIDI, Pan et al. 2023)."""

    def step(y: Callable[[Tensor], Tensor], z_s: Tensor, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        z = z_s
        for _ in range(FIXED_POINT_EVALUATIONS):
            z = a * z_s + b * y(z)
        return z

    inputs = Inputs.sampled(batch, steps)
    return inputs.pair(inputs.plain_loop(step), ImplicitInverter(FixedPoint(FIXED_POINT_EVALUATIONS, 0)))


def renoise(batch: int, steps: int) -> Pair:
    """Return the pair for ReNoise (Garibi et al. 2024, Algorithm 1) with default settings."""
    settings = ReNoise(tolerance=0)

    def step(y: Callable[[Tensor], Tensor], z_s: Tensor, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        is_clean = t < settings.clean_below
        evaluations = settings.clean_iterations if is_clean else settings.iterations
        window = slice(settings.clean_from, settings.clean_to) if is_clean else slice(settings.average_from, None)
        z = z_s
        predictions = []
        for _ in range(evaluations):
            predictions.append(y(z))
            z = a * z_s + b * predictions[-1]
        return a * z_s + b * torch.stack(predictions[window]).mean(0)

    inputs = Inputs.sampled(batch, steps)
    return inputs.pair(inputs.plain_loop(step), ImplicitInverter(settings))


def reno(batch: int, steps: int) -> Pair:
    """Return the pair for ReNO (Eyring et al. 2024), which maximizes a reward minus a penalty on the seeds' norms."""
    model = load("emoji_lcm", "cpu", "float32")
    # assets/models/clip is not used, because its gradients are sensitive to rounding errors.
    clip = ClipFeatures.from_pretrained(
        project_path("assets/models/clip_score"), device="cpu", dtype=torch.float32, local_files_only=True
    )
    schedule = model.schedule(1)
    seeds = model.noise(range(batch), seed=0)
    with torch.no_grad():
        text = clip.text([PROMPT])
    predictor = model.predictor([PROMPT] * batch)
    unet = model.pipeline.unet
    single = model.predictor([PROMPT])
    t = schedule.timestep(0)
    a, b = schedule.coefficients(0)
    condition = single.denoiser.positive.text
    guidance = single.denoiser.guidance_embedding

    def image_reward(seed: Tensor) -> Tensor:
        noise = unet(seed, t, encoder_hidden_states=condition, timestep_cond=guidance, return_dict=False)[0]
        return (clip(model.decode((seed - b * noise) / a)) * text).sum()

    def optimize(seed: Tensor) -> Tensor:
        z = torch.nn.Parameter(seed.clone())
        optimizer = torch.optim.SGD([z], lr=RENO_RATE, momentum=RENO_MOMENTUM, nesterov=True)
        best = -torch.inf
        best_seed = seed
        for k in range(RENO_UPDATES + 1):
            reward = image_reward(z)
            if reward.item() > best:
                best = reward.item()
                best_seed = z.detach().clone()
            if k < RENO_UPDATES:
                optimizer.zero_grad()
                (RENO_PENALTY * nao.norm_penalty(z).sum() - reward).backward()
                torch.nn.utils.clip_grad_norm_([z], RENO_MAX_NORM)
                optimizer.step()
        return best_seed

    problem = Problem(
        lambda z, rows: trajectory(z, predictor.select(rows), schedule, keep_last=1),
        model.decode,
        clip,
        Targets(text.expand(batch, -1), seeds, text.expand(batch, -1)),
    )
    optimizer = SeedSelect(
        iterations=RENO_UPDATES,
        optimizer=partial(torch.optim.SGD, lr=RENO_RATE, momentum=RENO_MOMENTUM, nesterov=True),
        schedule=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        rewards=[(text_similarity, 1.0)],
        penalty=nao.norm_penalty,
        penalty_weight=RENO_PENALTY,
        best_by="rewards",
        gradient=partial(clip_norm, max_norm=RENO_MAX_NORM),
        step_weights=(1.0,),
    )
    return Pair(unet, lambda: torch.cat([optimize(z) for z in seeds.split(1)]), lambda: optimizer(seeds, problem).seed)


PAIRS = {"ddim": ddim, "fixed_point": fixed_point, "renoise": renoise, "reno": reno}


def count_evaluations(network: torch.nn.Module, run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Return the result of ``run``, and the number of evaluations of ``network`` during ``run``."""
    rows: list[int] = []
    handle = network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        result = run()
    finally:
        handle.remove()
    return result, sum(rows)


def measure(name: str, batch: int, steps: int, repeats: int) -> PairTiming:
    """Measure a pair of implementations. The first run of each implementation counts evaluations and is not timed."""
    pair = PAIRS[name](batch, steps)
    theirs, theirs_evaluations = count_evaluations(pair.network, pair.theirs)
    ours, ours_evaluations = count_evaluations(pair.network, pair.ours)
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    for k in range(repeats):
        for side in ("theirs", "ours") if k % 2 == 0 else ("ours", "theirs"):
            start = time.process_time()
            getattr(pair, side)()
            seconds[side].append(time.process_time() - start)
    return PairTiming(
        pair=name,
        batch=batch,
        steps=steps,
        theirs_ms=1e3 * statistics.median(seconds["theirs"]) / batch,
        ours_ms=1e3 * statistics.median(seconds["ours"]) / batch,
        ratio=statistics.median(a / b for a, b in zip(seconds["theirs"], seconds["ours"], strict=True)),
        theirs_evaluations=theirs_evaluations / batch,
        ours_evaluations=ours_evaluations / batch,
        difference=(theirs.double() - ours.double()).abs().max().item(),
    )


def table(timings: Sequence[PairTiming]) -> str:
    """Return a Markdown table of the measurements."""
    lines = [
        "| pair | batch | steps | theirs ms | ours ms | theirs / ours | evaluations | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in timings:
        same = row.theirs_evaluations == row.ours_evaluations
        evaluations = f"{row.ours_evaluations:g}" if same else f"{row.theirs_evaluations:g}, {row.ours_evaluations:g}"
        lines.append(
            f"| {row.pair} | {row.batch} | {row.steps} | {row.theirs_ms:.1f} | {row.ours_ms:.1f} | {row.ratio:.3f} "
            f"| {evaluations} | {row.difference:.0e} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Print the table. The exit status is 1 if the numbers of network evaluations of a pair differ."""
    parser = arguments.Arguments(__doc__)
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--batches", nargs="+", type=arguments.integer(), default=(1, 4))
    parser.add_argument("--steps", type=arguments.steps, default=6, help="number of sampling steps, 1 for reno")
    parser.add_argument("--repeats", type=arguments.integer(), default=15, help="number of timed runs")
    parser.add_argument("--json", type=arguments.output_file, help="file to write the measurements to")
    options = parser.parse_args()
    timings = [
        measure(name, batch, 1 if name == "reno" else options.steps, options.repeats)
        for name in options.pairs
        for batch in options.batches
    ]
    print(table(timings))
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(timing) for timing in timings], indent=2) + "\n")
    return int(any(timing.theirs_evaluations != timing.ours_evaluations for timing in timings))


if __name__ == "__main__":
    arguments.run(main)
