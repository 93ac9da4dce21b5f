"""Each method compared with its published definition, in two steps that are computed by hand.

The levels ``a`` are 0.36, 0.64 and 1, so that the DDIM steps have ``(A, B)`` of (0.75, 0.35) and (0.8, 0.6); their
timesteps, 2 and 1, are factors of the noise prediction, which shows the timestep of each evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from rnri import Condition, Inversion, NoisePredictor, Schedule, sample
from rnri.methods import BDIA, EDICT, OBELM, DirectInversion, EditFriendly, NegativePrompt, NullText, SDEdit
from rnri.methods.noise_maps import draw_noise


@dataclass(frozen=True)
class Prompted:
    """The noise prediction ``slope t z + text``, where the condition ``text`` is one number per sample."""

    slope: float
    positive: Condition
    negative: Condition | None = None
    guidance: float = 1.0

    def __call__(self, z: Tensor, t: int) -> Tensor:
        conditional = self.slope * t * z + self.positive.text.view(-1, 1, 1, 1)
        if self.negative is None:
            return conditional
        unconditional = self.slope * t * z + self.negative.text.view(-1, 1, 1, 1)
        return self.guided(unconditional, conditional)

    def guided(self, negative: Tensor, positive: Tensor) -> Tensor:
        return negative + self.guidance * (positive - negative)

    def unguided(self) -> Prompted:
        return replace(self, negative=None, guidance=1.0)


def predictor(slope: float = 1, text: float = 0, negative: float | None = None, guidance: float = 1) -> NoisePredictor:
    negative_condition = None if negative is None else condition(negative)
    return NoisePredictor(Prompted(slope, condition(text), negative_condition, guidance))


def condition(text: float) -> Condition:
    return Condition(torch.full((1, 1, 1), text, dtype=torch.float64))


def levels(*alphas: float, timesteps: tuple[int, ...] = (2, 1)) -> Schedule:
    a = torch.tensor(alphas, dtype=torch.float64)
    return Schedule.diffusion(torch.tensor(timesteps), a[:-1], a[1:])


STEPS = levels(0.36, 0.64, 1)


def value(number: float) -> Tensor:
    return torch.full((1, 1, 1, 1), number, dtype=torch.float64)


def assert_close(actual: Tensor, *expected: float, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def test_edict_alternates_updates_and_mixes_x_first():
    """From x = 1 and y = 2 with mix 1/2: the first step updates x first, the second y."""
    start = replace(EDICT().invert(value(1), predictor(), STEPS), seed=value(1), aux={"partner": value(2)})
    # x' = (1 - 0.7 * 2) / 0.75 = -8/15 and y' = (2 + 0.7 * 8/15) / 0.75 = 142.4/45 mix to 59.2/45 and 2.24;
    # y' = (2.24 - 0.6 * 59.2/45) / 0.8 = 65.28/36 and x' = (59.2/45 - 0.6 * 65.28/36) / 0.8 = 10.24/36 mix to:
    assert_close(EDICT(mix=0.5).reconstruct(start, predictor(), STEPS), 75.52 / 72)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("mix", [0.5, 0.93, 1.0])
def test_edict_is_exact_for_any_number_of_steps(steps, mix):
    schedule = levels(*torch.linspace(0.3, 0.9, steps + 1).tolist(), timesteps=tuple(range(steps, 0, -1)))
    method = EDICT(mix)
    z0 = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    predictor = NoisePredictor(Nonlinear())
    inversion = method.invert(z0, predictor, schedule)
    torch.testing.assert_close(method.reconstruct(inversion, predictor, schedule), z0, rtol=0, atol=1e-12)
    assert (inversion.seed - inversion.aux["partner"]).abs().max() > 1e-3


@dataclass(frozen=True)
class Nonlinear:
    def __call__(self, z: Tensor, t: int) -> Tensor:
        return torch.sin(3 * z + t)


def test_bdia_with_gamma_one_half():
    """z_1 = 0.8 + 0.6, then z_2 from 1 = (z_2 - 1.54) / 2 + 0.7, evaluated at the timestep of z_1."""
    inversion = BDIA(gamma=0.5).invert(value(1), predictor(), STEPS)
    assert_close(inversion.aux["neighbor"], 1.4)
    assert_close(inversion.seed, 2.14)


def test_obelm():
    """sigma / alpha is 0, 3/4 and 4/3: 1 = (81/49) / 0.6 z_2 - (32/49) / 0.8 * 1.4 - 12/7 * 1.4."""
    inversion = OBELM().invert(value(1), predictor(), STEPS)
    assert_close(inversion.aux["neighbor"], 1.4)
    assert_close(inversion.seed, 222.6 / 135)


def test_direct_inversion_stores_the_guided_samplers_error():
    """Pivots 1, 1.4 and 2.03 without guidance; guidance 3 away from the negative condition 1 subtracts 2."""
    guided = predictor(negative=1, guidance=3)
    inversion = DirectInversion().invert(value(1), guided, STEPS)
    assert_close(inversion.seed, 2.03)
    assert_close(inversion.aux["offsets"], 1.4 - (2.03 - 0.35 * 2.06) / 0.75, 1 - (1.4 + 0.6 * 0.6) / 0.8)
    assert inversion.nfe.flatten().tolist() == [2, 2]


def test_negative_prompt_is_ddim_without_guidance():
    guided = predictor(negative=1, guidance=3)
    inversion = NegativePrompt().invert(value(1), guided, STEPS)
    assert_close(inversion.seed, 2.03)
    # (2.03 - 0.7 * 2.03) / 0.75 = 0.812 and (0.812 - 0.6 * 0.812) / 0.8
    assert_close(NegativePrompt().reconstruct(inversion, guided, STEPS), 0.406)
    assert_close(sample(inversion.seed, guided.with_negative(condition(0)), STEPS), 0.406)


class TestNullText:
    """The noise is 1 with the prompt and n, initially 2, without: pivots 1, 1.4, 1.4; with guidance 2 it is 2 - n.

    The first step ends at (1.4 - 0.35 (2 - n)) / 0.75, so its loss at n = 2 is (7/15)^2. Its gradient is positive, and
    Adam's first update is the learning rate for any gradient. From there, 1.862, the loss at n = 1.99 is 1.32^2.
    """

    @staticmethod
    def inversion(**options: float) -> Inversion:
        return NullText(**options).invert(value(1), predictor(0, 1, 2, guidance=2), STEPS)

    def test_learning_rate_decays_linearly(self):
        inversion = self.inversion(iterations=1)
        assert_close(inversion.seed, 1.4)
        assert_close(inversion.aux["negative"], 2 - 0.01, 1.99 - 0.0099, atol=1e-8)
        assert inversion.nfe.flatten().tolist() == [4, 4] and inversion.backward.flatten().tolist() == [1, 1]

    @pytest.mark.parametrize(("threshold", "backward"), [(0.59, [1, 1]), (0.57, [2, 1]), (0.2, [2, 2])])
    def test_stops_when_the_loss_is_below_the_threshold(self, threshold, backward):
        """The threshold of the second step is three times the first: 1.32^2 is between 3 * 0.57 and 3 * 0.59."""
        assert self.inversion(iterations=2, threshold=threshold).backward.flatten().tolist() == backward

    def test_rejects_more_than_100_steps(self):
        steps = levels(*torch.linspace(0.01, 0.99, 102).tolist(), timesteps=tuple(range(101, 0, -1)))
        with pytest.raises(ValueError, match=r"at most 100 sampler steps, got 101"):
            NullText().invert(value(1), predictor(0, 1, 2, guidance=2), steps)


class TestEditFriendly:
    """Levels 0.36, 0.64 and 0.8, noise t z: the means of both steps are multiples of the latent."""

    steps = levels(0.36, 0.64, 0.8)

    @property
    def draws(self) -> tuple[Tensor, Tensor]:
        noise = draw_noise(value(1), 2, 7)
        return 0.6 + 0.8 * noise[:1], 0.8 + 0.6 * noise[1:]

    def test_maps(self):
        """The clean prediction is -z, then z/2; the variances 0.36/0.64 * 0.4375 and 1/9."""
        first, second = self.draws
        inversion = EditFriendly(seed=7, keep_last_map=True).invert(value(1), predictor(), self.steps)
        mean = -0.8 * first + 0.3375 * 2 * first
        last = 0.8**0.5 * second / 2 + (0.2 - 1 / 9) ** 0.5 * second
        assert_close(inversion.seed, first.item())
        assert_close(inversion.aux["maps"], ((second - mean) / (0.75 * 0.4375**0.5)).item(), (3 * (1 - last)).item())
        assert inversion.residual_converged.all()
        assert_close(EditFriendly(keep_last_map=True).reconstruct(inversion, predictor(), self.steps), 1)

    def test_default_drops_the_last_map(self):
        _, second = self.draws
        exact = EditFriendly(seed=7, keep_last_map=True).invert(value(1), predictor(), self.steps)
        inversion = EditFriendly(seed=7).invert(value(1), predictor(), self.steps)
        assert torch.equal(inversion.aux["maps"][:, 0], exact.aux["maps"][:, 0])
        assert (inversion.aux["maps"][:, 1] == 0).all() and not inversion.residual_converged.any()
        last = (0.8**0.5 / 2 + (0.2 - 1 / 9) ** 0.5) * second
        assert_close(EditFriendly().reconstruct(inversion, predictor(), self.steps), last.item())


def test_sdedit_noises_and_samples_half_of_the_steps():
    """Half of two steps is the last step: 0.8 + 0.6 n, then (z - 0.6 z) / 0.8."""
    inversion = SDEdit(strength=0.5, seed=3).invert(value(1), predictor(), STEPS)
    seed = 0.8 + 0.6 * draw_noise(value(1), 1, 3)
    assert_close(inversion.seed, seed.item())
    assert_close(SDEdit(strength=0.5).reconstruct(inversion, predictor(), STEPS), seed.item() / 2)
