"""The published energy of a polyline, compared with values computed by hand; its gradient and its symmetry."""

import pytest
import torch

from nao import log_density, path_energy, slerp, spherical_mean
from nao.polyline import descend_centroid, descend_path, spacing_bound
from tests.nao.problems import D, seeds


def test_energy_equals_the_value_computed_by_hand():
    points = torch.tensor([[3.0, 0.0], [3.0, 4.0], [0.0, 4.0]], dtype=torch.float64)
    middles = torch.tensor([(9 + 4) ** 0.5, (2.25 + 16) ** 0.5], dtype=torch.float64)
    cost = -(torch.tensor([4.0, 3.0]) * log_density(middles, D)).sum()
    torch.testing.assert_close(path_energy(points, D, torch.tensor(10.0)), cost)
    # segments of 4 and 3 exceed a spacing of 2.5 by 1.5 and 0.5
    torch.testing.assert_close(path_energy(points, D, torch.tensor(2.5)), cost + 2.0)


def test_gradient_passes_gradcheck_and_is_finite_for_coinciding_points():
    limit = torch.tensor(0.3, dtype=torch.float64)
    for points, d in ((seeds(2)[:, 0, 0].repeat(2, 1), 4), (seeds(5, shape=(3, 1, 1)).flatten(1), 3)):
        assert torch.autograd.gradcheck(lambda p, d=d: path_energy(p, d, limit), points.requires_grad_())
    same = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    path_energy(same, 4, limit).backward()
    assert torch.isfinite(same.grad).all()


def test_gradient_lies_in_the_plane_of_the_ends():
    # gradient descent from slerp therefore stays in this plane
    a, b = seeds(2)
    basis, _ = torch.linalg.qr(torch.stack([a, b]).flatten(1).T)
    full = slerp(a, b, 6).flatten(1).requires_grad_()
    plane = (full.detach() @ basis).requires_grad_()
    for points in (full, plane):
        path_energy(points, D, spacing_bound(full.detach())).backward()
    torch.testing.assert_close(plane.grad @ basis.T, full.grad)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_descent_preserves_the_ends_and_lowers_the_energy(scale):
    x = scale * seeds(3)
    start = slerp(x[0], x[1], 6).flatten(1)
    points, energy = descend_path(x[0], x[1], 6, 100)
    assert torch.equal(points[[0, -1]], x[:2]) and energy <= path_energy(start, D, spacing_bound(start)).item()
    assert path_energy(points.flatten(1), D, spacing_bound(start)).item() == pytest.approx(energy, rel=1e-12)
    untouched, before = descend_centroid(x, 5, 0)
    torch.testing.assert_close(untouched, spherical_mean(x))
    assert descend_centroid(x, 5, 100)[1] < before
