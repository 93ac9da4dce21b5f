"""The optimization of seeds, on a generator that is a linear map."""

import time
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, MultiStepLR

from nao import norm_penalty
from seedselect import SeedSelect, Selection, Targets

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


def problem(batch: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, Targets]:
    generator = torch.Generator().manual_seed(3)
    draw = [torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]
    return draw[0], Targets(draw[1].flatten(1), draw[2])


def run(
    select: SeedSelect,
    seeds: torch.Tensor,
    targets: Targets,
    trajectory=generate,
    **options,
) -> Selection:
    return select(seeds, trajectory=trajectory, decode=decode, features=features, targets=targets, **options)


def tool(lr_schedule: float = 0.1, **changes) -> SeedSelect:
    """SeedSelect with AdamW at a constant rate."""
    adamw = partial(torch.optim.AdamW, lr=lr_schedule, weight_decay=changes.pop("decay", 0.01))
    return SeedSelect(**{"optimizer": adamw, "schedule": partial(ConstantLR, factor=1.0)} | changes)


def evaluate(select: SeedSelect, seeds: torch.Tensor, targets: Targets) -> torch.Tensor:
    return select.loss(seeds, generate(seeds, torch.arange(len(seeds))), decode, features, targets).double()


def test_loss_falls_for_every_sample_with_the_authors_settings():
    seeds, targets = problem(4)
    found = run(SeedSelect(), seeds, targets)
    assert (found.loss < 0.9 * found.initial_loss).all()
    assert (found.iterations == 30).all() and not found.converged.any()


def test_loss_is_the_weighted_sum_by_hand():
    seeds, targets = problem(2, torch.float64)
    select = SeedSelect(semantic_weight=3.0, appearance_weight=0.5, step_weights=(0.2, 0.8))
    latents = generate(seeds, torch.arange(2))
    unit = torch.nn.functional.normalize(targets.features, dim=-1)
    cosines = [(features(decode(z)) * unit).sum(-1) for z in latents[1:]]
    semantic = 0.2 * (1 - cosines[0]) + 0.8 * (1 - cosines[1])
    appearance = ((latents[-1] - targets.latent) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(evaluate(select, seeds, targets), 3 * semantic + 0.5 * appearance)


@pytest.mark.parametrize("norm", ["free", "keep"])
@pytest.mark.parametrize("lr_schedule", [0.05, 0.5, 50.0])
def test_best_seed_is_kept_and_has_the_reported_loss(norm, lr_schedule):
    seeds, targets = problem(5)
    select = tool(lr_schedule, iterations=15, norm=norm)
    found = run(select, seeds, targets)
    torch.testing.assert_close(evaluate(select, found.seed, targets), found.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(evaluate(select, seeds, targets), found.initial_loss, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.trace.min(0).values, found.loss)
    assert torch.equal(found.trace[0], found.initial_loss)
    assert (found.loss <= found.initial_loss).all()


def test_start_is_returned_where_every_update_is_worse():
    seeds, targets = problem(3)
    best = run(tool(schedule=partial(MultiStepLR, milestones=[100], gamma=0.1), iterations=200), seeds, targets).seed
    found = run(tool(1e3, iterations=3), best, targets)
    assert torch.equal(found.seed, best) and torch.equal(found.loss, found.initial_loss)


def test_input_is_left_alone_and_needs_no_gradient():
    seeds, targets = problem(2)
    before = seeds.clone()
    with torch.no_grad():
        found = run(SeedSelect(iterations=3), seeds, targets)
    assert torch.equal(seeds, before)
    assert not found.seed.requires_grad and not found.loss.requires_grad
    assert (found.loss < found.initial_loss).all()


OPTIMISERS = [
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
@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_updates_are_those_of_the_optimizer_under_the_schedule(optimizer, schedule):
    seeds, targets = problem(3, torch.float64)
    visited = []
    select = SeedSelect(iterations=6, optimizer=optimizer, schedule=schedule)
    run(select, seeds, targets, lambda z, rows: visited.append(z.detach().clone()) or generate(z, rows))
    z = seeds.clone().requires_grad_()
    theirs = optimizer([z])
    lr_schedule = schedule(theirs)
    assert len(visited) == 7
    for position in visited:
        torch.testing.assert_close(position, z.detach(), rtol=1e-9, atol=1e-9)
        theirs.zero_grad()
        evaluate(select, z, targets).sum().backward()
        theirs.step()
        lr_schedule.step()


def test_default_is_the_authors_rate_of_a_tenth_from_the_fourth_update_on():
    seeds, targets = problem(1, torch.float64)
    visited = []
    run(SeedSelect(), seeds, targets, lambda z, rows: visited.append(z.detach().clone()) or generate(z, rows))
    steps = [(after - before).abs().median().item() for before, after in pairwise(visited)]
    assert min(steps[:3]) > 0.05 > 0.02 > max(steps[3:])


def test_sample_stops_when_its_best_loss_no_longer_falls():
    seeds, targets = problem(4)
    select = tool(iterations=80, patience=4, improvement=0.02)
    sizes = []
    found = run(select, seeds, targets, lambda z, rows: sizes.append(len(rows)) or generate(z, rows))
    assert found.converged.all() and (found.iterations < 80).all()
    assert len(set(found.iterations.tolist())) > 1  # each at its own time
    assert sum(sizes) == (found.iterations + 1).sum()  # none is computed after its stop
    for sample, last in enumerate(found.iterations.tolist()):
        trace = found.trace[:, sample]
        assert torch.isfinite(trace[: last + 1]).all() and trace[last + 1 :].isnan().all()
        best = trace[: last + 1].cummin(0).values
        fall = 1 - best[4:] / best[:-4]
        assert fall[-1] < 0.02 and (fall[:-1] >= 0.02).all()


def test_stopping_does_not_change_the_way_there():
    seeds, targets = problem(3)
    whole = run(tool(iterations=40), seeds, targets)
    short = run(tool(iterations=40, patience=3, improvement=0.05), seeds, targets)
    for sample, last in enumerate(short.iterations.tolist()):
        torch.testing.assert_close(
            short.trace[: last + 1, sample], whole.trace[: last + 1, sample], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("optimizer", OPTIMISERS)
@pytest.mark.parametrize("norm", ["free", "keep"])
def test_sample_does_not_depend_on_its_neighbors(norm, optimizer):
    seeds, targets = problem(6)
    select = tool(optimizer=optimizer, iterations=80, patience=4, improvement=0.02, norm=norm)
    together = run(select, seeds, targets)
    assert len(set(together.iterations.tolist())) > 1
    for rows in torch.tensor([0, 1, 2, 3, 4, 5]).split([1, 2, 3]):
        alone = run(select, seeds[rows], targets.select(rows))
        torch.testing.assert_close(alone.seed, together.seed[rows], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.loss, together.loss[rows], rtol=0, atol=1e-5)
        assert torch.equal(alone.iterations, together.iterations[rows])
        assert torch.equal(alone.converged, together.converged[rows])


def test_rows_name_the_samples_still_at_work():
    seeds, targets = problem(4)
    seen, reported = [], []

    def watched(z: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        seen.append(rows.tolist())
        return [torch.where((rows == 2).view(-1, 1, 1, 1), torch.nan, latent) for latent in generate(z, rows)]

    run(
        SeedSelect(iterations=2),
        seeds,
        targets,
        watched,
        on_iteration=lambda k, loss: reported.append((k, len(loss))),
    )
    assert seen == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 3]]
    assert reported == [(0, 4), (1, 3), (2, 3)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("since", [0, 4])
def test_sample_that_breaks_spoils_no_other(value, since):
    seeds, targets = problem(3)
    calls = []

    def broken(z: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        calls.append(0)
        spoilt = (rows == 1).view(-1, 1, 1, 1) & (len(calls) > since)
        return [torch.where(spoilt, value, latent) for latent in generate(z, rows)]

    select = SeedSelect(iterations=8)
    found, whole = run(select, seeds, targets, broken), run(select, seeds, targets)
    for sample in (0, 2):
        torch.testing.assert_close(found.seed[sample], whole.seed[sample], rtol=0, atol=1e-5)
        assert found.iterations[sample] == 8
    assert found.iterations[1] == since and not found.converged[1]
    assert torch.isfinite(found.seed).all()
    if since == 0:
        assert torch.equal(found.seed[1], seeds[1]) and not torch.isfinite(found.loss[1])
    else:
        assert found.loss[1] == whole.trace[:since, 1].min()


def test_kept_norm_is_kept_at_every_update():
    seeds, targets = problem(3)
    norms = []
    select = SeedSelect(iterations=10, norm="keep")
    found = run(
        select,
        seeds,
        targets,
        lambda z, rows: norms.append(z.flatten(1).norm(dim=1)) or generate(z, rows),
    )
    for norm in norms:
        torch.testing.assert_close(norm.detach(), seeds.flatten(1).norm(dim=1))
    assert (found.loss < found.initial_loss).all()
    free = run(SeedSelect(iterations=10), seeds, targets)
    assert ((free.seed.flatten(1).norm(dim=1) / norms[0].detach() - 1).abs() > 1e-3).any()


def test_empty_batch_gives_an_empty_selection():
    seeds, targets = problem(0)
    found = run(SeedSelect(), seeds, targets)
    assert found.seed.shape == (0, *SHAPE) and found.loss.shape == (0,)


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
def test_bad_values_are_named(field, value):
    with pytest.raises(ValueError) as caught:
        SeedSelect(**{field: value})
    assert str(caught.value).startswith(f"{field}={value!r}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": partial(torch.optim.AdamW, lr=-0.1)}, "learning rate: -0.1"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=-1)}, "momentum"),
        ({"schedule": partial(MultiStepLR, milestones=[3], gama=0.1)}, "gama"),
    ],
)
def test_optimizers_that_cannot_work_are_refused_before_any_work(changes, message):
    with pytest.raises(ValueError, match=message):
        SeedSelect(**changes)


def test_latent_is_what_the_best_seed_leads_to():
    seeds, targets = problem(4)
    found = run(tool(20.0, iterations=6), seeds, targets)  # overshoots, so that the best is not the last
    assert (found.trace[:-1].min(0).values < found.trace[-1]).any()
    torch.testing.assert_close(found.latent, generate(found.seed, torch.arange(4))[-1], rtol=0, atol=1e-6)


def test_samples_share_the_time_until_they_leave():
    seeds, targets = problem(3)

    def slow(z: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        time.sleep(0.03)
        spoilt = (rows == 1).view(-1, 1, 1, 1)  # leaves at once
        return [torch.where(spoilt, torch.nan, latent) for latent in generate(z, rows)]

    start = time.perf_counter()
    found = run(tool(iterations=4), seeds, targets, slow)
    whole = time.perf_counter() - start
    assert 0.01 <= found.seconds[1] < 0.5 * found.seconds[0]
    assert found.seconds[0] == found.seconds[2] >= 0.01 + 4 * 0.015
    assert 5 * 0.03 <= found.seconds.sum() <= whole


def test_penalty_is_part_of_the_loss_and_brings_the_norm_to_the_typical_one():
    seeds, targets = problem(3, torch.float64)
    seeds = 1.5 * seeds
    free, held = tool(iterations=60), tool(iterations=60, penalty=norm_penalty, penalty_weight=10.0)
    difference = evaluate(held, seeds, targets) - evaluate(free, seeds, targets)
    torch.testing.assert_close(difference, 10 * norm_penalty(seeds))
    found = run(held, seeds, targets)
    assert (norm_penalty(found.seed) < 0.01 * norm_penalty(seeds)).all()
    assert (norm_penalty(run(free, seeds, targets).seed) > 0.02 * norm_penalty(seeds)).all()


def test_more_weights_than_latents_are_refused():
    seeds, targets = problem(2)
    with pytest.raises(ValueError, match="zip"):
        run(SeedSelect(step_weights=(0.25, 0.25, 0.25, 0.25)), seeds, targets)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, (1.0,)), (2, (0.25 / 0.95, 0.7 / 0.95)), (3, (0.05, 0.25, 0.7)), (50, (0.05, 0.25, 0.7))],
)
def test_few_steps_have_the_last_weights_scaled_to_the_sum_of_all(steps, expected):
    select = SeedSelect(step_weights=(0.05, 0.25, 0.7))
    assert select.with_steps(steps).step_weights == pytest.approx(expected)
    assert select.step_weights == (0.05, 0.25, 0.7)  # another object, or the same where nothing changes
    double = SeedSelect(step_weights=(0.1, 0.5, 1.4)).with_steps(steps)
    assert double.step_weights == pytest.approx([2 * weight for weight in expected])


def test_weights_of_which_none_is_left_are_refused():
    with pytest.raises(ValueError, match="the last 1 are all zero"):
        SeedSelect(step_weights=(1.0, 0.0)).with_steps(1)
