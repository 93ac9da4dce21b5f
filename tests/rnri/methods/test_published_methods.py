"""Each method against its published definition, in two steps that can be followed by hand.

The levels ``a`` are 0.36, 0.64 and 1, so that the DDIM steps have ``(A, B)`` of (0.75, 0.35) and (0.8, 0.6); their
timesteps, 2 and 1, are factors of the noise prediction, which tells what label a method evaluates at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from rnri import Condition, Inversion, NoisePredictor, Schedule, sample
from rnri.methods import BDIA, EDICT, OBELM, DirectInversion, EditFriendly, NegativePrompt, NullText, SDEdit
from rnri.methods.edit_friendly_ddpm import draw_noise


@dataclass(frozen=True)
class Prompted:
    """``slope t z + text``: a noise prediction whose condition is a number a sample."""

    slope: float
    positive: Condition
    negative: Condition | None = None
    guidance: float = 1.0

    def __call__(self, z: Tensor, t: int) -> Tensor:
        towards = self.slope * t * z + self.positive.text.view(-1, 1, 1, 1)
        if self.negative is None:
            return towards
        away = self.slope * t * z + self.negative.text.view(-1, 1, 1, 1)
        return away + self.guidance * (towards - away)

    def unguided(self) -> Prompted:
        return replace(self, negative=None, guidance=1.0)


def predictor(slope: float = 1, text: float = 0, negative: float | None = None, guidance: float = 1) -> NoisePredictor:
    away = None if negative is None else condition(negative)
    return NoisePredictor(Prompted(slope, condition(text), away, guidance))


def condition(text: float) -> Condition:
    return Condition(torch.full((1, 1, 1), text, dtype=torch.float64))


def levels(*alphas: float, timesteps: tuple[int, ...] = (2, 1)) -> Schedule:
    a = torch.tensor(alphas, dtype=torch.float64)
    return Schedule.diffusion(torch.tensor(timesteps), a[:-1], a[1:])


STEPS = levels(0.36, 0.64, 1)


def value(number: float) -> Tensor:
    return torch.full((1, 1, 1, 1), number, dtype=torch.float64)


def close(found: Tensor, *expected: float, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def test_edict_alternates_its_network_steps_and_always_mixes_x_first():
    """From x = 1 and y = 2, mix 1/2: x leads the first step, y the second."""
    start = replace(EDICT().invert(value(1), predictor(), STEPS), seed=value(1), aux={"partner": value(2)})
    # x' = (1 - 0.7 * 2) / 0.75 = -8/15 and y' = (2 + 0.7 * 8/15) / 0.75 = 142.4/45 mix to 59.2/45 and 2.24;
    # y' = (2.24 - 0.6 * 59.2/45) / 0.8 = 65.28/36 and x' = (59.2/45 - 0.6 * 65.28/36) / 0.8 = 10.24/36 mix to:
    close(EDICT(mix=0.5).reconstruct(start, predictor(), STEPS), 75.52 / 72)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("mix", [0.5, 0.93, 1.0])
def test_edict_is_undone_for_any_number_of_steps(steps, mix):
    schedule = levels(*torch.linspace(0.3, 0.9, steps + 1).tolist(), timesteps=tuple(range(steps, 0, -1)))
    method, z0 = EDICT(mix), torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bent = NoisePredictor(Bent())
    inversion = method.invert(z0, bent, schedule)
    torch.testing.assert_close(method.reconstruct(inversion, bent, schedule), z0, rtol=0, atol=1e-12)
    assert (inversion.seed - inversion.aux["partner"]).abs().max() > 1e-3


@dataclass(frozen=True)
class Bent:
    def __call__(self, z: Tensor, t: int) -> Tensor:
        return torch.sin(3 * z + t)


def test_bdia_gamma_a_half():
    """z_1 = 0.8 + 0.6, then z_2 from 1 = (z_2 - 1.54) / 2 + 0.7, all at z_1's own label."""
    found = BDIA(gamma=0.5).invert(value(1), predictor(), STEPS)
    close(found.aux["perturb"], 1.4)
    close(found.seed, 2.14)


def test_obelm():
    """sigma / alpha is 0, 3/4 and 4/3: 1 = (81/49) / 0.6 z_2 - (32/49) / 0.8 * 1.4 - 12/7 * 1.4."""
    found = OBELM().invert(value(1), predictor(), STEPS)
    close(found.aux["perturb"], 1.4)
    close(found.seed, 222.6 / 135)


def test_direct_inversion_stores_what_the_guided_sampler_misses():
    """Pivots 1, 1.4 and 2.03 without guidance; guidance 3 away from 1 takes 2 off the noise."""
    guided = predictor(negative=1, guidance=3)
    found = DirectInversion().invert(value(1), guided, STEPS)
    close(found.seed, 2.03)
    close(found.aux["offsets"], 1.4 - (2.03 - 0.35 * 2.06) / 0.75, 1 - (1.4 + 0.6 * 0.6) / 0.8)
    assert found.nfe.flatten().tolist() == [2, 2]


def test_negative_prompt_is_ddim_without_guidance():
    guided = predictor(negative=1, guidance=3)
    found = NegativePrompt().invert(value(1), guided, STEPS)
    close(found.seed, 2.03)
    # (2.03 - 0.7 * 2.03) / 0.75 = 0.812 and (0.812 - 0.6 * 0.812) / 0.8
    close(NegativePrompt().reconstruct(found, guided, STEPS), 0.406)
    close(sample(found.seed, guided.with_negative(condition(0)), STEPS), 0.406)


class TestNullText:
    """Noise 1 under the prompt and n, at first 2, without: pivots 1, 1.4, 1.4, and guidance 2 makes the noise 2 - n.

    The first step ends at (1.4 - 0.35 (2 - n)) / 0.75, so its loss is (7/15)^2 at n = 2; too large an n, whose gradient
    is positive, and Adam's first step is the rate whatever the gradient. From there, 1.862, the loss at n = 1.99 is
    1.32^2.
    """

    @staticmethod
    def found(**options: float) -> Inversion:
        return NullText(**options).invert(value(1), predictor(0, 1, 2, guidance=2), STEPS)

    def test_rate_falls_by_a_hundredth_a_step(self):
        found = self.found(iterations=1)
        close(found.seed, 1.4)
        close(found.aux["negative"], 2 - 0.01, 1.99 - 0.0099, atol=1e-8)
        assert found.nfe.flatten().tolist() == [4, 4] and found.backward.flatten().tolist() == [1, 1]

    @pytest.mark.parametrize(("threshold", "backward"), [(0.59, [1, 1]), (0.57, [2, 1]), (0.2, [2, 2])])
    def test_it_stops_after_the_step_whose_loss_was_below_the_threshold(self, threshold, backward):
        """At the second step the threshold is three times the first's: 1.32^2 lies between 3 * 0.57 and 3 * 0.59."""
        assert self.found(iterations=2, threshold=threshold).backward.flatten().tolist() == backward

    def test_more_steps_than_the_rate_lasts_are_refused(self):
        steps = levels(*torch.linspace(0.01, 0.99, 102).tolist(), timesteps=tuple(range(101, 0, -1)))
        with pytest.raises(ValueError, match=r"101 steps: .* at most 100"):
            NullText().invert(value(1), predictor(0, 1, 2, guidance=2), steps)


class TestEditFriendly:
    """Levels 0.36, 0.64 and 0.8, noise t z: both steps' means are multiples of the latent."""

    steps = levels(0.36, 0.64, 0.8)

    @property
    def draws(self) -> tuple[Tensor, Tensor]:
        noise = draw_noise(value(1), 2, 7)
        return 0.6 + 0.8 * noise[:1], 0.8 + 0.6 * noise[1:]

    def test_maps(self):
        """The clean prediction is -z, then z/2; the variances 0.36/0.64 * 0.4375 and 1/9."""
        first, second = self.draws
        found = EditFriendly(seed=7, keep_last_map=True).invert(value(1), predictor(), self.steps)
        mean = -0.8 * first + 0.3375 * 2 * first
        last = 0.8**0.5 * second / 2 + (0.2 - 1 / 9) ** 0.5 * second
        close(found.seed, first.item())
        close(found.aux["maps"], ((second - mean) / (0.75 * 0.4375**0.5)).item(), (3 * (1 - last)).item())
        assert found.converged.all()
        close(EditFriendly(keep_last_map=True).reconstruct(found, predictor(), self.steps), 1)

    def test_the_authors_code_drops_the_last_map(self):
        _, second = self.draws
        kept = EditFriendly(seed=7, keep_last_map=True).invert(value(1), predictor(), self.steps)
        found = EditFriendly(seed=7).invert(value(1), predictor(), self.steps)
        assert torch.equal(found.aux["maps"][:, 0], kept.aux["maps"][:, 0])
        assert (found.aux["maps"][:, 1] == 0).all() and not found.converged.any()
        last = (0.8**0.5 / 2 + (0.2 - 1 / 9) ** 0.5) * second
        close(EditFriendly().reconstruct(found, predictor(), self.steps), last.item())


def test_sdedit_noises_halfway_and_samples_from_there():
    """Half of two steps is the last: 0.8 + 0.6 n, then (z - 0.6 z) / 0.8."""
    found = SDEdit(strength=0.5, seed=3).invert(value(1), predictor(), STEPS)
    seed = 0.8 + 0.6 * draw_noise(value(1), 1, 3)
    close(found.seed, seed.item())
    close(SDEdit(strength=0.5).reconstruct(found, predictor(), STEPS), seed.item() / 2)
