"""The forms in which a step's equation can be iterated: one root and one residual, and other ways there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rnri import FixedPoint, ImplicitInverter, NoisePredictor, SafeguardedAnderson, Schedule, anderson_inverter, sample
from rnri.solvers.implicit import ImplicitStep, mean_absolute
from rnri.solvers.parameterization import relaxation_factor
from tests.problems import flow_schedule, gaussian, schedule, scheduler, velocity

KINDS = {"epsilon": (gaussian, schedule(20)), "flow": (velocity, flow_schedule(20))}
FORMS = ("native", "epsilon", "flow", "sample", "relaxed")


def evaluated(kind: str):
    """A step's equation, a latent, and what the network says there as noise, velocity and clean latent."""
    make, steps = KINDS[kind]
    denoiser, z0 = make(3)
    problem = ImplicitStep.of(z0, NoisePredictor(denoiser), steps, 8)
    z = z0 + 0.3
    alpha, sigma, *_ = problem.levels
    clean, noise = steps.clean_and_noise(8, z, denoiser(z, steps.timestep(8)))
    return problem, z, {"epsilon": noise, "sample": clean, "flow": noise - clean}, (alpha, sigma)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parameterization", FORMS[1:4])
def test_a_form_carries_its_prediction_to_the_noisy_end(kind, parameterization):
    problem, z, said, (alpha, sigma) = evaluated(kind)
    _, _, alpha_s, sigma_s = problem.levels
    z_s = problem.z_s
    by_hand = {  # z_t = alpha_t x0 + sigma_t n, with the one prediction and z_s telling the other
        "epsilon": alpha * (z_s - sigma_s * said["epsilon"]) / alpha_s + sigma * said["epsilon"],
        "sample": alpha * said["sample"] + sigma * (z_s - alpha_s * said["sample"]) / sigma_s,
        "flow": (alpha + sigma) * (z_s - sigma_s * said["flow"]) / (alpha_s + sigma_s)
        + sigma * said["flow"],
    }[parameterization]
    omega = relaxation_factor(parameterization, KINDS[kind][1], 8)
    torch.testing.assert_close(replace(problem, omega=omega).relaxed(z, problem(z)), by_hand)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parameterization", FORMS)
@pytest.mark.parametrize("solver", [FixedPoint(200, 1e-9), SafeguardedAnderson(60, 1e-9)], ids=["plain", "ours"])
def test_every_form_has_the_equations_root_and_residual(kind, parameterization, solver):
    make, steps = KINDS[kind]
    if parameterization == "sample" and isinstance(solver, FixedPoint):
        steps = steps.head(len(steps) - 2)  # near the clean end it diverges by itself
    denoiser, z0 = make(3)
    predictor, path = NoisePredictor(denoiser), []
    found = ImplicitInverter(solver, "fitted", parameterization=parameterization).invert(z0, predictor, steps, lambda _, z: path.append(z))
    assert found.converged.all()
    torch.testing.assert_close(sample(found.seed, predictor, steps), z0, atol=1e-6, rtol=0)
    for k, (z_s, z) in enumerate(zip([z0, *path], path, strict=False)):
        problem = ImplicitStep.of(z_s, predictor, steps, len(steps) - 1 - k)
        torch.testing.assert_close(found.residuals[k], mean_absolute(z - problem(z)), atol=1e-15, rtol=1e-6)


def test_a_form_that_cannot_be_iterated_is_the_own_one():
    flow, clean_end = flow_schedule(5), Schedule.from_scheduler(scheduler(set_alpha_to_one=True), 5)
    assert flow.alpha_sigma(0)[0] == 0 and relaxation_factor("epsilon", flow, 0) == 1  # nothing but noise: it would never move
    assert relaxation_factor("relaxed", flow_schedule(1), 0) == 1  # from nothing but noise to none: no constant contracts
    assert clean_end.alpha_sigma(4)[3] == 0 and relaxation_factor("sample", clean_end, 4) == 1  # no noise left: it is known
    assert (
        relaxation_factor("native", clean_end, 2) == relaxation_factor("epsilon", clean_end, 2) == 1 != relaxation_factor("sample", clean_end, 2)
    )


def test_the_form_changes_the_way_there():
    denoiser, z0 = gaussian(3)
    seeds = [
        ImplicitInverter(FixedPoint(1, 0), parameterization=parameterization).invert(z0, NoisePredictor(denoiser), schedule(10)).seed
        for parameterization in ("native", "flow", "relaxed")
    ]
    exact = denoiser.seed(z0, schedule(10))
    errors = [(seed - exact).square().mean().item() for seed in seeds]
    assert errors[1] < errors[0] and errors[2] < errors[0]


def test_a_sample_is_alone_in_every_form():
    denoiser, z0 = gaussian(3)
    for parameterization in FORMS:
        inverter = replace(anderson_inverter(3), parameterization=parameterization)
        together = inverter.invert(z0, NoisePredictor(denoiser), schedule(10)).seed
        rows = torch.tensor([1])
        alone = inverter.invert(z0[rows], NoisePredictor(denoiser.select(rows)), schedule(10)).seed
        torch.testing.assert_close(together[rows], alone, atol=1e-12, rtol=0)


def test_an_unknown_form_is_said():
    with pytest.raises(ValueError, match="form='epsilon'"):
        ImplicitInverter(FixedPoint(), parameterization="epsilon")
