"""Rewards in place of SeedSelect's two losses, and what may be done to a gradient."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from nao import norm_penalty
from seedselect import ClipFeatures, ClipReward, Made, SeedSelect, Targets, of_images, of_latents, of_seeds
from seedselect.gradients import clipped, on_sphere, unchanged, white
from seedselect.rewards import appearance, likeness, negative, text_similarity
from tests.seedselect.test_select import decode, evaluate, features, generate, problem, run, tool


def brightness(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).mean(1)


def made(seeds: torch.Tensor, targets: Targets) -> Made:
    return Made(seeds, generate(seeds, torch.arange(len(seeds))), targets, decode, features)


def test_the_two_losses_are_rewards_with_the_default_weights():
    seeds, targets = problem(3)
    pair = [(partial(likeness, step_weights=(0.05, 0.25, 0.7)), 10.0), (appearance, 1.0)]
    found, usual = (run(tool(iterations=4, rewards=rewards), seeds, targets) for rewards in (pair, None))
    assert torch.equal(found.seed, usual.seed) and torch.equal(found.trace, usual.trace)


def test_a_reward_of_images_latents_or_seeds_is_raised():
    seeds, targets = problem(4)
    for reward in (of_images(brightness), of_latents(brightness), of_seeds(brightness)):
        before, found = reward(made(seeds, targets)), run(tool(rewards=[(reward, 2.0)], iterations=5), seeds, targets)
        assert (reward(made(found.seed, targets)) > before).all()
        torch.testing.assert_close(found.initial_loss, -2 * before.double(), rtol=1e-5, atol=1e-6)
        assert (found.forwards == 6).all() and (found.backwards == 5).all()


def test_images_are_decoded_once_for_all_rewards():
    calls = []

    def counted(z: torch.Tensor) -> torch.Tensor:
        calls.append(len(z))
        return decode(z)

    seeds, targets = problem(2)
    select = SeedSelect(rewards=[(of_images(brightness), 1.0), (of_images(brightness), 2.0)])
    select.loss_of(Made(seeds, generate(seeds, torch.arange(2)), targets, counted, features))
    assert calls == [2]


def test_text_similarity_is_the_cosine_and_needs_the_prompts_features():
    seeds, targets = problem(3)
    text = torch.nn.functional.normalize(torch.randn(3, 48, generator=torch.Generator().manual_seed(5)), dim=-1)
    found = text_similarity(made(seeds, Targets(targets.features, targets.latent, text)))
    images = features(decode(generate(seeds, torch.arange(3))[-1]))
    torch.testing.assert_close(found, torch.nn.functional.cosine_similarity(images, text))
    with pytest.raises(ValueError, match=r"Targets\(text="):
        text_similarity(made(seeds, targets))


def test_targets_of_some_rows_keep_their_text_and_prompts():
    _, targets = problem(3)
    own = Targets(targets.features, targets.latent, targets.features * 2, ["a", "b", "c"]).select(torch.tensor([2, 0]))
    assert own.prompts == ["c", "a"] and torch.equal(own.text, 2 * own.features)


@pytest.mark.parametrize("scale", [0.5, 1.0, 30.0])
def test_naos_prior_is_renos_regularizer_up_to_a_constant(scale):
    seeds = scale * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    d, square = 1024, seeds.double().flatten(1).square().sum(1)
    reno = 0.5 * square - (d - 1) * 0.5 * square.log()
    least = 0.5 * (d - 1) - (d - 1) * 0.5 * math.log(d - 1)
    reward = of_seeds(negative(norm_penalty))(made_of(seeds))
    torch.testing.assert_close(-reward.double(), reno - least, rtol=1e-4, atol=1e-3)


def made_of(seeds: torch.Tensor) -> Made:
    return Made(seeds, [seeds], None, decode, features)


def test_a_reward_model_by_path_scores_images_and_prompts():
    clip = ClipFeatures.from_pretrained(
        "assets/models/clip", device="cpu", dtype=torch.float32, local_files_only=True
    )  # fmt: skip
    latents, prompts = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), ["a camel", "an owl"]
    targets = Targets(torch.zeros(2, 1), torch.zeros(2, 1), prompts=prompts)
    found = ClipReward("assets/models/clip", local_files_only=True)(
        Made(latents, [latents], targets, torch.nn.Identity(), features)
    )
    torch.testing.assert_close(found, (clip(latents) * clip.text(prompts)).sum(-1))
    with pytest.raises(ValueError, match="prompts="):
        ClipReward("assets/models/clip")(made(*problem(2)))


@pytest.mark.parametrize("pair", [(brightness,), (brightness, math.nan), ("bright", 1.0), (brightness, True)])
def test_pairs_that_are_none_are_refused(pair):
    with pytest.raises(ValueError, match=r"rewards holds .*: give pairs of a reward and its weight"):
        SeedSelect(rewards=[pair])


def test_gradients_are_shortened_to_a_norm_by_sample():
    gradient = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    gradient[1] *= 1e-3
    found = clipped(gradient, gradient, most=0.1)
    torch.testing.assert_close(found.flatten(1).norm(dim=1)[[0, 2]], torch.full((2,), 0.1))
    assert torch.equal(found[1], gradient[1]) and unchanged(gradient, gradient) is gradient


def test_a_gradient_on_the_sphere_is_at_right_angles_to_the_seed():
    generator = torch.Generator().manual_seed(0)
    gradient, seeds = torch.randn(2, 3, 2, 4, 4, generator=generator)
    seeds[2] = 0
    found = on_sphere(gradient, seeds)
    torch.testing.assert_close((found * seeds).flatten(1).sum(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[2], gradient[2])
    torch.testing.assert_close(on_sphere(seeds, seeds), torch.zeros_like(seeds), atol=1e-6, rtol=0)


def test_a_white_gradient_has_the_same_power_at_all_frequencies():
    smooth = torch.nn.functional.avg_pool2d(
        torch.randn(2, 4, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 5, stride=1
    )
    found = white(smooth, smooth, blocks=4)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), smooth.flatten(1).norm(dim=1))
    frequency = torch.fft.fftfreq(16, dtype=torch.float64)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    ring = (radius / radius.max() * 4).long().clamp_max(3)

    def powers(values: torch.Tensor) -> list[float]:
        power = torch.fft.fft2(values).abs().square().mean((0, 1))
        return [power[ring == k].mean().item() for k in range(4)]

    assert max(powers(smooth)) > 10 * min(powers(smooth)) and max(powers(found)) < 1.01 * min(powers(found))
    torch.testing.assert_close(white(smooth[1:], smooth[1:]), found[1:])
    assert torch.equal(white(torch.zeros(1, 1, 4, 4), smooth), torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("gradient", [partial(clipped, most=1e-6), on_sphere, white])
def test_an_optimization_follows_the_changed_gradient(gradient):
    seeds, targets = problem(2)
    sgd = partial(torch.optim.SGD, lr=1.0)
    found = run(SeedSelect(iterations=1, optimizer=sgd, gradient=gradient), seeds, targets)
    here = seeds.clone().requires_grad_()
    slope = torch.autograd.grad(evaluate(SeedSelect(), here, targets).sum(), here)[0]
    moved = seeds - gradient(slope, seeds)
    torch.testing.assert_close(found.trace[1], evaluate(SeedSelect(), moved, targets).detach(), rtol=1e-4, atol=1e-5)
