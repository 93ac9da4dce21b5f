"""Every method in configs/method inverts and reconstructs held-out images with the model emoji."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.data.backgrounds import no_augmentation
from experiments.data.emoji import EmojiImages
from rnri import ImplicitInverter, LatentDiffusion, RoundTripCorrected, check_schedule
from rnri.methods import ALL_METHODS, FlowOpt, UniInv
from tests.pipelines import tiny_stable_diffusion

FLOW = sorted(name for name, method in ALL_METHODS.items() if method.requires == "flow")
METHODS = sorted(set(ALL_METHODS) - set(FLOW))
EXACT = {"edict", "bdia", "obelm", "direct", "edit_friendly_exact", "ledits", "rex"}
# Than DDIM inversion: the published code in Euler's coordinates, and noise instead of two of five inversion steps.
HIGHER_ERROR = {"rnri_sign_euler", "rnri_ancestral", "taba"}
LIKE_DDIM = {"ddim", "null_text", "negative_prompt"}  # equal DDIM inversion without guidance


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion.from_pretrained("assets/models/emoji", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def errors(model):
    """Return, by method, the latent MSE ``[1]`` of a reconstruction in five steps, its inversion and its inverter."""
    dataset = EmojiImages("assets/emoji", ["reference"])
    rows = dataset.rows[5:6]
    images = torch.stack([torch.from_numpy(dataset.render(row["image_id"], no_augmentation("white"))) for row in rows])
    prompts = [f"a drawing of {row['phrase']} on a white background" for row in rows]
    z0 = model.encode(images.float() / 255)
    schedule = model.schedule(5)
    results = {}
    for name in METHODS:
        inverter = instantiate(OmegaConf.load(f"configs/method/{name}.yaml"))
        inversion = inverter.invert(z0, model.predictor(prompts), schedule)
        reconstruction = inverter.reconstruct(inversion, model.predictor(prompts), schedule)
        results[name] = (reconstruction - z0).square().flatten(1).mean(1), inversion, inverter
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_reconstruction_error(errors, name):
    error, inversion, inverter = errors[name]
    ddim = errors["ddim"][0]
    assert inversion.seed_only == inverter.seed_only
    if name in EXACT:
        assert (error < 1e-6).all() and inversion.residual_converged.all()
    elif name in LIKE_DDIM:
        torch.testing.assert_close(error, ddim)
    elif name == "edit_friendly":  # exact except for the last step
        assert ((error > 1e-6) & (error < ddim)).all() and not inversion.residual_converged.any()
    elif name == "renoise_ancestral":  # the noises are corrected; the schedule adds noise in every step
        assert (error < 1e-6).all()
    elif name == "sdedit":
        assert (error > 2 * ddim).all()  # it generates another image
    elif name in HIGHER_ERROR:
        assert ((error > ddim) & (error < 5 * ddim)).all()
    else:
        assert isinstance(inverter, RoundTripCorrected | ImplicitInverter | UniInv | FlowOpt)
        assert (error <= 1.01 * ddim).all()


@pytest.mark.slow
def test_default_beats_implicit_methods_of_equal_cost(errors):
    default_error, inversion, _ = errors["accelerated"]
    cost = inversion.nfe.double().mean()
    for name, (error, other, inverter) in errors.items():
        other_cost = (other.nfe + other.backward).double().mean()
        if name != "accelerated" and isinstance(inverter, ImplicitInverter) and other_cost <= cost + 0.01:
            assert (default_error < error).all(), name


@pytest.fixture(scope="module")
def tiny_model():
    return LatentDiffusion(tiny_stable_diffusion())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_guided_inversion_under_no_grad(tiny_model, name):
    """Lightning's loops disable gradients, too."""
    z0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    inverter = instantiate(OmegaConf.load(f"configs/method/{name}.yaml"))
    predictor = tiny_model.predictor(["x"], 3.0)
    with torch.no_grad():
        inversion = inverter.invert(z0, predictor, tiny_model.schedule(3))  # one step more than TABA replaces by noise
    assert inversion.seed.isfinite().all() and not inversion.seed.requires_grad


@pytest.mark.parametrize("name", FLOW)
def test_flow_methods_reject_noise_prediction_models(model, name):
    inverter = instantiate(OmegaConf.load(f"configs/method/{name}.yaml"))
    with pytest.raises(ValueError, match="needs a flow-matching model"):
        check_schedule(inverter, model.schedule(2))
