"""Round-trip correction: smaller errors, consistent trajectories and counts, independence of the batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from rnri import (
    FixedPoint,
    ImplicitInverter,
    NoisePredictor,
    RoundTripCorrected,
    anderson_inverter,
    sample,
    with_measured_residuals,
)
from rnri.methods import EDICT
from tests.problems import function_predictor, gaussian, schedule, wavy

ROUGH = ImplicitInverter(FixedPoint(1, 0))


def error(inversion, z0, predictor, steps):
    return (sample(inversion.seed, predictor, steps) - z0).square().flatten(1).mean(1)


def test_every_round_reduces_the_error():
    denoiser, z0 = gaussian(4)
    steps = schedule(10)
    predictor = NoisePredictor(denoiser)
    errors = [
        error(RoundTripCorrected(ROUGH, rounds, tolerance=0).invert(z0, predictor, steps), z0, predictor, steps)
        for rounds in (0, 1, 2, 8)
    ]
    torch.testing.assert_close(errors[0], error(ROUGH.invert(z0, predictor, steps), z0, predictor, steps))
    for before, after in pairwise(errors):
        assert (after < 0.5 * before).all()


def test_never_worse_than_the_first_inversion():
    predictor = function_predictor(lambda z, number: 8 * wavy(z, number), 3)
    steps = schedule(6)
    z0 = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = error(anderson_inverter(3).invert(z0, predictor, steps), z0, predictor, steps)
    best = [
        error(RoundTripCorrected(anderson_inverter(3), k, 1.0).invert(z0, predictor, steps), z0, predictor, steps)
        for k in range(4)
    ]
    assert (first > 1e-3).any() and all((corrected <= first).all() for corrected in best)
    assert all((after <= before).all() for before, after in pairwise(best))


def test_callback_gets_the_returned_trajectory():
    denoiser, z0 = gaussian(3)
    steps = schedule(5)
    predictor = NoisePredictor(denoiser)
    path = []
    inversion = RoundTripCorrected(ROUGH, 3, tolerance=0).invert(z0, predictor, steps, lambda k, z: path.append((k, z)))
    assert [k for k, _ in path] == list(range(5))
    torch.testing.assert_close(path[-1][1], inversion.seed)
    repeated = ROUGH.invert(inversion.z0, predictor, steps)  # z0 is the shifted target of the seed
    torch.testing.assert_close(repeated.seed, inversion.seed)
    torch.testing.assert_close(repeated.residuals, inversion.residuals)
    latents = [z for _, z in path]
    measured = with_measured_residuals(inversion, latents, predictor, steps, tolerance=1e-4)
    expected = with_measured_residuals(repeated, latents, predictor, steps, tolerance=1e-4)
    torch.testing.assert_close(measured.residuals, expected.residuals)
    assert (inversion.nfe == 4 * 2).all()  # four inversions and four samplings with one evaluation per step


def test_samples_within_tolerance_stop():
    denoiser, z0 = gaussian(4)
    steps = schedule(10)
    errors = error(ROUGH.invert(z0, NoisePredictor(denoiser), steps), z0, NoisePredictor(denoiser), steps)
    inverter = RoundTripCorrected(ROUGH, 2, tolerance=errors.median().item())
    inversion = inverter.invert(z0, NoisePredictor(denoiser), steps)
    within = errors <= errors.median()
    assert (inversion.nfe.sum(0)[within] == 20).all() and (inversion.nfe.sum(0)[~within] > 20).all()
    for k in range(4):
        rows = torch.tensor([k])
        alone = inverter.invert(z0[rows], NoisePredictor(denoiser.select(rows)), steps)
        torch.testing.assert_close(alone.seed, inversion.seed[rows], atol=1e-12, rtol=0)
        assert torch.equal(alone.nfe, inversion.nfe[:, rows])


def test_nan_sample_is_isolated():
    denoiser, z0 = gaussian(3)
    steps = schedule(5)
    with_nan = z0.clone()
    with_nan[1] = torch.nan
    inverter = RoundTripCorrected(ROUGH, 2, tolerance=0)
    inversion = inverter.invert(with_nan, NoisePredictor(denoiser), steps)
    expected = inverter.invert(z0, NoisePredictor(denoiser), steps)
    torch.testing.assert_close(inversion.seed[[0, 2]], expected.seed[[0, 2]])
    assert not inversion.residual_converged[1] and inversion.seed[1].isnan().any()


def test_invalid_settings():
    with pytest.raises(ValueError, match="inverter: must be a seed-only method, got EDICT"):
        RoundTripCorrected(EDICT())
    with pytest.raises(ValueError, match=r"damping: .*, got 0.0"):
        replace(RoundTripCorrected(ROUGH), damping=0.0)
