"""SeedSelect with a linear map in place of the sampler."""

import time
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, MultiStepLR

from nao import norm_penalty
from seedselect import BestOf, Generation, Problem, SeedReward, SeedSelect, Selection, Targets
from seedselect.history import BestSeedTracker

SHAPE = (3, 4, 4)
SIZE = 48
MIX = torch.eye(SIZE) + 0.1 * torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(7))


def generate(seeds: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
    z = (seeds.flatten(1) @ MIX.to(seeds.dtype)).view(-1, *SHAPE)
    return [seeds, 0.5 * (seeds + z), z]


def decode(z: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(z)


def features(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(images.flatten(1) - 0.5, dim=-1)


def draw(batch: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, Targets]:
    generator = torch.Generator().manual_seed(3)
    seeds, reference, latent = (
        torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)
    )
    return seeds, Targets(reference.flatten(1), latent)


def problem(targets: Targets, trajectory=generate) -> Problem:
    return Problem(trajectory, decode, features, targets)


def run(
    select: SeedSelect,
    seeds: torch.Tensor,
    targets: Targets,
    trajectory=generate,
    **options,
) -> Selection:
    return select(seeds, problem(targets, trajectory), **options)


def with_adamw(lr: float = 0.1, **changes) -> SeedSelect:
    """SeedSelect with AdamW and a constant learning rate."""
    adamw = partial(torch.optim.AdamW, lr=lr, weight_decay=changes.pop("decay", 0.01))
    return SeedSelect(**{"optimizer": adamw, "schedule": partial(ConstantLR, factor=1.0)} | changes)


def evaluate(select: SeedSelect, seeds: torch.Tensor, targets: Targets) -> torch.Tensor:
    generation = Generation(seeds, generate(seeds, torch.arange(len(seeds))), targets, decode, features)
    return select.compute_loss(generation).double()


def test_loss_falls_for_every_sample_with_the_authors_settings():
    seeds, targets = draw(4)
    result = run(SeedSelect(), seeds, targets)
    assert (result.loss < 0.9 * result.initial_loss).all()
    assert (result.iterations == 30).all() and not result.converged.any()


def test_loss_is_the_weighted_sum_by_hand():
    seeds, targets = draw(2, torch.float64)
    select = SeedSelect(semantic_weight=3.0, appearance_weight=0.5, step_weights=(0.2, 0.8))
    latents = generate(seeds, torch.arange(2))
    unit = torch.nn.functional.normalize(targets.features, dim=-1)
    cosines = [(features(decode(z)) * unit).sum(-1) for z in latents[1:]]
    semantic = 0.2 * (1 - cosines[0]) + 0.8 * (1 - cosines[1])
    appearance = ((latents[-1] - targets.latent) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(evaluate(select, seeds, targets), 3 * semantic + 0.5 * appearance)


@pytest.mark.parametrize("norm", ["free", "keep"])
@pytest.mark.parametrize("lr", [0.05, 0.5, 50.0])
def test_best_seed_has_the_reported_loss(norm, lr):
    seeds, targets = draw(5)
    select = with_adamw(lr, iterations=15, norm=norm)
    result = run(select, seeds, targets)
    torch.testing.assert_close(evaluate(select, result.seed, targets), result.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(evaluate(select, seeds, targets), result.initial_loss, rtol=1e-5, atol=1e-5)
    assert torch.equal(result.trace.min(0).values, result.loss)
    assert torch.equal(result.trace[0], result.initial_loss)
    assert (result.loss <= result.initial_loss).all()


def test_initial_seed_is_returned_if_every_update_is_worse():
    seeds, targets = draw(3)
    best = run(
        with_adamw(schedule=partial(MultiStepLR, milestones=[100], gamma=0.1), iterations=200), seeds, targets
    ).seed
    result = run(with_adamw(1e3, iterations=3), best, targets)
    assert torch.equal(result.seed, best) and torch.equal(result.loss, result.initial_loss)


def test_input_is_not_modified_and_needs_no_gradient():
    seeds, targets = draw(2)
    before = seeds.clone()
    with torch.no_grad():
        result = run(SeedSelect(iterations=3), seeds, targets)
    assert torch.equal(seeds, before)
    assert not result.seed.requires_grad and not result.loss.requires_grad
    assert (result.loss < result.initial_loss).all()


OPTIMIZERS = [
    partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5),
    partial(torch.optim.Adam, lr=0.1),
    partial(torch.optim.SGD, lr=0.3, momentum=0.9),
]
SCHEDULES = [
    partial(ConstantLR, factor=1.0),
    partial(MultiStepLR, milestones=[3], gamma=0.1),
    partial(CosineAnnealingLR, T_max=6),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updates_equal_those_of_the_plain_torch_optimizer(optimizer, schedule):
    seeds, targets = draw(3, torch.float64)
    visited = []
    select = SeedSelect(iterations=6, optimizer=optimizer, schedule=schedule)
    run(select, seeds, targets, lambda z, rows: visited.append(z.detach().clone()) or generate(z, rows))
    z = seeds.clone().requires_grad_()
    torch_optimizer = optimizer([z])
    lr_schedule = schedule(torch_optimizer)
    assert len(visited) == 7
    for position in visited:
        torch.testing.assert_close(position, z.detach(), rtol=1e-9, atol=1e-9)
        torch_optimizer.zero_grad()
        evaluate(select, z, targets).sum().backward()
        torch_optimizer.step()
        lr_schedule.step()


def test_default_learning_rate_drops_after_three_updates():
    seeds, targets = draw(1, torch.float64)
    visited = []
    run(SeedSelect(), seeds, targets, lambda z, rows: visited.append(z.detach().clone()) or generate(z, rows))
    steps = [(after - before).abs().median().item() for before, after in pairwise(visited)]
    assert min(steps[:3]) > 0.05 > 0.02 > max(steps[3:])


def test_sample_stops_when_its_best_loss_stalls():
    seeds, targets = draw(4)
    select = with_adamw(iterations=80, patience=4, improvement=0.02)
    sizes = []
    result = run(select, seeds, targets, lambda z, rows: sizes.append(len(rows)) or generate(z, rows))
    assert result.converged.all() and (result.iterations < 80).all()
    assert len(set(result.iterations.tolist())) > 1  # samples stop at different iterations
    assert sum(sizes) == (result.iterations + 1).sum()  # nothing is computed for stopped samples
    for sample, last in enumerate(result.iterations.tolist()):
        trace = result.trace[:, sample]
        assert torch.isfinite(trace[: last + 1]).all() and trace[last + 1 :].isnan().all()
        best = trace[: last + 1].cummin(0).values
        fall = 1 - best[4:] / best[:-4]
        assert fall[-1] < 0.02 and (fall[:-1] >= 0.02).all()


def test_early_stopping_does_not_change_earlier_iterations():
    seeds, targets = draw(3)
    full = run(with_adamw(iterations=40), seeds, targets)
    stopped = run(with_adamw(iterations=40, patience=3, improvement=0.05), seeds, targets)
    for sample, last in enumerate(stopped.iterations.tolist()):
        torch.testing.assert_close(
            stopped.trace[: last + 1, sample], full.trace[: last + 1, sample], rtol=1e-5, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("norm", ["free", "keep"])
def test_samples_of_a_batch_are_independent(norm, optimizer):
    seeds, targets = draw(6)
    select = with_adamw(optimizer=optimizer, iterations=80, patience=4, improvement=0.02, norm=norm)
    together = run(select, seeds, targets)
    assert len(set(together.iterations.tolist())) > 1
    for rows in torch.tensor([0, 1, 2, 3, 4, 5]).split([1, 2, 3]):
        alone = run(select, seeds[rows], targets.select(rows))
        torch.testing.assert_close(alone.seed, together.seed[rows], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.loss, together.loss[rows], rtol=0, atol=1e-5)
        assert torch.equal(alone.iterations, together.iterations[rows])
        assert torch.equal(alone.converged, together.converged[rows])


def test_trajectory_gets_the_rows_of_active_samples():
    seeds, targets = draw(4)
    seen, reported = [], []

    def recording(z: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        seen.append(rows.tolist())
        return [torch.where((rows == 2).view(-1, 1, 1, 1), torch.nan, latent) for latent in generate(z, rows)]

    run(
        SeedSelect(iterations=2),
        seeds,
        targets,
        recording,
        on_iteration=lambda k, loss: reported.append((k, len(loss))),
    )
    assert seen == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 3]]
    assert reported == [(0, 4), (1, 3), (2, 3)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("since", [0, 4])
def test_non_finite_sample_does_not_affect_the_others(value, since):
    seeds, targets = draw(3)
    calls = []

    def broken(z: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        calls.append(0)
        is_broken = (rows == 1).view(-1, 1, 1, 1) & (len(calls) > since)
        return [torch.where(is_broken, value, latent) for latent in generate(z, rows)]

    select = SeedSelect(iterations=8)
    result = run(select, seeds, targets, broken)
    intact = run(select, seeds, targets)
    for sample in (0, 2):
        torch.testing.assert_close(result.seed[sample], intact.seed[sample], rtol=0, atol=1e-5)
        assert result.iterations[sample] == 8
    assert result.iterations[1] == since and not result.converged[1]
    assert torch.isfinite(result.seed).all()
    if since == 0:
        assert torch.equal(result.seed[1], seeds[1]) and not torch.isfinite(result.loss[1])
    else:
        assert result.loss[1] == intact.trace[:since, 1].min()


def test_norm_is_preserved_at_every_update():
    seeds, targets = draw(3)
    norms = []
    select = SeedSelect(iterations=10, norm="keep")
    result = run(
        select,
        seeds,
        targets,
        lambda z, rows: norms.append(z.flatten(1).norm(dim=1)) or generate(z, rows),
    )
    for norm in norms:
        torch.testing.assert_close(norm.detach(), seeds.flatten(1).norm(dim=1))
    assert (result.loss < result.initial_loss).all()
    free = run(SeedSelect(iterations=10), seeds, targets)
    assert ((free.seed.flatten(1).norm(dim=1) / norms[0].detach() - 1).abs() > 1e-3).any()


def test_empty_batch_gives_an_empty_selection():
    seeds, targets = draw(0)
    result = run(SeedSelect(), seeds, targets)
    assert result.seed.shape == (0, *SHAPE) and result.loss.shape == (0,)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", 0),
        ("iterations", -3),
        ("patience", -1),
        ("step_weights", ()),
        ("norm", "typical"),
    ],
)
def test_invalid_values_raise_an_error_that_names_the_field(field, value):
    with pytest.raises(ValueError) as caught:
        SeedSelect(**{field: value})
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": partial(torch.optim.AdamW, lr=-0.1)}, "learning rate: -0.1"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=-1)}, "momentum"),
        ({"schedule": partial(MultiStepLR, milestones=[3], gama=0.1)}, "gama"),
    ],
)
def test_invalid_optimizers_are_rejected_at_construction(changes, message):
    with pytest.raises(ValueError, match=message):
        SeedSelect(**changes)


def test_latent_is_generated_from_the_best_seed():
    seeds, targets = draw(4)
    result = run(with_adamw(20.0, iterations=6), seeds, targets)  # overshoots, so that the best is not the last
    assert (result.trace[:-1].min(0).values < result.trace[-1]).any()
    torch.testing.assert_close(result.latent, generate(result.seed, torch.arange(4))[-1], rtol=0, atol=1e-6)


def test_active_samples_share_the_wall_time(monkeypatch):
    seeds, targets = draw(3)
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def slow(z: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        clock[0] += 3.0
        is_broken = (rows == 1).view(-1, 1, 1, 1)  # stops at iteration 0
        return [torch.where(is_broken, torch.nan, latent) for latent in generate(z, rows)]

    result = run(with_adamw(iterations=4), seeds, targets, slow)
    assert result.seconds.tolist() == [1 + 4 * 1.5, 1, 1 + 4 * 1.5]  # three samples, and then two


def test_norm_penalty_pulls_the_norm_to_the_typical_norm():
    seeds, targets = draw(3, torch.float64)
    seeds = 1.5 * seeds
    free = with_adamw(iterations=60)
    penalized = with_adamw(iterations=60, penalty=norm_penalty, penalty_weight=10.0)
    difference = evaluate(penalized, seeds, targets) - evaluate(free, seeds, targets)
    torch.testing.assert_close(difference, 10 * norm_penalty(seeds))
    result = run(penalized, seeds, targets)
    assert (norm_penalty(result.seed) < 0.01 * norm_penalty(seeds)).all()
    assert (norm_penalty(run(free, seeds, targets).seed) > 0.02 * norm_penalty(seeds)).all()


def test_more_weights_than_latents_raise_an_error():
    seeds, targets = draw(2)
    with pytest.raises(ValueError, match="zip"):
        run(SeedSelect(step_weights=(0.25, 0.25, 0.25, 0.25)), seeds, targets)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, (1.0,)), (2, (0.25 / 0.95, 0.7 / 0.95)), (3, (0.05, 0.25, 0.7)), (50, (0.05, 0.25, 0.7))],
)
def test_few_steps_use_the_last_weights_rescaled(steps, expected):
    select = SeedSelect(step_weights=(0.05, 0.25, 0.7))
    assert select.with_steps(steps).step_weights == pytest.approx(expected)
    assert select.step_weights == (0.05, 0.25, 0.7)  # the original is not modified
    double = SeedSelect(step_weights=(0.1, 0.5, 1.4)).with_steps(steps)
    assert double.step_weights == pytest.approx([2 * weight for weight in expected])


def test_remaining_weights_that_are_all_zero_are_rejected():
    with pytest.raises(ValueError, match=r"step_weights: the last 1 of the weights \[1.0, 0.0\] are all zero"):
        SeedSelect(step_weights=(1.0, 0.0)).with_steps(1)


@pytest.mark.parametrize(("best_by", "mean", "loss"), [("rewards", 0.11, -0.09), ("loss", 0.10, -0.10)])
def test_best_seed_by_hand(best_by, mean, loss):
    """ReNO keeps the seed with the largest reward: -0.11 with a penalty of 0.02 beats -0.10 without a penalty."""
    seeds = torch.full((2, *SHAPE), 0.10, dtype=torch.float64)
    select = SeedSelect(
        iterations=1,
        optimizer=partial(torch.optim.SGD, lr=0.01 * SIZE),
        schedule=partial(ConstantLR, factor=1.0),
        rewards=[(SeedReward(lambda z: z.flatten(1).mean(1)), 1.0)],
        penalty=lambda z: 0.02 * (z.flatten(1).mean(1) > 0.105),
        best_by=best_by,
    )
    result = run(select, seeds, draw(2)[1])
    torch.testing.assert_close(result.seed, torch.full_like(seeds, mean))
    torch.testing.assert_close(result.loss, torch.full_like(result.loss, loss))
    candidates = torch.stack([seeds, seeds + 0.01], 1).flatten(0, 1)
    best = BestOf(select, 2)(candidates, problem(draw(2)[1]))
    torch.testing.assert_close(best.seed, torch.full_like(seeds, mean))


def test_loss_that_is_not_finite_is_never_the_best():
    tracker = BestSeedTracker(torch.zeros(1, *SHAPE), 1)
    one = torch.ones(1, *SHAPE)
    rows = torch.zeros(1, dtype=torch.int64)
    tracker.record(0, rows, one, one, loss=torch.tensor([0.5]), criterion=torch.tensor([0.5]))
    tracker.record(1, rows, 2 * one, one, loss=torch.tensor([torch.inf]), criterion=torch.tensor([-1.0]))
    assert torch.equal(tracker.selection().seed, one)


@pytest.mark.parametrize("offset", [1.0, -1.0])
def test_negative_losses_also_converge(offset):
    tracker = BestSeedTracker(torch.zeros(2, *SHAPE), 10, patience=2, improvement=0.1)
    rows = torch.arange(2)
    active = [
        tracker.record(k, rows, tracker.seed, tracker.seed, loss=offset - torch.tensor([0.0, 0.2]) * k)
        for k in range(3)
    ]
    assert [mask.tolist() for mask in active] == [[True, True], [True, True], [False, True]]
    assert tracker.converged.tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_seeds_in_half_precision_are_optimized_in_float32(dtype):
    seeds, targets = draw(2)
    select = SeedSelect(iterations=2)
    expected = select(seeds.to(dtype).float(), problem(targets)).seed
    torch.testing.assert_close(select(seeds.to(dtype), problem(targets)).seed, expected)
    assert expected.dtype == torch.float32 and expected.isfinite().all()


def detached(generation: Generation) -> torch.Tensor:
    return generation.latents[-1].detach().flatten(1).sum(1)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (SeedSelect(iterations=1), lambda seeds: seeds[0], r"seeds: must be a floating-point tensor \[B,C,h,w\]"),
        (SeedSelect(iterations=1), lambda seeds: seeds.long(), "got torch.int64"),
        (SeedSelect(iterations=1), lambda seeds: seeds[:1], "targets.features: must have one entry for each of the 1"),
        (BestOf(SeedSelect(), 2), lambda seeds: seeds[:1], "must be a multiple of candidates=2, got 1"),
        (SeedSelect(iterations=1, rewards=[(detached, 1.0)], penalty_weight=0.0), lambda seeds: seeds, "rewards: the"),
    ],
    ids=["one seed", "integers", "targets", "candidates", "detached"],
)
def test_bad_seeds_and_targets(method, change, message):
    seeds, targets = draw(2)
    with pytest.raises(ValueError, match=message):
        method(change(seeds), problem(targets))


def test_inference_mode_is_rejected():
    seeds, targets = draw(1)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"use torch.no_grad instead"):
        SeedSelect(iterations=1)(seeds, problem(targets))
