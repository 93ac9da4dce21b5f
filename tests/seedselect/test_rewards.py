"""Rewards that replace the two losses of SeedSelect, and transforms of the gradient."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from nao import norm_penalty
from seedselect import ClipFeatures, ClipReward, Generation, ImageReward, LatentReward, SeedReward, SeedSelect, Targets
from seedselect.gradients import clip_norm, identity, project_to_tangent, whiten
from seedselect.rewards import Negated, appearance_reward, novelty_reward, semantic_reward, text_similarity
from tests.seedselect.test_select import decode, draw, evaluate, features, generate, run, with_adamw


def brightness(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).mean(1)


def generation(seeds: torch.Tensor, targets: Targets) -> Generation:
    return Generation(seeds, generate(seeds, torch.arange(len(seeds))), targets, decode, features)


def test_two_default_losses_as_rewards_give_the_same_result():
    seeds, targets = draw(3)
    pair = [(partial(semantic_reward, step_weights=(0.05, 0.25, 0.7)), 10.0), (appearance_reward, 1.0)]
    as_rewards, default = (run(with_adamw(iterations=4, rewards=rewards), seeds, targets) for rewards in (pair, None))
    assert torch.equal(as_rewards.seed, default.seed)
    assert torch.equal(as_rewards.trace, default.trace)


def test_semantic_loss_of_views_is_the_mean_over_the_views():
    seeds, targets = draw(3)
    sample = generation(seeds, targets)
    seen = []

    def recorded(images: torch.Tensor) -> torch.Tensor:
        seen.append(features(images))
        return seen[-1]

    loss = -semantic_reward(replace(sample, features=recorded), views=3)
    cosines = torch.stack([torch.nn.functional.cosine_similarity(view, targets.features) for view in seen])
    assert len(seen) == 3
    torch.testing.assert_close(loss, (1 - cosines).mean(0))
    assert torch.equal(with_adamw(views=3, appearance_weight=0.0, step_weights=(1.0,)).compute_loss(sample), 10 * loss)


def test_optimization_increases_image_latent_and_seed_rewards():
    seeds, targets = draw(4)
    for reward in (ImageReward(brightness), LatentReward(brightness), SeedReward(brightness)):
        before = reward(generation(seeds, targets))
        result = run(with_adamw(rewards=[(reward, 2.0)], iterations=5), seeds, targets)
        assert (reward(generation(result.seed, targets)) > before).all()
        torch.testing.assert_close(result.initial_loss, -2 * before.double(), rtol=1e-5, atol=1e-6)
        assert (result.forwards == 6).all() and (result.backwards == 5).all()


def test_images_are_decoded_once_for_all_rewards():
    calls = []

    def counted(z: torch.Tensor) -> torch.Tensor:
        calls.append(len(z))
        return decode(z)

    seeds, targets = draw(2)
    select = SeedSelect(rewards=[(ImageReward(brightness), 1.0), (ImageReward(brightness), 2.0)])
    select.compute_loss(Generation(seeds, generate(seeds, torch.arange(2)), targets, counted, features))
    assert calls == [2]


def test_text_similarity_is_the_cosine_and_needs_text_features():
    seeds, targets = draw(3)
    text = torch.nn.functional.normalize(torch.randn(3, 48, generator=torch.Generator().manual_seed(5)), dim=-1)
    result = text_similarity(generation(seeds, Targets(targets.features, targets.latent, text)))
    images = features(decode(generate(seeds, torch.arange(3))[-1]))
    torch.testing.assert_close(result, torch.nn.functional.cosine_similarity(images, text))
    with pytest.raises(ValueError, match=r"Targets\(text="):
        text_similarity(generation(seeds, targets))


def test_novelty_reward_is_the_bounded_distance_to_the_nearest_reference():
    seeds, targets = draw(2)
    latent = generate(seeds, torch.arange(2))[-1]
    references = torch.stack([latent + 1.0, latent + 0.5], 1)  # mean squared distances 1 and 0.25
    with_references = Targets(targets.features, targets.latent, references=references)
    far = novelty_reward(generation(seeds, with_references), margin=0.2)
    near = novelty_reward(generation(seeds, with_references), margin=0.75)
    torch.testing.assert_close(far, torch.zeros(2))
    torch.testing.assert_close(near, torch.full((2,), 0.25 - 0.75))
    with pytest.raises(ValueError, match=r"needs Targets\(references=\.\.\.\)"):
        novelty_reward(generation(seeds, targets), margin=1.0)


def test_novelty_reward_moves_the_image_away_from_a_reference():
    seeds, targets = draw(2)
    references = generate(seeds, torch.arange(2))[-1][:, None] + 0.1
    with_references = Targets(targets.features, targets.latent, references=references)
    reward = partial(novelty_reward, margin=1.0)
    result = run(with_adamw(rewards=[(reward, 1.0)], iterations=5), seeds, with_references)
    before, after = (reward(generation(z, with_references)) for z in (seeds, result.seed))
    assert (after > before).all()


def test_targets_select_takes_rows_of_text_and_prompts():
    _, targets = draw(3)
    selected = Targets(targets.features, targets.latent, targets.features * 2, ["a", "b", "c"]).select(
        torch.tensor([2, 0])
    )
    assert selected.prompts == ["c", "a"] and torch.equal(selected.text, 2 * selected.features)


@pytest.mark.parametrize("scale", [0.5, 1.0, 30.0])
def test_norm_penalty_equals_renos_regularizer_up_to_a_constant(scale):
    seeds = scale * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    d, square = 1024, seeds.double().flatten(1).square().sum(1)
    reno = 0.5 * square - (d - 1) * 0.5 * square.log()
    minimum = 0.5 * (d - 1) - (d - 1) * 0.5 * math.log(d - 1)
    reward = SeedReward(Negated(norm_penalty))(generation_of(seeds))
    torch.testing.assert_close(-reward.double(), reno - minimum, rtol=1e-4, atol=1e-3)


def generation_of(seeds: torch.Tensor) -> Generation:
    return Generation(seeds, [seeds], None, decode, features)


def test_clip_reward_is_the_similarity_of_image_and_prompt():
    clip = ClipFeatures.from_pretrained(
        "assets/models/clip", device="cpu", dtype=torch.float32, local_files_only=True
    )  # fmt: skip
    latents, prompts = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), ["a camel", "an owl"]
    targets = Targets(torch.zeros(2, 1), torch.zeros(2, 1), prompts=prompts)
    result = ClipReward("assets/models/clip", local_files_only=True)(
        Generation(latents, [latents], targets, torch.nn.Identity(), features)
    )
    torch.testing.assert_close(result, (clip(latents) * clip.text(prompts)).sum(-1))
    with pytest.raises(ValueError, match="prompts="):
        ClipReward("assets/models/clip")(generation(*draw(2)))


@pytest.mark.parametrize("pair", [(brightness,), (brightness, math.nan), ("bright", 1.0), (brightness, True)])
def test_invalid_reward_pairs_are_rejected(pair):
    with pytest.raises(ValueError, match=r"rewards: each entry must be a pair of a reward and a finite weight, got "):
        SeedSelect(rewards=[pair])


def test_clip_norm_limits_the_norm_per_sample():
    gradient = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    gradient[1] *= 1e-3
    result = clip_norm(gradient, gradient, max_norm=0.1)
    torch.testing.assert_close(result.flatten(1).norm(dim=1)[[0, 2]], torch.full((2,), 0.1))
    assert torch.equal(result[1], gradient[1]) and identity(gradient, gradient) is gradient


def test_projected_gradient_is_orthogonal_to_the_seed():
    generator = torch.Generator().manual_seed(0)
    gradient, seeds = torch.randn(2, 3, 2, 4, 4, generator=generator)
    seeds[2] = 0
    result = project_to_tangent(gradient, seeds)
    torch.testing.assert_close((result * seeds).flatten(1).sum(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(result[2], gradient[2])
    torch.testing.assert_close(project_to_tangent(seeds, seeds), torch.zeros_like(seeds), atol=1e-6, rtol=0)


def test_whitened_gradient_has_equal_power_in_all_rings():
    smooth = torch.nn.functional.avg_pool2d(
        torch.randn(2, 4, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 5, stride=1
    )
    result = whiten(smooth, smooth, blocks=4)
    torch.testing.assert_close(result.flatten(1).norm(dim=1), smooth.flatten(1).norm(dim=1))
    frequency = torch.fft.fftfreq(16, dtype=torch.float64)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    ring = (radius / radius.max() * 4).long().clamp_max(3)

    def ring_powers(values: torch.Tensor) -> list[float]:
        power = torch.fft.fft2(values).abs().square().mean((0, 1))
        return [power[ring == k].mean().item() for k in range(4)]

    assert max(ring_powers(smooth)) > 10 * min(ring_powers(smooth))
    assert max(ring_powers(result)) < 1.01 * min(ring_powers(result))
    torch.testing.assert_close(whiten(smooth[1:], smooth[1:]), result[1:])
    assert torch.equal(whiten(torch.zeros(1, 1, 4, 4), smooth), torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("gradient", [partial(clip_norm, max_norm=1e-6), project_to_tangent, whiten])
def test_update_uses_the_transformed_gradient(gradient):
    seeds, targets = draw(2)
    sgd = partial(torch.optim.SGD, lr=1.0)
    result = run(SeedSelect(iterations=1, optimizer=sgd, gradient=gradient), seeds, targets)
    here = seeds.clone().requires_grad_()
    slope = torch.autograd.grad(evaluate(SeedSelect(), here, targets).sum(), here)[0]
    moved = seeds - gradient(slope, seeds)
    torch.testing.assert_close(result.trace[1], evaluate(SeedSelect(), moved, targets).detach(), rtol=1e-4, atol=1e-5)
