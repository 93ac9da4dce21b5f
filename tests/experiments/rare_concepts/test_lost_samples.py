"""Samples that are not finite are counted and never shown, and do not change the other samples of the batch."""

import json
from functools import partial
from math import isfinite
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.finite import NonFiniteError
from rnri import LatentDiffusion
from tests.experiments.tiny_configs import COLORS, NAO, PLAIN, SELECT, rare_concepts, run_to_end, tiny, trainer


class OneBadSeed(LatentDiffusion):
    """A model whose second seed of the owl is NaN."""

    def noise(self, sample_ids, seed):
        noise = super().noise(sample_ids, seed)
        noise[[k for k, name in enumerate(sample_ids) if name == "owl/1"]] = torch.nan
        return noise


class OneBadReference(LatentDiffusion):
    """A model whose VAE encodes one (blue) reference of the owl to a latent that is not finite."""

    def encode(self, images):
        latents = super().encode(images)
        blue = images[:, 2].mean((1, 2)) > images[:, 0].mean((1, 2))
        latents[blue.nonzero().flatten()[:1]] = torch.inf
        return latents


class Overflowing(LatentDiffusion):
    """A model whose VAE overflows in the last layer, as in half precision; clamping would turn infinity into white."""

    def decode(self, z0, *, clamp=True):
        images = super().decode(z0, clamp=False)
        images[:, :, 0] = torch.inf
        return images.clamp(0, 1) if clamp else images


class NaNUnet(LatentDiffusion):
    """A model whose samples are NaN."""

    def sample(self, seed, predictor, schedule, **options):
        return torch.full_like(seed, torch.nan)


def totals(task) -> dict[str, dict]:
    rows = json.loads((Path(task.run_dir) / "results.json").read_text())["rows"]
    return {row["method"]: row for row in rows if row["bucket"] == "total"}


def images(task, arm: str) -> dict[str, torch.Tensor]:
    store = task.context.units(arm)
    return {concept.name: store.read(concept.key)[0]["images"] for concept in task.context.concepts}


@pytest.fixture(scope="module")
def lossy(tmp_path_factory):
    """A finished run in which one sample of the arm ``plain`` is lost."""
    arms = {"plain": PLAIN, "nao": NAO}
    return run_to_end(rare_concepts(tmp_path_factory.mktemp("lossy"), arms, model=partial(tiny, kind=OneBadSeed)))


@pytest.mark.slow
def test_lost_sample_does_not_change_other_images(lossy, tmp_path):
    complete = run_to_end(rare_concepts(tmp_path, {"plain": PLAIN, "nao": NAO}))
    actual, expected = images(lossy, "plain"), images(complete, "plain")
    assert len(actual["owl"]) == 1
    assert (actual["owl"][0].int() - expected["owl"][0].int()).abs().max() <= 1
    for name in ("cat", "fox"):
        assert (actual[name].int() - expected[name].int()).abs().max() <= 1
    assert (images(lossy, "nao")["owl"].int() - images(complete, "nao")["owl"].int()).abs().max() <= 1


@pytest.mark.slow
def test_lost_sample_is_counted_and_its_arm_has_no_fid(lossy):
    row, other = totals(lossy)["plain"], totals(lossy)["nao"]
    assert (row["n"], row["not_finite"], row["fid"], row["kid"]) == (6, 1, None, None)
    assert other["not_finite"] == 0
    assert other["fid"] >= 0
    assert isfinite(other["kid"])


@pytest.mark.slow
def test_lost_sample_is_named_below_the_table(lossy):
    table = (Path(lossy.run_dir) / "table.md").read_text()
    assert "plain: 1 of 6 samples are not finite (owl)" in table
    assert "nao:" not in table


def test_lost_sample_is_wrong_and_has_no_prediction(lossy):
    samples = pd.read_parquet(Path(lossy.run_dir) / "samples.parquet").set_index(["method", "sample"])
    lost = samples.loc[("plain", "owl/1")]
    assert not lost["correct"]
    assert pd.isna(lost["prediction"])
    assert samples["finite"].sum() == 11


@pytest.mark.slow
@pytest.mark.parametrize("arm", [NAO, SELECT], ids=["nao", "seedselect"])
def test_concept_without_finite_seeds_is_the_only_one_lost(tmp_path, arm):
    task = run_to_end(rare_concepts(tmp_path, {"arm": arm}, model=partial(tiny, kind=OneBadReference)))
    assert {name: len(batch) for name, batch in images(task, "arm").items()} == {"cat": 2, "owl": 0, "fox": 2}
    assert totals(task)["arm"]["not_finite"] == 2
    assert (Path(task.run_dir) / "images" / "tail.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Overflowing, NaNUnet])
@pytest.mark.parametrize("arm", ["plain", "seedselect"])
def test_run_ends_if_an_arm_has_no_finite_image(tmp_path, kind, arm):
    if (kind, arm) == (NaNUnet, "seedselect"):
        pytest.skip("SeedSelect does not call sample()")
    arms = {arm: PLAIN if arm == "plain" else SELECT}
    task = rare_concepts(tmp_path, arms, model=partial(tiny, kind=kind))
    task_trainer = trainer()
    task.prepare(task_trainer)
    with pytest.raises(NonFiniteError, match=f"arm '{arm}': no image of 'cat', 'owl', 'fox' is finite"):
        task.run(task_trainer)
    assert not list(Path(task.run_dir).rglob("*/results.json")) and task.context.units(arm).empty()


def damaged(part: str, device: object) -> LatentDiffusion:
    model = tiny(device)
    weights = dict(getattr(model.pipeline, part).named_parameters())
    weights["decoder.conv_out.weight" if part == "vae" else "conv_in.weight"].data[0] = torch.nan
    return model


def damaged_part(part: str):
    return lambda device: damaged(part, device)


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_prepare_rejects_weights_that_are_not_finite(tmp_path, part):
    task = rare_concepts(tmp_path, {"plain": PLAIN}, model=damaged_part(part))
    with pytest.raises(ValueError, match=rf"the weight \S+ of the {part} is not finite in float32"):
        task.prepare(trainer())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"samples": 1, "concepts": ["owl"]}, {"samples": 1, "concepts": ["owl", "cat"]}])
def test_fid_and_kid_need_two_images(tmp_path, changes):
    task = run_to_end(rare_concepts(tmp_path, {"plain": PLAIN}, **changes))
    row = totals(task)["plain"]
    assert (row["fid"] is None) == (row["kid"] is None) == (len(changes["concepts"]) == 1)
    assert set(COLORS) >= set(changes["concepts"]) and row["n"] == len(changes["concepts"])
