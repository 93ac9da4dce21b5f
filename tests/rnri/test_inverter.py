"""Every inversion method reports its network evaluations per step and returns a copy with another number of them."""

from dataclasses import replace

import pytest

from rnri import (
    FixedPoint,
    ImplicitInverter,
    Inverter,
    PromptAware,
    RNRIPaper,
    RoundTripCorrected,
    SafeguardedAnderson,
    anderson_inverter,
)
from rnri.methods import EDICT, Midpoint, UniInv

FITTED = ImplicitInverter(SafeguardedAnderson(iterations=3), "fitted")


@pytest.mark.parametrize(
    ("inverter", "nfe"),
    [
        (FITTED, 3),
        (ImplicitInverter(RNRIPaper(iterations=2)), 6),  # a backward pass counts as two evaluations
        (PromptAware(FITTED), 3),
        (RoundTripCorrected(FITTED, rounds=2), 12),  # three inversions, each followed by sampling
        (Midpoint(FITTED), 6),
        (EDICT(), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nfe_per_step(inverter, nfe):
    assert inverter.nfe_per_step == nfe


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
    ],
)
def test_with_nfe_rejects_unsupported_numbers(inverter, nfe, message):
    with pytest.raises(ValueError, match=message):
        inverter.with_nfe(nfe)


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
