"""Group objectives with a linear map in place of the sampler: measures with exact answers, gradients, selections."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR

from nao import norm_penalty
from seedselect import (
    BestOf,
    BestSubset,
    ContrastiveReward,
    Generation,
    GroupSelect,
    ImageDiversity,
    ImageReward,
    LatentDiversity,
    LocalSearch,
    Problem,
    SeedSelect,
    Targets,
    dpp_log_det,
    pairwise_distance,
    pink_noise,
    vendi_score,
)
from seedselect.rewards import appearance_reward
from tests.seedselect.test_select import decode, draw, features, generate

MEASURES = [pairwise_distance, vendi_score, dpp_log_det]
ADAM = {"optimizer": partial(torch.optim.Adam, lr=0.1), "schedule": partial(ConstantLR, factor=1.0)}


def one_latent(seeds: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
    return generate(seeds, rows)[-1:]


def group_problem(trajectory=one_latent) -> Problem:
    return Problem(trajectory, decode, features, Targets())


def optimizer(**changes) -> GroupSelect:
    return GroupSelect(**{"iterations": 5, "group_size": 3, **ADAM} | changes)


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).mean(1)


def test_measures_of_orthogonal_features():
    orthogonal = 3 * torch.eye(4)
    assert pairwise_distance(orthogonal).item() == pytest.approx(1)
    assert vendi_score(orthogonal).item() == pytest.approx(4)
    assert dpp_log_det(orthogonal).item() == pytest.approx(0)


def test_measures_of_equal_features():
    equal = torch.tensor([[1.0, 2.0, 3.0]]).expand(4, 3)
    assert pairwise_distance(equal).item() == pytest.approx(0)
    assert vendi_score(equal).item() == pytest.approx(1)
    jitter = 0.01
    assert dpp_log_det(equal, jitter).item() == pytest.approx(3 * math.log(jitter) + math.log(4 - 3 * jitter))


def test_measures_of_two_features_at_60_degrees():
    angle = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]])
    assert pairwise_distance(angle).item() == pytest.approx(0.5)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))  # eigenvalues of K / 2
    assert vendi_score(angle).item() == pytest.approx(math.exp(entropy))
    assert dpp_log_det(angle, 1e-9).item() == pytest.approx(math.log(1 - 0.25))


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_of_many_sets_equal_those_of_single_sets(measure):
    sets = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    result = measure(sets)
    assert result.shape == (2, 3) and result.dtype == torch.float64
    torch.testing.assert_close(result[1, 2], measure(sets[1, 2]))


@pytest.mark.parametrize("measure", MEASURES)
def test_gradient_of_measures_equals_finite_differences(measure):
    values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(measure, values)


@pytest.mark.parametrize("measure", MEASURES)
def test_gradient_of_equal_features_is_finite(measure):
    values = torch.ones(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(measure(values).sum(), values)[0].isfinite().all()


@pytest.mark.parametrize(
    "reward",
    [ImageDiversity(vendi_score), LatentDiversity(dpp_log_det), ContrastiveReward(window=2), ContrastiveReward(0.5, 1)],
)
def test_gradient_of_group_rewards_equals_finite_differences(reward):
    seeds, _ = draw(4, torch.float64)
    initial = generate(seeds, torch.arange(4))[-1]

    def value(z: torch.Tensor) -> torch.Tensor:
        return reward(Generation(z, one_latent(z, torch.arange(4)), Targets(), decode, features, 2, initial))

    moved = (seeds + 0.3 * seeds.flip(0)).requires_grad_()
    assert torch.autograd.gradcheck(value, moved)


def test_contrastive_reward_equals_the_loss_of_cno_by_hand():
    latents, initial = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    temperature, gamma = 0.1, 0.8
    losses = []
    for i, (row, column) in itertools.product(range(3), itertools.product(range(2), range(2))):
        patch = [torch.nn.functional.normalize(z[:, row, column], dim=0) for z in latents]
        anchor = torch.nn.functional.normalize(initial[i, :, row, column], dim=0)
        positive = math.exp((patch[i] @ anchor).item() / (gamma * temperature))
        negative = [math.exp((patch[i] @ patch[j]).item() / temperature) for j in range(3) if j != i]
        losses.append(-math.log(positive / (positive + sum(negative))))
    reward = ContrastiveReward(temperature, gamma, window=2)
    result = reward(Generation(latents, [latents], Targets(), decode, features, 3, initial))
    assert result.item() == pytest.approx(-sum(losses) / len(losses))


def test_default_attraction_is_the_closed_form_of_the_paper():
    latents, initial = torch.randn(2, 5, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    generation = Generation(latents, [latents], Targets(), decode, features, 5, initial)
    closed_form = 1 / (0.1 * math.log(4) + 1)
    torch.testing.assert_close(ContrastiveReward()(generation), ContrastiveReward(0.1, closed_form)(generation))


def test_repulsion_lowers_the_similarity_of_latents():
    seeds, _ = draw(2)
    seeds = torch.cat([seeds[:1] + 0.1 * seeds[1:], seeds[:1], seeds[:1] - 0.1 * seeds[1:]])
    select = optimizer(group_rewards=[(ContrastiveReward(window=4), 1.0)])
    result = select(seeds, group_problem())
    before, after = (pairwise_distance(generate(z, torch.arange(3))[-1].flatten(1)) for z in (seeds, result.seed))
    assert after > 2 * before
    assert (result.loss < result.initial_loss).all()


def test_contrastive_reward_outside_of_an_optimization_is_rejected():
    seeds, _ = draw(2)
    with pytest.raises(ValueError, match=r"needs Generation\(initial_latent=...\)"):
        ContrastiveReward()(Generation(seeds, [seeds], Targets(), decode, features, 2))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("reward", [ImageDiversity, LatentDiversity])
def test_optimization_increases_the_diversity_of_every_group(measure, reward):
    seeds, _ = draw(6)
    result = optimizer(group_rewards=[(reward(measure), 1.0)])(seeds, group_problem())
    assert (result.loss < result.initial_loss).all()
    grouped = torch.stack([result.loss[:3], result.loss[3:]])
    assert (grouped == grouped[:, :1]).all() and result.seed.shape == seeds.shape
    images = features(decode(result.latent)) if reward is ImageDiversity else result.latent.flatten(1)
    torch.testing.assert_close(-measure(images.unflatten(0, (2, 3))), grouped[:, 0], rtol=1e-5, atol=1e-6)
    assert (result.forwards == 6).all() and (result.backwards == 5).all()


def test_group_does_not_depend_on_the_other_groups():
    seeds, _ = draw(6)
    select = optimizer(rewards=[(ImageReward(brightness), 2.0)], penalty=norm_penalty, norm="keep", patience=2)
    both = select(seeds, group_problem())
    for part in (slice(0, 3), slice(3, 6)):
        alone = select(seeds[part], group_problem())
        torch.testing.assert_close(alone.seed, both.seed[part], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(alone.loss, both.loss[part])
    norms = [z.flatten(1).norm(dim=1) for z in (seeds, both.seed)]
    torch.testing.assert_close(*norms)  # each seed has its norm, not only each group


def test_groups_of_one_seed_would_equal_seedselect():
    seeds, targets = draw(2)
    loss = SeedSelect(iterations=4, rewards=[(ImageReward(brightness), 1.0)], step_weights=(1.0,), **ADAM)
    pair = optimizer(iterations=4, group_size=2, group_rewards=[(zero, 1.0)], rewards=[(ImageReward(brightness), 2.0)])
    single = loss(seeds, Problem(one_latent, decode, features, targets))
    torch.testing.assert_close(pair(seeds, group_problem()).seed, single.seed, rtol=1e-5, atol=1e-5)


def zero(generation: Generation) -> torch.Tensor:
    return torch.zeros(len(generation.seeds) // generation.group_size, dtype=torch.float64)


def test_optimization_stops_where_quality_falls():
    seeds, _ = draw(6)
    darker = optimizer(iterations=20, group_rewards=[(darkness, 1.0)])
    limited = optimizer(
        iterations=20, group_rewards=[(darkness, 1.0)], quality=ImageReward(brightness), max_quality_loss=0.05
    )
    initial = brightness(decode(generate(seeds, torch.arange(6))[-1])).view(2, 3).mean(1)
    for select, falls in ((darker, True), (limited, False)):
        result = select(seeds, group_problem())
        quality = brightness(decode(result.latent)).view(2, 3).mean(1)
        assert ((quality < initial - 0.05) == falls).all()
    assert (result.iterations < 20).all() and not result.converged.any()
    assert (result.loss < result.initial_loss).all()


def darkness(generation: Generation) -> torch.Tensor:
    return -brightness(generation.images).double().unflatten(0, (-1, generation.group_size)).mean(1)


def test_best_of_groups_returns_whole_groups():
    seeds, _ = draw(12)  # two groups of three seeds, two candidates per seed
    loss = optimizer()
    result = BestOf(loss, 2)(seeds, group_problem())
    losses = torch.stack([evaluate(loss, seeds.view(6, 2, 3, 4, 4)[:, k]) for k in range(2)], 1)
    best = losses.argmin(1)
    expected = torch.stack([seeds.view(2, 3, 2, 3, 4, 4)[g, :, best[g]] for g in range(2)]).flatten(0, 1)
    assert torch.equal(result.seed, expected)
    torch.testing.assert_close(result.loss, losses.min(1).values.repeat_interleave(3))
    assert (result.forwards == 2).all() and (result.backwards == 0).all()


def evaluate(loss: GroupSelect, seeds: torch.Tensor) -> torch.Tensor:
    latents = one_latent(seeds, torch.arange(len(seeds)))
    return loss.compute_loss(Generation(seeds, latents, Targets(), decode, features, loss.group_size, latents[-1]))


def test_best_subset_of_pairs_is_the_best_pair_with_the_best_first_image():
    seeds, _ = draw(16)  # two groups of two seeds, four candidates per seed
    loss = optimizer(group_size=2, rewards=[(ImageReward(brightness), 1.0)])
    result = BestSubset(loss, 4)(seeds, group_problem())
    pools = seeds.view(2, 8, 3, 4, 4)
    for group, pool in enumerate(pools):
        first = brightness(decode(generate(pool, torch.arange(8))[-1])).argmax().item()
        pairs = [torch.stack([pool[first], pool[k]]) for k in range(8) if k != first]
        losses = torch.cat([evaluate(loss, pair) for pair in pairs])
        part = slice(2 * group, 2 * group + 2)
        assert torch.equal(result.seed[part], pairs[losses.argmin()])
        torch.testing.assert_close(result.loss[part], losses.min().expand(2))
    torch.testing.assert_close(result.initial_loss[::2], evaluate(loss, pools[:, ::4].flatten(0, 1)))
    latents = generate(result.seed, torch.arange(4))[-1]
    torch.testing.assert_close(result.latent, latents)


def test_best_subset_is_more_diverse_than_the_best_group():
    seeds, _ = draw(3 * 3 * 5)
    loss = optimizer(group_rewards=[(ImageDiversity(dpp_log_det), 1.0)])
    subset, best = (kind(loss, 5)(seeds, group_problem()) for kind in (BestSubset, BestOf))
    assert (subset.loss < best.loss).all()
    refined = BestSubset(loss, 5, refine=loss)(seeds, group_problem())
    assert (refined.loss <= subset.loss + 1e-9).all() and (refined.loss < subset.loss).any()
    assert (refined.forwards == 11).all() and (refined.backwards == 5).all()


def test_best_subset_avoids_images_that_are_not_finite():
    seeds, _ = draw(6)
    seeds[0] = torch.nan
    result = BestSubset(optimizer(group_size=3), 2)(seeds, group_problem())
    assert result.seed.isfinite().all()


def test_vendi_score_of_a_set_that_is_not_finite_is_nan():
    features = torch.eye(4).expand(2, 4, 4).clone()
    features[0, 1, 2] = torch.nan
    scores = vendi_score(features)
    assert scores[0].isnan() and scores[1].item() == pytest.approx(4)


def test_local_search_improves_groups():
    seeds, _ = draw(6)
    generator = torch.Generator().manual_seed(0)
    search = LocalSearch(optimizer(), rounds=2, neighbors=3)
    result = search(seeds, group_problem(), noise=lambda k: torch.randn(seeds.shape, generator=generator))
    assert (result.loss <= result.initial_loss).all() and (result.loss < result.initial_loss).any()
    assert torch.equal(result.loss[:3], result.loss[:1].expand(3))


def test_iterations_report_every_sample_of_the_active_groups():
    seeds, _ = draw(6)
    states = list(optimizer(iterations=2).iterate(seeds, group_problem()))
    assert [state.number for state in states] == [0, 1, 2]
    for state in states:
        assert state.rows.tolist() == list(range(6))
        assert state.loss.shape == (6,) and state.latent.shape == seeds.shape
        assert state.selection.seed.shape == seeds.shape


def test_pink_noise_has_the_stated_spectrum_and_variance():
    white = torch.randn(400, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pink = pink_noise(white, 1.0)
    assert pink.dtype == white.dtype
    assert pink.var().item() == pytest.approx(1, abs=0.01)
    power = torch.fft.fft2(pink.double()).abs().square().mean((0, 1))
    for low, high in ((1, 2), (2, 4), (4, 8)):  # power 1 / f on the axes
        assert (power[0, low] / power[0, high]).item() == pytest.approx(high / low, rel=0.1)
        assert (power[low, 0] / power[high, 0]).item() == pytest.approx(high / low, rel=0.1)
    assert (power[0, 0] / power[0, 1]).item() == pytest.approx(1, rel=0.1)


def test_pink_noise_with_exponent_0_is_the_white_noise():
    white = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pink_noise(white, 0.0), white)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size: Input should be greater than or equal to 2, got 1"),
        ({"group_rewards": []}, "group_rewards"),
        (
            {"group_rewards": [("vendi", 1.0)]},
            "group_rewards: each entry must be a pair of a reward and a finite weight, got",
        ),
        ({"rewards": [(brightness,)]}, "rewards: each entry must be a pair of a reward and a finite weight, got"),
        ({"max_quality_loss": -1.0}, "max_quality_loss: Input should be greater than or equal to 0, got -1"),
    ],
)
def test_invalid_settings_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        optimizer(**changes)


def test_seeds_that_are_not_groups_are_rejected():
    seeds, _ = draw(4)
    with pytest.raises(ValueError, match="seeds: the number of seeds must be a multiple of group_size=3, got 4"):
        optimizer()(seeds, group_problem())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (SeedSelect(), "loss: Input should be an instance of GroupSelect, got SeedSelect"),
        (optimizer(group_rewards=[(zero, 1.0)]), "must be ImageDiversity or LatentDiversity, got function"),
    ],
)
def test_best_subset_needs_measures_of_features(loss, message):
    with pytest.raises(ValueError, match=message):
        BestSubset(loss, 2)


def test_losses_of_references_need_references():
    seeds, _ = draw(2)
    for select, message in (
        (SeedSelect(), r"the semantic loss needs Targets\(features=...\)"),
        (
            SeedSelect(rewards=[(appearance_reward, 1.0)]),
            r"the appearance loss needs Targets\(latent=...\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            select(seeds, group_problem(generate))
