"""FlowEdit and pseudo-guidance: steps computed by hand, equal prompts, unsupported schedules."""

import pytest
import torch

import rnri
from rnri import NoisePredictor, Schedule
from rnri.editing import Editor, FlowEdit, PseudoGuidance
from rnri.methods import EditFriendly
from rnri.methods.noise_maps import diffused, draw_noise
from tests.problems import flow_schedule, function_predictor, schedule, wavy


class Linear:
    """The denoiser ``slope z + t / 1000``."""

    def __init__(self, slope):
        self.slope = slope

    def __call__(self, z, t):
        return self.slope * z + t / 1000

    def select(self, rows):
        return self

    def unguided(self):
        return self


def linear(slope):
    return NoisePredictor(Linear(slope))


def latents(count=2):
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_flow_edit_steps():
    sigmas = torch.tensor([0.9, 0.8, 0.4, 0], dtype=torch.float64)
    z0 = latents()
    source = linear(2.0)
    target = linear(5.0)
    actual = FlowEdit(share=0.66).edit(z0, source, target, Schedule.flow(1000 * sigmas[:-1], sigmas))
    first, second = draw_noise(z0, 2, 0)
    noisy = 0.2 * z0 + 0.8 * first  # share=0.66 omits the noisiest of three steps
    z = z0 - 0.4 * (5 * noisy - 2 * noisy)
    noisy = 0.6 * z0 + 0.4 * second
    z = z - 0.4 * (5 * (z + noisy - z0) - 2 * noisy)
    torch.testing.assert_close(actual, z)
    assert (source.forward_evaluations, target.forward_evaluations) == (4, 4)


def test_flow_edit_averages_over_noise():
    sigmas = torch.tensor([0.5, 0], dtype=torch.float64)
    z0 = latents()
    actual = FlowEdit(share=1.0, average=3).edit(
        z0, linear(1.0), linear(2.0), Schedule.flow(1000 * sigmas[:-1], sigmas)
    )
    mean = draw_noise(z0, 3, 0).mean(0)
    torch.testing.assert_close(actual, z0 - 0.5 * (0.5 * z0 + 0.5 * mean))


def test_pseudo_guidance_steps():
    z0 = latents()
    source = function_predictor(wavy, 2)
    target = linear(0.3)
    noise_schedule = schedule(2)
    actual = PseudoGuidance(scale=1.5).edit(z0, source, target, noise_schedule)
    mean = EditFriendly().sampler(noise_schedule)
    first, second = diffused(z0, noise_schedule, 0)
    change = mean(first, target, 0)[0] - mean(first, source, 0)[0]
    z = second + 1.5 * change
    change = mean(z, target, 1)[0] - mean(z, source, 1)[0]
    z = z0 + 1.5 * change + mean(z, source, 1)[0] - mean(second, source, 1)[0]
    torch.testing.assert_close(actual, z)


def test_pseudo_guidance_of_scale_one_is_edit_friendly():
    z0 = latents()
    source = function_predictor(wavy, 2)
    target = linear(0.3)
    noise_schedule = schedule(5)
    method = EditFriendly(keep_last_map=True)
    expected = method.reconstruct(method.invert(z0, source, noise_schedule), target, noise_schedule)
    torch.testing.assert_close(PseudoGuidance(scale=1.0).edit(z0, source, target, noise_schedule), expected)


@pytest.mark.parametrize(
    "method, steps", [(FlowEdit(share=1.0), flow_schedule(5)), (PseudoGuidance(scale=3.0), schedule(5))], ids=str
)
def test_equal_prompts_return_the_image(method, steps):
    z0 = latents()
    predictor = function_predictor(wavy, 2)
    assert isinstance(method, Editor)
    torch.testing.assert_close(method.edit(z0, predictor, predictor, steps), z0)


def test_edits_of_a_batch_are_independent():
    z0 = latents(3)
    for method, steps in ((FlowEdit(), flow_schedule(4)), (PseudoGuidance(), schedule(4))):
        batch = method.edit(z0, linear(0.2), linear(0.3), steps)
        assert torch.equal(batch[1:2], method.edit(z0[1:2], linear(0.2), linear(0.3), steps))


def test_flow_edit_requires_flow_matching():
    with pytest.raises(ValueError, match="FlowEdit needs a flow-matching model"):
        rnri.check_schedule(FlowEdit(), schedule(4))
    assert FlowEdit().guidances(2.0) == (3.5, 13.5) and PseudoGuidance().guidances(2.0) == (2.0, 2.0)
