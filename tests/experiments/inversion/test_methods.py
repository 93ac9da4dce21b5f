"""Every method of configs/method on the embedded model: held-out drawings, inverted and reconstructed."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.data.backgrounds import no_augmentation
from experiments.data.emoji import EmojiImages
from rnri import ImplicitInverter, LatentDiffusion, RoundTripCorrected, check_schedule
from rnri.methods import UniInv

FLOW = {
    "fireflow",
    "fireflow_seed",
    "midpoint",
    "midpoint_seed",
    "rf_inversion",
    "rf_solver",
}  # which need a flow-matching model
EDITORS = {"flow_edit", "pseudo_guidance"}  # which edit without an inversion
METHODS = sorted({path.stem for path in Path("configs/method").glob("*.yaml")} - FLOW - EDITORS)
EXACT = {"edict", "bdia", "obelm", "direct", "edit_friendly_exact", "ledits"}
LIKE_DDIM = {"ddim", "null_text", "negative_prompt"}  # without guidance there is nothing to optimize or to cancel


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion.from_pretrained("assets/models/emoji", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def errors(model):
    """Latent MSE ``[2]`` of each method's reconstruction in five steps, and its inversion."""
    drawings = EmojiImages("assets/emoji", ["reference"])
    chosen = drawings.rows[5:300:200]
    images = torch.stack([torch.from_numpy(drawings.render(row["image_id"], no_augmentation("white"))) for row in chosen])
    prompts = [f"a drawing of {row['phrase']} on a white background" for row in chosen]
    z0, schedule, found = model.encode(images.float() / 255), model.schedule(5), {}
    for name in METHODS:
        inverter = instantiate(OmegaConf.load(f"configs/method/{name}.yaml"))
        inversion = inverter.invert(z0, model.predictor(prompts), schedule)
        again = inverter.reconstruct(inversion, model.predictor(prompts), schedule)
        found[name] = (again - z0).square().flatten(1).mean(1), inversion, inverter
    return found


@pytest.mark.parametrize("name", METHODS)
def test_each_reconstructs_as_well_as_it_says(errors, name):
    error, inversion, inverter = errors[name]
    ddim = errors["ddim"][0]
    assert inversion.seed_only == inverter.seed_only
    if name in EXACT:
        assert (error < 1e-6).all() and inversion.converged.all()
    elif name in LIKE_DDIM:
        torch.testing.assert_close(error, ddim)
    elif name == "edit_friendly":  # but for the map of its last step
        assert ((error > 1e-6) & (error < ddim)).all() and not inversion.converged.any()
    elif name == "sdedit":
        assert (error > 2 * ddim).all()  # it makes another image
    else:
        assert isinstance(inverter, RoundTripCorrected | ImplicitInverter | UniInv) and (error <= 1.01 * ddim).all()


def test_the_default_is_ahead_of_all_that_cost_as_much(errors):
    ours, inversion, _ = errors["accelerated"]
    cost = inversion.nfe.double().mean()
    for name, (error, other, inverter) in errors.items():
        spent = (other.nfe + other.backward).double().mean()
        if name != "accelerated" and isinstance(inverter, ImplicitInverter) and spent <= cost + 0.01:
            assert (ours < error).all(), name


@pytest.mark.parametrize("name", METHODS)
def test_each_works_with_guidance_where_gradients_are_switched_off(model, name):
    """As in Lightning's loops."""
    z0 = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    inverter, predictor = instantiate(OmegaConf.load(f"configs/method/{name}.yaml")), model.predictor(["", "x"], 3.0)
    with torch.no_grad():
        inversion = inverter.invert(z0, predictor, model.schedule(2))
    assert inversion.seed.isfinite().all() and not inversion.seed.requires_grad


@pytest.mark.parametrize("name", sorted(FLOW))
def test_methods_of_flow_matching_refuse_other_models_in_one_sentence(model, name):
    inverter = instantiate(OmegaConf.load(f"configs/method/{name}.yaml"))
    with pytest.raises(ValueError, match="needs a flow-matching model"):
        check_schedule(inverter, model.schedule(2))
