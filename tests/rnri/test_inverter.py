"""Every inversion method reports its network evaluations per step and returns a copy with another number of them."""

from dataclasses import replace

import pytest
import torch

from rnri import (
    Anderson,
    AveragedFixedPoint,
    FixedPoint,
    ImplicitInverter,
    Inverter,
    NewtonKrylov,
    PromptAware,
    ReNoise,
    RNRIPaper,
    RoundTripCorrected,
    SafeguardedAnderson,
    anderson_inverter,
    check_schedule,
)
from rnri.inversion import NFE_PER_BACKWARD
from rnri.methods import ALL_METHODS, EDICT, Midpoint, UniInv
from rnri.methods.accelerated import accelerated_8, accelerated_plus_one
from rnri.methods.common import ddim
from tests.problems import flow_schedule, function_predictor, schedule, wavy

FITTED = ImplicitInverter(SafeguardedAnderson(iterations=3), "fitted")


@pytest.mark.parametrize(
    ("inverter", "nfe"),
    [
        (FITTED, 3),
        (ImplicitInverter(RNRIPaper(iterations=2)), 4),  # one backward pass, which counts as two evaluations
        (ImplicitInverter(NewtonKrylov(iterations=5)), 11),  # three products with the Jacobian matrix
        (PromptAware(FITTED), 3),
        (RoundTripCorrected(FITTED, rounds=2), 12),  # three inversions, each followed by sampling
        (Midpoint(FITTED), 6),
        (EDICT(), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nfe_per_step(inverter, nfe):
    assert inverter.nfe_per_step == nfe


@pytest.mark.parametrize("steps", [schedule(6), flow_schedule(6)], ids=["noise", "flow"])
@pytest.mark.parametrize("name", sorted(ALL_METHODS))
def test_nfe_per_step_is_the_maximum(name, steps):
    """At most ``nfe_per_step`` evaluations per step and one more are used, and all of them if no sample stops early."""
    inverter = ALL_METHODS[name]()
    try:
        check_schedule(inverter, steps)
    except ValueError:
        pytest.skip("the method does not support the schedule")
    inversion = inverter.invert(torch.randn(2, 4, 8, 8, dtype=torch.float64), function_predictor(wavy, 2), steps)
    nfe = (inversion.nfe + NFE_PER_BACKWARD * inversion.backward).sum(0)
    assert (nfe <= inverter.nfe_per_step * len(steps) + 1).all()
    if inversion.backward.any():
        assert (nfe == inverter.nfe_per_step * len(steps)).all()


@pytest.mark.parametrize("wrap", [lambda inner: inner, PromptAware, RoundTripCorrected])
def test_with_nfe_changes_the_inner_solver_only(wrap):
    expected = replace(FITTED, solver=SafeguardedAnderson(iterations=7))
    assert wrap(FITTED).with_nfe(7) == wrap(expected)


def test_midpoint_halves_the_nfe_of_its_solver():
    inverter = Midpoint(FITTED).with_nfe(6)
    assert inverter.inverter.solver.iterations == 3
    assert inverter.nfe_per_step == 6


@pytest.mark.parametrize(
    ("inverter", "nfe", "message"),
    [
        (EDICT(), 7, "EDICT has a fixed number of network evaluations per step"),
        (UniInv(), 2, "UniInv has a fixed number of network evaluations per step"),
        (PromptAware(EDICT(), reuse=False), 7, "EDICT has a fixed number"),
        (Midpoint(FITTED), 3, "even number of network evaluations per step, got 3"),
        (FITTED, 0, "iterations"),
        (ddim(), 5, "fixed number of network evaluations, 1 per step; choose another method"),
        (PromptAware(ddim()), 2, "fixed number of network evaluations, 1 per step"),
        (accelerated_8(), 2, "fixed number of network evaluations, 8 per step"),
        (accelerated_plus_one(), 1, "fixed number of network evaluations, 1 per step and 1 more"),
        (
            ImplicitInverter(FixedPoint()),
            1,
            "FixedPoint needs at least 2 network evaluations per step, got 1",
        ),
        (ImplicitInverter(Anderson()), 2, "Anderson needs at least 3"),
        (ImplicitInverter(AveragedFixedPoint()), 2, "AveragedFixedPoint needs at least 3"),
        (RoundTripCorrected(ImplicitInverter(RNRIPaper())), 1, "RNRIPaper needs at least 2"),
        (ImplicitInverter(NewtonKrylov()), 4, "NewtonKrylov needs at least 5"),
        (ImplicitInverter(ReNoise()), 9, "ReNoise needs at least 10"),
    ],
)
def test_with_nfe_rejects_unsupported_numbers(inverter, nfe, message):
    with pytest.raises(ValueError, match=message):
        inverter.with_nfe(nfe)


@pytest.mark.parametrize(("inverter", "nfe"), [(ddim(), 1), (accelerated_8(), 8)])
def test_method_with_a_fixed_number_of_evaluations_accepts_that_number(inverter, nfe):
    assert inverter.with_nfe(nfe) is inverter


def test_ddim_always_takes_its_step():
    """A step is not left out because it changes the latent by less than a solver's tolerance."""
    z0 = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    steps = schedule(500).tail(1)
    a, b = steps.coefficients(0)
    predictor = function_predictor(lambda z, _: (1 - 5e-5 - a) / b * z, 1)
    torch.testing.assert_close(ddim().invert(z0, predictor, steps).seed, (1 - 5e-5) * z0, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("inverter", "initial_guess"),
    [
        (ImplicitInverter(FixedPoint()), "plain"),
        (anderson_inverter(), "fitted"),
        (PromptAware(FITTED), "fitted"),
        (EDICT(), None),
    ],
)
def test_initial_guess(inverter, initial_guess):
    assert isinstance(inverter, Inverter)
    assert inverter.initial_guess == initial_guess
