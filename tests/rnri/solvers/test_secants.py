"""Secants: differences of previous steps, recorded and used as computed by hand, and where they improve the result."""

from dataclasses import replace

import pytest
import torch

from rnri import ImplicitInverter, SafeguardedAnderson, anderson_inverter
from rnri.solvers.anderson import DERIVATIVE_DRIFT
from rnri.solvers.secants import SecantRecorder, Secants
from tests.problems import function_predictor, schedule, wavy
from tests.rnri.solvers.test_solvers import Z_S, problem, swapped, two


def latents(*rows):
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), 1, 1, 2)


def test_recorded_differences_by_hand():
    recorder = SecantRecorder.start(Secants.zeros(latents([0, 0], [0, 0]), 2))
    second = recorder.select(torch.tensor([1]))
    recorder.record(latents([0, 0], [0, 0]), latents([1, 1], [0, 0]))
    assert not recorder.secants.dz.any() and not recorder.secants.dy.any()  # one evaluation has no difference
    recorder.record(latents([3, 4], [0, 2]), latents([11, 1], [6, 0]))
    second.record(latents([8, 2]), latents([6, 4]))
    second.record(latents([8, 2]), latents([9, 9]))  # the same latent again: no direction
    second.record(latents([9, 2]), latents([torch.inf, 0]))  # not finite: skipped
    dz = torch.tensor([[[0, 0], [0.6, 0.8]], [[0, 1], [1, 0]]], dtype=torch.float64)
    dy = torch.tensor([[[0, 0], [2, 0]], [[3, 0], [0, 0.5]]], dtype=torch.float64)
    torch.testing.assert_close(recorder.secants.dz, dz)
    torch.testing.assert_close(recorder.secants.dy, dy)


def test_first_iterate_uses_previous_differences():
    """b = 0.5, y along x is (0, 0.2): df = (0, 0.1), dr = (-1, 0.1); at z_s r = (-0.6, 0.5), f = (0.4, -1.5)."""
    previous = Secants(Z_S.new_tensor([[[1.0, 0.0]]]), Z_S.new_tensor([[[0.0, 0.2]]]))
    gamma = (0.6 + 0.05) / (1.01 + (DERIVATIVE_DRIFT * 0.5**2) ** 2)
    solution = SafeguardedAnderson(1, 0)(problem(swapped, Z_S).with_secants(previous), Z_S)
    torch.testing.assert_close(solution.z, two(0.4, -1.5 - 0.1 * gamma))
    without = SafeguardedAnderson(1, 0, carried=0)(problem(swapped, Z_S).with_secants(previous), Z_S)
    torch.testing.assert_close(without.z, two(0.4, -1.5))


def test_new_differences_replace_carried_ones():
    """A step with ``memory`` new differences converges in spite of wrong ones from the previous step."""
    z_s = torch.randn(2, 1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wrong = Secants(torch.full((2, 2, 6), 6**-0.5).double(), torch.full((2, 2, 6), 40.0).double())
    solution = SafeguardedAnderson(60, 1e-12, memory=2)(problem(wavy, z_s).with_secants(wrong), z_s)
    assert solution.converged.all()


@pytest.mark.parametrize(
    ("b", "predicts", "short"), [(0.95, "epsilon", True), (0.8, "epsilon", False), (0.95, "flow", False)]
)
def test_long_noise_steps_use_two_differences(b, predicts, short):
    z_s = torch.randn(2, 1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = replace(problem(wavy, z_s, b=b), predicts=predicts)
    results = {}
    for memory in (4, 2):
        solver = SafeguardedAnderson(6, 0, memory=memory)
        results[memory] = solver(step.with_secants(Secants.zeros(z_s, 2)), z_s).z
    assert torch.equal(results[4], results[2]) == short


@pytest.mark.parametrize("nfe", [2, 3])
def test_carried_differences_reduce_errors_of_alternating_maps(nfe):
    """The map has eigenvalues near -1, and the sampler amplifies its residual."""

    def steep(z, number):
        pull = z.flatten(1).mean(1).view(-1, 1, 1, 1)
        return 0.5 * torch.sin(2 * z) - (4 + number) * pull

    generator = torch.Generator().manual_seed(0)
    z0 = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=generator) + 0.5
    steps = schedule(10)
    errors = {}
    for carried in (0, 2):
        inverter = ImplicitInverter(SafeguardedAnderson(nfe, 1e-9, carried=carried), "fitted", "by_difficulty")
        predictor = function_predictor(steep, 3)
        inversion = inverter.invert(z0, predictor, steps)
        assert (inversion.nfe.sum(0) <= 10 * nfe).all()
        errors[carried] = (inverter.reconstruct(inversion, predictor, steps) - z0).square().mean((1, 2, 3))
    assert (errors[2] < errors[0] / 4).all()


def test_default_inverter_carries_differences():
    assert anderson_inverter().solver.carried > 0
