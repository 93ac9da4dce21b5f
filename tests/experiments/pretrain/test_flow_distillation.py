"""Velocities from a teacher that predicts noise, compared with closed forms."""

import pytest
import torch

from experiments.pretrain.denoiser import build_scheduler
from experiments.pretrain.flow_distillation import VelocityTeacher


class ExactNoise(torch.nn.Module):
    """The exact noise prediction for standard normal data, E[n | z] = sqrt(1 - abar) z."""

    def __init__(self, alpha_bar):
        super().__init__()
        self.alpha_bar, self.layer = alpha_bar, torch.nn.Identity()

    def forward(self, z, t, _):
        self.layer(z)
        return type("Output", (), {"sample": (1 - self.alpha_bar[t]).sqrt().view(-1, 1, 1, 1) * z})


def test_teacher_velocities_equal_the_closed_form():
    """On standard normal data E[n - x0 | x] = (2 sigma - 1) / ((1 - sigma)^2 + sigma^2) x, in closed form."""
    scheduler = build_scheduler()
    pipeline = type("Pipeline", (), {"unet": ExactNoise(scheduler.alphas_cumprod), "scheduler": scheduler})
    teacher = VelocityTeacher(pipeline, torch.zeros(1, 1, 1), "layer")
    torch.manual_seed(0)
    z0 = torch.randn(4, 4, 64, 64)
    requested = torch.tensor([0.03, 0.4, 0.7, 0.9])
    x, sigma, velocity, features = teacher(z0, requested, torch.zeros(4, dtype=torch.long))
    assert (requested - sigma).abs().max() < 0.01 and features.shape == (4, 64 * 64, 4)
    factor = ((2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2)).view(-1, 1, 1, 1)
    torch.testing.assert_close(velocity, factor * x, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(x.var((1, 2, 3)), (1 - sigma) ** 2 + sigma**2, atol=0.03, rtol=0.03)


def test_mean_and_variance_beyond_the_last_timestep():
    scheduler = build_scheduler()
    pipeline = type("Pipeline", (), {"unet": ExactNoise(scheduler.alphas_cumprod), "scheduler": scheduler})
    teacher = VelocityTeacher(pipeline, torch.zeros(1, 1, 1), "layer")
    torch.manual_seed(0)
    requested = torch.tensor([0.97])
    x, sigma, velocity, _ = teacher(torch.randn(1, 4, 256, 256), requested, torch.zeros(1, dtype=torch.long))
    assert sigma.item() == pytest.approx(0.97)
    assert x.var().item() == pytest.approx(0.03**2 + 0.97**2, rel=0.02)
    slope = ((velocity * x).mean() / (x * x).mean()).item()  # of the student's regression
    assert slope == pytest.approx(0.94 / (0.03**2 + 0.97**2), rel=0.02)
