"""Best-of-N search and local search, with a linear map in place of the sampler."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rnri.validation import ConfigError
from seedselect import (
    BestOf,
    BestSubset,
    Generation,
    GroupSelect,
    LatentDiversity,
    LocalSearch,
    Preview,
    Problem,
    SeedSelect,
    Targets,
    pairwise_distance,
)
from seedselect.search import perturb
from tests.seedselect.test_select import (
    MIX,
    SHAPE,
    SIZE,
    decode,
    draw,
    evaluate,
    features,
    generate,
    problem,
    with_adamw,
)


def call(method, seeds: torch.Tensor, targets: Targets, **options):
    return method(seeds, problem(targets), **options)


def noise(k: int, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(100 + k))


def test_best_of_returns_the_candidate_with_the_lowest_loss():
    seeds, _ = draw(12)
    _, targets = draw(3)
    result = call(BestOf(SeedSelect(), 4), seeds, targets)
    losses = torch.stack([evaluate(SeedSelect(), seeds.view(3, 4, *SHAPE)[:, k], targets) for k in range(4)], 1)
    best = losses.argmin(1)
    assert len(set(best.tolist())) > 1  # the test needs different winners
    assert torch.equal(result.seed, seeds.view(3, 4, *SHAPE)[torch.arange(3), best])
    torch.testing.assert_close(result.loss, losses.min(1).values)
    torch.testing.assert_close(result.latent, generate(result.seed, torch.arange(3))[-1])
    assert (result.forwards == 4).all() and (result.backwards == 0).all()


HALVES = (0.5 * torch.eye(SIZE) + 0.5 * MIX, torch.linalg.solve(0.5 * torch.eye(SIZE) + 0.5 * MIX, MIX))
"""Two linear maps: the first four of ten sampling steps of ``generate``, and the other six steps."""
CLEAN = MIX.roll(1, 0)


def apply(z: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return (z.flatten(1) @ matrix.to(z.dtype)).view(-1, *SHAPE)


def problem_with_preview(targets: Targets) -> Problem:
    """The problem of ``problem``, whose previews differ from its final latents."""

    def start(seeds: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert k == 4
        return apply(seeds.double(), HALVES[0]), apply(seeds, CLEAN)

    def finish(latents: torch.Tensor, rows: torch.Tensor, k: int) -> list[torch.Tensor]:
        assert k == 4 and latents.dtype == torch.float64
        return [apply(latents, HALVES[1]).float()]

    return replace(problem(targets), preview=Preview(10, start, finish))


def test_best_preview_is_sampled_to_the_end():
    seeds, _ = draw(12)
    _, targets = draw(3)
    loss = SeedSelect(step_weights=(1.0,))
    method = BestOf(loss, 4, preview=0.4)
    losses = []
    result = method(seeds, problem_with_preview(targets), on_iteration=lambda _, values: losses.append(values))
    candidates = seeds.view(3, 4, *SHAPE)
    expected = []
    for k in range(4):
        generation = Generation(candidates[:, k], [apply(candidates[:, k], CLEAN)], targets, decode, features)
        expected.append(loss.compute_loss(generation).double())
    torch.testing.assert_close(torch.stack(losses).double(), torch.stack(expected))
    best = torch.stack(expected).argmin(0)
    final = torch.stack([evaluate(loss, candidates[:, k], targets) for k in range(4)])
    assert best.tolist() != final.argmin(0).tolist()  # the test needs previews that rank the seeds differently
    assert torch.equal(result.seed, candidates[torch.arange(3), best])
    torch.testing.assert_close(result.latent, apply(result.seed, MIX))
    torch.testing.assert_close(result.loss, final[best, torch.arange(3)])
    assert result.forwards.tolist() == [0.4 * 4 + 0.6] * 3 and method.call_counts == (0.4 * 4 + 1 - 0.4, 0)


def test_preview_is_rounded_to_steps_of_the_sampler():
    method = BestOf(SeedSelect(step_weights=(1.0,)), 6, preview=0.4)
    assert [method.with_steps(steps).preview for steps in (1, 2, 3, 4, 10)] == [None, 1 / 2, 1 / 3, 2 / 4, 0.4]
    assert [method.with_steps(steps).previews for steps in (1, 2)] == [0, 6]
    assert BestOf(SeedSelect(), 6).with_steps(4).preview is None


def test_a_preview_needs_a_sampler_in_two_parts_and_one_step_weight():
    seeds, targets = draw(3)
    one_weight = SeedSelect(step_weights=(1.0,))
    with pytest.raises(ValueError, match=r"BestOf with a preview needs Problem\(preview=...\)"):
        call(BestOf(one_weight, 1, preview=0.5), seeds, targets)
    one_step = replace(problem(targets), preview=Preview(1, None, None))
    with pytest.raises(ValueError, match="a sampler with one step has no preview"):
        BestOf(one_weight, 1, preview=0.5)(seeds, one_step)
    with pytest.raises(ConfigError, match=r"loss.step_weights: must contain a single weight if preview is set, got 2"):
        BestOf(SeedSelect(step_weights=(0.5, 0.5)), 2, preview=0.5)
    group = GroupSelect(group_rewards=[(LatentDiversity(pairwise_distance), 1.0)], group_size=2)
    with pytest.raises(ConfigError, match=r"preview: must be null"):
        BestSubset(group, 2, preview=0.5)


def test_refine_continues_from_the_best_candidate_and_adds_its_cost():
    seeds, _ = draw(6)
    _, targets = draw(3)
    first = call(BestOf(SeedSelect(), 2), seeds, targets)
    method = BestOf(SeedSelect(), 2, refine=with_adamw(iterations=3))
    result = call(method, seeds, targets)
    alone = call(with_adamw(iterations=3), first.seed, targets)
    assert torch.equal(result.seed, alone.seed) and torch.equal(result.initial_loss, first.initial_loss)
    assert method.call_counts == (2 + 4, 3) and (result.forwards == 6).all() and (result.backwards == 3).all()


def test_sampler_returns_the_latents_that_loss_and_refinement_need():
    one, three = SeedSelect(step_weights=(1.0,)), SeedSelect(step_weights=(0.2, 0.3, 0.5))
    assert BestOf(one, 2).step_weights == (1.0,)
    assert BestOf(one, 2, refine=three).step_weights == BestOf(three, 2, refine=one).step_weights == (0.2, 0.3, 0.5)


def test_local_search_moves_to_the_best_neighbor_each_round():
    seeds, targets = draw(3)
    method = LocalSearch(SeedSelect(), rounds=2, neighbors=2, spread=0.4)
    result = call(method, seeds, targets, noise=noise)
    best, loss = seeds, evaluate(SeedSelect(), seeds, targets)
    for start in (1, 3):
        center = best
        for k in (start, start + 1):
            neighbor = perturb(center, noise(k), 0.4)
            better = evaluate(SeedSelect(), neighbor, targets) < loss
            best = torch.where(better.view(-1, 1, 1, 1), neighbor, best)
            loss = torch.minimum(loss, evaluate(SeedSelect(), neighbor, targets))
    assert torch.equal(result.seed, best) and method.call_counts == (5, 0) and (result.forwards == 5).all()
    assert (result.loss <= result.initial_loss).all() and (result.loss < result.initial_loss).any()


def test_local_search_compares_neighbors_with_the_latents_of_the_initial_seeds():
    def similarity(generation):
        return -(generation.latents[-1] - generation.initial_latent).square().flatten(1).sum(1).double()

    seeds, targets = draw(3)
    method = LocalSearch(SeedSelect(rewards=[(similarity, 1.0)]), rounds=1, neighbors=2, spread=0.4)
    losses = []
    call(method, seeds, targets, noise=noise, on_iteration=lambda k, loss: losses.append(loss))
    initial, *neighbors = (
        generate(z, torch.arange(3))[-1] for z in (seeds, perturb(seeds, noise(1), 0.4), perturb(seeds, noise(2), 0.4))
    )
    expected = [(latent - initial).square().flatten(1).sum(1).double() for latent in (initial, *neighbors)]
    torch.testing.assert_close(losses, expected)


def test_best_of_and_best_subset_report_a_loss_per_sample():
    seeds, targets = draw(12)  # two groups of three seeds, two candidates per seed
    targets = targets.select(torch.arange(6))
    loss = GroupSelect(group_size=3, group_rewards=[(LatentDiversity(pairwise_distance), 1.0)])
    reported = {}
    for kind in (BestOf, BestSubset):
        losses = reported.setdefault(kind, [])
        call(kind(loss, 2), seeds, targets, on_iteration=lambda k, loss, losses=losses: losses.append(loss))
    assert [loss.shape for loss in reported[BestSubset]] == [(6,), (6,)]
    torch.testing.assert_close(reported[BestSubset], reported[BestOf])


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_neighbors_have_the_norm_of_the_seed(spread):
    seeds = 3 * noise(0)
    result = perturb(seeds, noise(1), spread)
    torch.testing.assert_close(result.flatten(1).norm(dim=1), seeds.flatten(1).norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(result.flatten(1), seeds.flatten(1))
    assert (cosine > 0.97).all() if spread == 0.1 else (cosine < 0.5).all()


def test_samples_of_a_batch_are_independent():
    seeds, targets = draw(3)
    method = LocalSearch(SeedSelect(), rounds=2, neighbors=2)
    together = call(method, seeds, targets, noise=noise)
    alone = call(method, seeds[1:2], targets.select(torch.tensor([1])), noise=lambda k: noise(k)[1:2])
    torch.testing.assert_close(alone.seed[0], together.seed[1])


def test_with_steps_applies_to_the_loss_and_the_refinement():
    result = BestOf(SeedSelect(), 2, SeedSelect()).with_steps(1)
    assert result.step_weights == result.refine.step_weights == pytest.approx((1.0,))
    assert LocalSearch(SeedSelect(), 1, 1).with_steps(2).step_weights == pytest.approx((0.25 / 0.95, 0.7 / 0.95))
