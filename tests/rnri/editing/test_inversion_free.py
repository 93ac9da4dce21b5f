"""FlowEdit and pseudo-guidance: steps computed by hand, equal prompts, unsupported schedules."""

import pytest
import torch

import rnri
from rnri import NoisePredictor, Schedule
from rnri.editing import Editor, FlowEdit, PseudoGuidance
from rnri.methods import EditFriendly
from rnri.methods.noise_maps import diffused, draw_noise
from rnri.models.joint import JointPredictor
from rnri.validation import ConfigError
from tests.pipelines import tiny_flux, tiny_sd3, tiny_stable_diffusion
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


def test_flow_edit_ends_with_steps_of_sampling():
    """share=1 has the steps .9 -> .8 -> .4 -> 0; with n_min=1 the step .4 -> 0 samples with the target alone.

    Steps .9 and .8 add -.1 (5 z_tar - 2 z_src) and -.4 (5 z_tar - 2 z_src). Sampling starts at z + .4 (n - z_0) and
    ends at (1 - .4 * 5) times the start, that is minus the start.
    """
    sigmas = torch.tensor([0.9, 0.8, 0.4, 0], dtype=torch.float64)
    z0 = latents()
    source = linear(2.0)
    target = linear(5.0)
    actual = FlowEdit(share=1.0, n_min=1).edit(z0, source, target, Schedule.flow(1000 * sigmas[:-1], sigmas))
    first, second, third = draw_noise(z0, 3, 0)
    noisy = 0.1 * z0 + 0.9 * first
    z = z0 - 0.1 * (5 * noisy - 2 * noisy)
    noisy = 0.2 * z0 + 0.8 * second
    z = z - 0.4 * (5 * (z + noisy - z0) - 2 * noisy)
    start = z + 0.4 * (third - z0)
    torch.testing.assert_close(actual, start - 0.4 * (5 * start + 0.4))
    assert (source.forward_evaluations, target.forward_evaluations) == (4, 6)


@pytest.mark.parametrize("share, n_min, steps, edit_steps", [(0.5, 2, 4, 2), (0.66, 9, 9, 6)])
def test_flow_edit_needs_steps_of_edits(share, n_min, steps, edit_steps):
    message = rf"^n_min: must be less than {edit_steps}, the number of steps that share={share} selects, got {n_min}\.$"
    with pytest.raises(ConfigError, match=message):
        rnri.check_schedule(FlowEdit(share=share, n_min=n_min), flow_schedule(steps))


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


def test_pseudo_guidance_with_shifted_noise():
    """With noise_shift=1, step 0 of 3 starts at the noise level of step 1, step 1 at that of step 2, step 2 at z_0."""
    z0 = latents()
    source = function_predictor(wavy, 2)
    target = linear(0.3)
    noise_schedule = schedule(3)
    actual = PseudoGuidance(scale=2.0, noise_shift=1).edit(z0, source, target, noise_schedule)
    mean = EditFriendly().sampler(noise_schedule)
    noise = draw_noise(z0, 2, 0)
    levels = [(float(noise_schedule.alpha[k]), float(noise_schedule.sigma[k])) for k in (1, 2)]
    x = [alpha * z0 + sigma * n for (alpha, sigma), n in zip(levels, noise, strict=True)] + [z0, z0]
    z = x[0]
    for i in range(3):
        of_source, of_target = mean(z, source, i)[0], mean(z, target, i)[0]
        z = of_source + 2 * (of_target - of_source) + x[i + 1] - mean(x[i], source, i)[0]
    torch.testing.assert_close(actual, z)


def test_pseudo_guidance_clips_the_last_noise_map_of_each_image():
    """The last noise map is n = z_0 - mu(x, source). A map of norm 2.5 and a maximum of 1 give 0.4 n."""
    z0 = latents()
    source = function_predictor(wavy, 2)
    target = linear(0.3)
    noise_schedule = schedule(1)
    mean = EditFriendly().sampler(noise_schedule)
    x = diffused(z0, noise_schedule, 0)[0]
    of_source, of_target = mean(x, source, 0)[0], mean(x, target, 0)[0]
    maps = z0 - of_source
    norms = maps.flatten(1).norm(dim=1)
    maximum = float(norms.sort().values.mean())  # between the two norms: one map is clipped
    factor = torch.where(norms > maximum, maximum / norms, 1.0)[:, None, None, None]
    assert sorted((factor < 1).flatten().tolist()) == [False, True]
    actual = PseudoGuidance(scale=1.5, max_last_norm=maximum).edit(z0, source, target, noise_schedule)
    torch.testing.assert_close(actual, of_source + 1.5 * (of_target - of_source) + factor * maps)
    unclipped = PseudoGuidance(scale=1.5).edit(z0, source, target, noise_schedule)
    large = PseudoGuidance(scale=1.5, max_last_norm=1e6).edit(z0, source, target, noise_schedule)
    assert torch.equal(unclipped, large)


def test_noise_shift_needs_more_steps():
    with pytest.raises(ConfigError, match=r"^noise_shift: must be less than 3, the number of steps, got 3\.$"):
        rnri.check_schedule(PseudoGuidance(noise_shift=3), schedule(3))


@pytest.mark.parametrize("options", [{"noise_shift": -1}, {"noise_shift": 0.5}, {"max_last_norm": 0.0}])
def test_invalid_options_of_pseudo_guidance(options):
    with pytest.raises(ConfigError, match=f"^{next(iter(options))}: "):
        PseudoGuidance(**options)


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


MODELS = {"sd": tiny_stable_diffusion, "sd3": tiny_sd3, "flux": tiny_flux}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("source_guidance", [1.0, 2.0])
def test_source_and_target_are_one_batch(name, source_guidance):
    model = rnri.LatentDiffusion(MODELS[name]())
    z0 = model.noise(range(2), 0)
    edit_schedule = model.schedule(4)
    method = PseudoGuidance() if name == "sd" else FlowEdit(share=1.0, n_min=1)
    source = model.predictor(["a cat", "a hat"], source_guidance)
    target = model.predictor(["a dog", "a owl"], 3.0)
    calls = []
    network = model.family.network
    handle = network.register_forward_pre_hook(lambda *_: calls.append(1))
    together = method.edit(z0, source, target, edit_schedule)
    handle.remove()
    assert len(calls) == 4
    counts = [(predictor.forward_evaluations, predictor.calls) for predictor in (source, target)]
    assert counts == ([(16, 4), (8, 4)] if name == "sd" else [(6, 3), (8, 4)])
    separate = method.edit(z0, Separate(source), Separate(target), edit_schedule)
    torch.testing.assert_close(together, separate, rtol=1e-3, atol=1e-3)
    assert (together - z0).abs().max() > 1e-2


class Separate(NoisePredictor):
    """A predictor whose denoiser is hidden, so that it is evaluated in calls of its own."""

    def __init__(self, predictor):
        super().__init__(lambda z, t: predictor(z, t))


def test_predictors_of_different_networks_are_separate_calls():
    first, second = (rnri.LatentDiffusion(tiny_stable_diffusion()) for _ in range(2))
    z = first.noise(range(1), 0)
    predictors = first.predictor(["a cat"]), second.predictor(["a dog"])
    actual = JointPredictor(*predictors)(z, z, t=300)
    assert all(torch.equal(each, predictor(z, 300)) for each, predictor in zip(actual, predictors, strict=True))
    with pytest.raises(ValueError, match="z has 1 rows, but the predictor was made for 2 prompts"):
        JointPredictor(first.predictor(["a cat"] * 2), predictors[0])(z, z, t=300)


def test_flow_edit_requires_flow_matching():
    with pytest.raises(ValueError, match="FlowEdit needs a flow-matching model"):
        rnri.check_schedule(FlowEdit(), schedule(4))
    assert FlowEdit().guidances(2.0) == (3.5, 13.5) and PseudoGuidance().guidances(2.0) == (2.0, 2.0)
