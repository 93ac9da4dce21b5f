"""Parameterizations of the fixed-point iteration: the same root and residual, different iterates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rnri import FixedPoint, ImplicitInverter, NoisePredictor, SafeguardedAnderson, Schedule, anderson_inverter, sample
from rnri.solvers.implicit import ImplicitStep, mean_absolute
from rnri.solvers.parameterization import relaxation_factor
from tests.problems import flow_schedule, gaussian, schedule, scheduler, velocity

KINDS = {"epsilon": (gaussian, schedule(20)), "flow": (velocity, flow_schedule(20))}
PARAMETERIZATIONS = ("native", "epsilon", "flow", "sample", "relaxed")


def evaluate(kind: str):
    """Return a step's equation, a latent, and the network's prediction there in each parameterization."""
    make, steps = KINDS[kind]
    denoiser, z0 = make(3)
    problem = ImplicitStep.from_schedule(z0, NoisePredictor(denoiser), steps, 8)
    z = z0 + 0.3
    clean, noise = steps.clean_and_noise(8, z, denoiser(z, steps.timestep(8)))
    return problem, z, {"epsilon": noise, "sample": clean, "flow": noise - clean}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parameterization", ["epsilon", "flow", "sample"])
def test_iteration_keeps_its_prediction_constant(kind, parameterization):
    problem, z, predictions = evaluate(kind)
    prior = problem.prior
    alpha, sigma, alpha_s, sigma_s = prior.alpha, prior.sigma, prior.alpha_s, prior.sigma_s
    prediction = predictions[parameterization]
    expected = {  # z_t = alpha_t x_0 + sigma_t n; z_s and the prediction determine x_0 and n
        "epsilon": alpha * (problem.z_s - sigma_s * prediction) / alpha_s + sigma * prediction,
        "sample": alpha * prediction + sigma * (problem.z_s - alpha_s * prediction) / sigma_s,
        "flow": (alpha + sigma) * (problem.z_s - sigma_s * prediction) / (alpha_s + sigma_s) + sigma * prediction,
    }[parameterization]
    relaxation = relaxation_factor(parameterization, KINDS[kind][1], 8)
    torch.testing.assert_close(replace(problem, relaxation=relaxation).relaxed(z, problem(z)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("solver", [FixedPoint(200, 1e-9), SafeguardedAnderson(60, 1e-9)], ids=["fixed", "anderson"])
def test_root_and_residual_do_not_depend_on_parameterization(kind, parameterization, solver):
    make, steps = KINDS[kind]
    if parameterization == "sample" and isinstance(solver, FixedPoint):
        steps = steps.head(len(steps) - 2)  # it diverges near the clean end
    denoiser, z0 = make(3)
    predictor = NoisePredictor(denoiser)
    path = []
    inverter = ImplicitInverter(solver, "fitted", parameterization=parameterization)
    inversion = inverter.invert(z0, predictor, steps, lambda _, z: path.append(z))
    assert inversion.residual_converged.all()
    torch.testing.assert_close(sample(inversion.seed, predictor, steps), z0, atol=1e-6, rtol=0)
    for k, (z_s, z) in enumerate(zip([z0, *path], path, strict=False)):
        problem = ImplicitStep.from_schedule(z_s, predictor, steps, len(steps) - 1 - k)
        torch.testing.assert_close(inversion.residuals[k], mean_absolute(z - problem(z)), atol=1e-15, rtol=1e-6)


def test_degenerate_steps_use_the_native_iteration():
    flow = flow_schedule(5)
    clean_end = Schedule.from_scheduler(scheduler(set_alpha_to_one=True), 5)
    assert flow.alpha_sigma(0)[0] == 0
    assert relaxation_factor("epsilon", flow, 0) == 1  # pure noise: it would never move
    assert relaxation_factor("relaxed", flow_schedule(1), 0) == 1  # from pure noise to none: no constant contracts
    assert clean_end.alpha_sigma(4)[3] == 0
    assert relaxation_factor("sample", clean_end, 4) == 1  # no noise: the clean latent is known


def test_native_is_the_parameterization_of_the_network():
    steps = Schedule.from_scheduler(scheduler(set_alpha_to_one=True), 5)
    assert relaxation_factor("native", steps, 2) == 1
    assert relaxation_factor("epsilon", steps, 2) == 1
    assert relaxation_factor("sample", steps, 2) != 1


def test_flow_and_relaxed_converge_faster_on_gaussian_data():
    denoiser, z0 = gaussian(3)
    exact = denoiser.seed(z0, schedule(10))
    errors = {}
    for parameterization in ("native", "flow", "relaxed"):
        inverter = ImplicitInverter(FixedPoint(1, 0), parameterization=parameterization)
        seed = inverter.invert(z0, NoisePredictor(denoiser), schedule(10)).seed
        errors[parameterization] = (seed - exact).square().mean().item()
    assert errors["flow"] < errors["native"]
    assert errors["relaxed"] < errors["native"]


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_result_does_not_depend_on_the_batch(parameterization):
    denoiser, z0 = gaussian(3)
    inverter = anderson_inverter(3, parameterization=parameterization)
    batched = inverter.invert(z0, NoisePredictor(denoiser), schedule(10)).seed
    rows = torch.tensor([1])
    alone = inverter.invert(z0[rows], NoisePredictor(denoiser.select(rows)), schedule(10)).seed
    torch.testing.assert_close(batched[rows], alone, atol=1e-12, rtol=0)


def test_unknown_parameterization_is_rejected():
    with pytest.raises(ValueError, match=r"parameterization: .*, got 'v'"):
        ImplicitInverter(FixedPoint(), parameterization="v")
