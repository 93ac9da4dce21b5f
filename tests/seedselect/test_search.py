"""Choosing seeds by SeedSelect's loss without a gradient, on a generator that is a linear map."""

from __future__ import annotations

import pytest
import torch

from seedselect import BestOf, Search, SeedSelect, Targets
from seedselect.search import perturb
from tests.seedselect.test_select import SHAPE, decode, evaluate, features, generate, problem, tool


def call(method, seeds: torch.Tensor, targets: Targets, **options):
    return method(seeds, trajectory=generate, decode=decode, features=features, targets=targets, **options)


def noise(k: int, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(100 + k))


def test_the_best_of_a_samples_seeds_is_the_one_with_the_least_loss():
    seeds, _ = problem(12)
    _, targets = problem(3)
    found = call(BestOf(SeedSelect(), 4), seeds, targets)
    losses = torch.stack([evaluate(SeedSelect(), seeds.view(3, 4, *SHAPE)[:, k], targets) for k in range(4)], 1)
    best = losses.argmin(1)
    assert len(set(best.tolist())) > 1  # or the choice would not be tested
    assert torch.equal(found.seed, seeds.view(3, 4, *SHAPE)[torch.arange(3), best])
    torch.testing.assert_close(found.loss, losses.min(1).values)
    torch.testing.assert_close(found.latent, generate(found.seed, torch.arange(3))[-1])
    assert (found.forwards == 4).all() and (found.backwards == 0).all()


def test_an_optimization_goes_on_from_the_best_and_costs_both():
    seeds, _ = problem(6)
    _, targets = problem(3)
    first = call(BestOf(SeedSelect(), 2), seeds, targets)
    method = BestOf(SeedSelect(), 2, refine=tool(iterations=3))
    found, alone = call(method, seeds, targets), call(tool(iterations=3), first.seed, targets)
    assert torch.equal(found.seed, alone.seed) and torch.equal(found.initial_loss, first.initial_loss)
    assert method.runs == (2 + 4, 3) and (found.forwards == 6).all() and (found.backwards == 3).all()


def test_a_search_walks_to_the_best_neighbor_round_by_round():
    seeds, targets = problem(3)
    method = Search(SeedSelect(), rounds=2, neighbors=2, spread=0.4)
    found = call(method, seeds, targets, noise=noise)
    best, loss = seeds, evaluate(SeedSelect(), seeds, targets)
    for start in (1, 3):
        center = best
        for k in (start, start + 1):
            tried = perturb(center, noise(k), 0.4)
            better = evaluate(SeedSelect(), tried, targets) < loss
            best = torch.where(better.view(-1, 1, 1, 1), tried, best)
            loss = torch.minimum(loss, evaluate(SeedSelect(), tried, targets))
    assert torch.equal(found.seed, best) and method.runs == (5, 0) and (found.forwards == 5).all()
    assert (found.loss <= found.initial_loss).all() and (found.loss < found.initial_loss).any()


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_a_neighbor_keeps_the_norm(spread):
    seeds = 3 * noise(0)
    found = perturb(seeds, noise(1), spread)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), seeds.flatten(1).norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(found.flatten(1), seeds.flatten(1))
    assert (cosine > 0.97).all() if spread == 0.1 else (cosine < 0.5).all()


def test_samples_do_not_depend_on_their_neighbors():
    seeds, targets = problem(3)
    method = Search(SeedSelect(), rounds=2, neighbors=2)
    together = call(method, seeds, targets, noise=noise)
    alone = call(method, seeds[1:2], targets.select(torch.tensor([1])), noise=lambda k: noise(k)[1:2])
    torch.testing.assert_close(alone.seed[0], together.seed[1])


def test_fewer_steps_than_weights_reach_the_loss_and_what_refines():
    found = BestOf(SeedSelect(), 2, SeedSelect()).with_steps(1)
    assert found.step_weights == found.refine.step_weights == pytest.approx((1.0,))
    assert Search(SeedSelect(), 1, 1).with_steps(2).step_weights == pytest.approx((0.25 / 0.95, 0.7 / 0.95))
