"""Statistics of seeds, compared with fields whose statistics are known exactly."""

import math

import pytest
import torch

from experiments.evaluation.registry import INVERSION
from experiments.evaluation.seed_statistics import (
    area_errors,
    normality,
    patch_correlation,
    plain_areas,
    straightness,
)
from rnri.models.schedule import Schedule


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def correlated(correlation: float, seeds: int, side: int = 2) -> torch.Tensor:
    """Return standard normal seeds whose components have ``correlation`` within each patch, and 0 between patches."""
    shared = noise(seeds, 4, 32, 32).repeat_interleave(side, 2).repeat_interleave(side, 3)
    independent = torch.randn(shared.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return correlation**0.5 * shared + (1 - correlation) ** 0.5 * independent


def test_p_values_of_white_noise_are_uniform():
    p_values = normality(noise(200, 4, 16, 16))
    rejected = (p_values < 0.05).double().mean()
    assert 0.01 < rejected < 0.1  # 5 % expected, standard deviation 1.5 %
    assert abs(p_values.mean() - 0.5) < 0.08


@pytest.mark.parametrize(
    "seed", [torch.ones(1, 4, 16, 16), 1.2 * noise(1, 4, 64, 64), noise(1, 4, 64, 64) + 0.1, noise(1, 4, 64, 64).sign()]
)
def test_other_distributions_are_rejected(seed):
    assert normality(seed) < 1e-6


def test_p_value_is_the_distribution_of_kolmogorov_for_one_component():
    value = 0.3
    cdf = 0.5 * (1 + math.erf(value / 2**0.5))
    distance = max(cdf, 1 - cdf)
    assert normality(torch.full((1, 1, 1, 1), value)).item() == pytest.approx(2 * (1 - distance))


@pytest.mark.parametrize(("correlation", "tolerance"), [(0.0, 0.03), (0.3, 0.05), (0.9, 0.03), (1.0, 1e-12)])
def test_patch_correlation_equals_the_correlation_of_the_field(correlation, tolerance):  # 0: standard deviation 0.006
    assert patch_correlation(correlated(correlation, seeds=4)).numpy() == pytest.approx(correlation, abs=tolerance)


def test_patch_correlation_of_constant_alternating_and_zero_seeds():
    constant = torch.full((1, 2, 4, 4), 3.0)
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, 2, 2, 2)
    assert patch_correlation(constant).item() == pytest.approx(1.0)
    assert patch_correlation(checkerboard).item() == pytest.approx(-1 / 3)  # two of six pairs are equal
    assert patch_correlation(torch.zeros(1, 2, 4, 4)).isnan().all()


def test_incomplete_patches_are_left_out():
    seeds = correlated(1.0, seeds=1)
    padded = torch.nn.functional.pad(seeds, (0, 1, 0, 1), value=100.0)
    assert patch_correlation(padded).item() == pytest.approx(1.0)
    assert patch_correlation(torch.ones(1, 4, 1, 8)).isnan().all()


def test_constant_half_of_an_image_is_plain():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = torch.tensor([0.0, 1.0]).repeat(2)  # stripes
    mask = plain_areas(image, (4, 4))
    assert mask.tolist() == [[[True, True, False, False]] * 4]
    assert plain_areas(image * 0.04, (4, 4)).all()  # differences of 0.04 to one of two neighbors: 0.02 on average
    assert not plain_areas(torch.full_like(image, torch.nan), (4, 4)).any()


def test_texture_in_one_channel_is_enough():
    image = torch.zeros(1, 3, 4, 4)
    image[0, 1, 1, 1] = 1.0
    assert plain_areas(image, (2, 2)).tolist() == [[[False, True], [True, True]]]


def test_area_errors():
    errors = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]).repeat(3, 1, 1)
    errors[2, 0, 0] = torch.nan
    area = torch.tensor([[[True, False], [True, False]], [[False] * 2] * 2, [[True, False], [True, False]]])
    means = area_errors(errors, area)
    assert means[0] == 2.0 and means[1].isnan() and means[2].isinf()
    assert area_errors(errors, ~area)[2] == 4.0


def test_mean_of_areas_leaves_out_images_without_the_area_but_not_diverged_images():
    rows = [{"latent_mse_plain": value} for value in (1.0, math.nan, 3.0)]
    assert INVERSION.summarize(rows, seed=0)["latent_mse_plain"] == 2.0
    assert math.isinf(INVERSION.summarize([*rows, {"latent_mse_plain": math.inf}], seed=0)["latent_mse_plain"])
    assert math.isnan(INVERSION.summarize(rows[1:2], seed=0)["latent_mse_plain"])


SCHEDULES = {
    "flow": Schedule.flow(torch.tensor([1000.0, 600.0, 200.0]).double(), torch.tensor([1.0, 0.6, 0.2, 0.0]).double()),
    "diffusion": Schedule.diffusion(
        torch.tensor([900, 500, 100]), torch.tensor([0.1, 0.4, 0.8]).double(), torch.tensor([0.4, 0.8, 0.99]).double()
    ),
}


def inverted(schedule: Schedule, predictions: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the latents of the trajectory whose steps, from clean to noisy, have these predictions."""
    latents = [noise(*predictions[0].shape)]
    for k, prediction in enumerate(predictions):
        a, b = schedule.coefficients(len(schedule) - 1 - k)
        latents.append(a * latents[-1] + b * prediction)
    return latents


@pytest.mark.parametrize("name", SCHEDULES)
def test_trajectory_with_equal_predictions_is_straight(name):
    prediction = noise(2, 4, 3, 3)
    latents = inverted(SCHEDULES[name], [prediction] * 3)
    torch.testing.assert_close(straightness(latents, SCHEDULES[name]), torch.zeros(2).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_straightness_sums_the_changes_of_the_prediction(name):
    first = noise(2, 4, 3, 3)
    change = torch.zeros_like(first)
    change[0] = 0.5  # norm 0.5 sqrt(d)
    latents = inverted(SCHEDULES[name], [first, first + change, first - change])
    torch.testing.assert_close(straightness(latents, SCHEDULES[name]), torch.tensor([0.5 + 1.0, 0.0]).double())


def test_straightness_of_a_trajectory_without_all_latents_is_unknown():
    assert straightness([noise(2, 4, 3, 3)] * 2, SCHEDULES["flow"]).isnan().all()
