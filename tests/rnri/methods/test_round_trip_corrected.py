"""Inversion that looks at what its seed makes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from rnri import FixedPoint, ImplicitInverter, NoisePredictor, RoundTripCorrected, anderson_inverter, with_measured_residuals, sample
from rnri.methods import EDICT
from tests.problems import function_predictor, gaussian, schedule, wavy

ROUGH = ImplicitInverter(FixedPoint(1, 0))


def error(found, z0, predictor, steps):
    return (sample(found.seed, predictor, steps) - z0).square().flatten(1).mean(1)


def test_every_round_brings_a_contracting_inversion_nearer():
    denoiser, z0 = gaussian(4)
    steps, predictor = schedule(10), NoisePredictor(denoiser)
    errors = [
        error(RoundTripCorrected(ROUGH, rounds, tolerance=0).invert(z0, predictor, steps), z0, predictor, steps)
        for rounds in (0, 1, 2, 8)
    ]
    torch.testing.assert_close(errors[0], error(ROUGH.invert(z0, predictor, steps), z0, predictor, steps))
    for before, after in pairwise(errors):
        assert (after < 0.5 * before).all()


def test_it_is_never_worse_than_the_first_inversion():
    predictor, steps = function_predictor(lambda z, number: 8 * wavy(z, number), 3), schedule(6)
    z0 = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = error(anderson_inverter(3).invert(z0, predictor, steps), z0, predictor, steps)
    best = [
        error(RoundTripCorrected(anderson_inverter(3), k, 1.0).invert(z0, predictor, steps), z0, predictor, steps)
        for k in range(4)
    ]
    assert (first > 1e-3).any() and all((own <= first).all() for own in best)
    assert all((after <= before).all() for before, after in pairwise(best))


def test_what_it_tells_belongs_to_the_walk_that_it_kept():
    denoiser, z0 = gaussian(3)
    steps, predictor, path = schedule(5), NoisePredictor(denoiser), []
    found = RoundTripCorrected(ROUGH, 3, tolerance=0).invert(z0, predictor, steps, lambda k, z: path.append((k, z)))
    assert [k for k, _ in path] == list(range(5))
    torch.testing.assert_close(path[-1][1], found.seed)
    again = ROUGH.invert(found.z0, predictor, steps)  # z0 is the target that the seed was found for
    torch.testing.assert_close(again.seed, found.seed)
    torch.testing.assert_close(again.residuals, found.residuals)
    own = with_measured_residuals(found, [z for _, z in path], predictor, steps, 1e-4)
    torch.testing.assert_close(own.residuals, with_measured_residuals(again, [z for _, z in path], predictor, steps, 1e-4).residuals)
    assert (found.nfe == 4 * 2).all()  # four inversions of one evaluation a step, and four samplings


def test_a_sample_that_is_near_enough_costs_nothing_further_and_is_alone():
    denoiser, z0 = gaussian(4)
    steps = schedule(10)
    errors = error(ROUGH.invert(z0, NoisePredictor(denoiser), steps), z0, NoisePredictor(denoiser), steps)
    inverter = RoundTripCorrected(ROUGH, 2, tolerance=errors.median().item())
    found = inverter.invert(z0, NoisePredictor(denoiser), steps)
    near = errors <= errors.median()
    assert (found.nfe.sum(0)[near] == 20).all() and (found.nfe.sum(0)[~near] > 20).all()
    for k in range(4):
        rows = torch.tensor([k])
        alone = inverter.invert(z0[rows], NoisePredictor(denoiser.select(rows)), steps)
        torch.testing.assert_close(alone.seed, found.seed[rows], atol=1e-12, rtol=0)
        assert torch.equal(alone.nfe, found.nfe[:, rows])


def test_a_sample_that_is_not_finite_spoils_no_other():
    denoiser, z0 = gaussian(3)
    steps, spoilt = schedule(5), z0.clone()
    spoilt[1] = torch.nan
    inverter = RoundTripCorrected(ROUGH, 2, tolerance=0)
    found = inverter.invert(spoilt, NoisePredictor(denoiser), steps)
    whole = inverter.invert(z0, NoisePredictor(denoiser), steps)
    torch.testing.assert_close(found.seed[[0, 2]], whole.seed[[0, 2]])
    assert not found.converged[1] and found.seed[1].isnan().any()


def test_what_it_cannot_correct_is_said():
    with pytest.raises(ValueError, match="inverter=EDICT keeps more than a seed"):
        RoundTripCorrected(EDICT())
    with pytest.raises(ValueError, match="damping=0"):
        replace(RoundTripCorrected(ROUGH), damping=0.0)
