"""AuthPct, the copy-paste measure M_CP and the statistic C_T, compared with values that are computed by hand."""

import math

import pytest
import torch

from experiments.evaluation.novelty import angles, authentic_images, copy_paste_measure, copy_statistic


def unit(*degrees: float) -> torch.Tensor:
    """Return unit vectors of the plane with these angles in degrees."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def test_authentic_images_are_farther_from_a_reference_than_other_real_images():
    references = torch.tensor([[0.0], [10.0]])
    real = torch.cat([references, torch.tensor([[2.0]])])  # the nearest other real image is at 2, and for 10 at 8
    images = torch.tensor([[-1.0], [-2.0], [-3.0], [10.0], [17.9], [18.1]])
    assert authentic_images(images, references, real).tolist() == [False, False, True, False, False, True]


def test_copy_paste_measure_of_copies_and_of_images_like_the_others():
    references, others = unit(0, 80), unit(20)
    measure = copy_paste_measure(unit(0, 20, 10, -20, 80), references, others)
    assert measure.tolist() == pytest.approx([1, -1, 0, 1, 1])


def test_copy_paste_measure_is_a_mean_over_the_other_images():
    measure = copy_paste_measure(unit(10), unit(0), unit(20, 50))
    assert measure.tolist() == pytest.approx([((10 - 10) / 20 + (40 - 10) / 50) / 2])


def test_copy_paste_measure_is_bounded_if_real_images_are_equal():
    measure = copy_paste_measure(unit(0, 90), unit(0), unit(0))
    assert measure.tolist() == [0, 0]


def test_angles_of_equal_and_opposite_vectors_are_exact():
    a = torch.tensor([[3.0, 4.0]])
    assert angles(a, torch.cat([a, -a, 5 * a])).tolist() == [[0, math.pi, 0]]
    small = torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    assert angles(torch.tensor([[1.0, 0.0]]), small).item() == pytest.approx(1e-9)


def test_copy_statistic_is_the_z_score_of_a_mann_whitney_test():
    # U = 0 of 6 pairs; the mean is 3 and the variance 2 * 3 * 6 / 12 = 3
    assert copy_statistic([1, 2], [3, 4, 5]) == pytest.approx(-3 / math.sqrt(3))
    assert copy_statistic([3, 4, 5], [1, 2]) == pytest.approx(3 / math.sqrt(3))
    assert copy_statistic([1, 4], [2, 3]) == 0


def test_copy_statistic_corrects_the_variance_for_ties():
    # 1 < 2, and three equal pairs: U = 1; variance 2 * 2 / 12 * (5 - (27 - 3) / (4 * 3)) = 1
    assert copy_statistic([1, 2], [2, 2]) == pytest.approx(-1)


@pytest.mark.parametrize(("generated", "real"), [([], [1]), ([1], []), ([2, 2], [2])])
def test_copy_statistic_is_none_without_different_distances(generated, real):
    assert copy_statistic(generated, real) is None
