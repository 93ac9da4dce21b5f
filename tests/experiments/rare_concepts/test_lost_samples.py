"""What is not finite: never an image, never a number of the table, and no loss to what is computed beside it."""

import json
from functools import partial
from math import isfinite
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.finite import NonFiniteError
from rnri import LatentDiffusion
from tests.experiments.tiny_configs import COLOURS, NAO, PLAIN, SELECT, carried_out, rare_concepts, tiny, trainer


class OneBadSeed(LatentDiffusion):
    """The second seed of the owl is NaN."""

    def noise(self, sample_ids, seed):
        noise = super().noise(sample_ids, seed)
        noise[[k for k, name in enumerate(sample_ids) if name == "owl/1"]] = torch.nan
        return noise


class OneBadReference(LatentDiffusion):
    """The VAE's latent of one reference of the owl, the blue one, is not finite."""

    def encode(self, images):
        latents = super().encode(images)
        blue = images[:, 2].mean((1, 2)) > images[:, 0].mean((1, 2))
        latents[blue.nonzero().flatten()[:1]] = torch.inf
        return latents


class Overflowing(LatentDiffusion):
    """A VAE whose last layer overflows, as half precision does: infinity, which clamping would make white."""

    def decode(self, z0, *, clamp=True):
        images = super().decode(z0, clamp=False)
        images[:, :, 0] = torch.inf
        return images.clamp(0, 1) if clamp else images


class LostUnet(LatentDiffusion):
    def sample(self, seed, predictor, schedule, **options):
        return torch.full_like(seed, torch.nan)


def totals(task) -> dict[str, dict]:
    rows = json.loads((Path(task.run_dir) / "results.json").read_text())["rows"]
    return {row["method"]: row for row in rows if row["bucket"] == "total"}


def images(task, arm: str) -> dict[str, torch.Tensor]:
    store = task.units(arm, task.arms[arm])
    return {concept.name: store.read(concept.key)[0]["images"] for concept in task.chosen}


def test_one_lost_sample_costs_no_other(tmp_path):
    spoilt = carried_out(rare_concepts(tmp_path, {"plain": PLAIN, "nao": NAO}, model=partial(tiny, kind=OneBadSeed)))
    whole = carried_out(rare_concepts(tmp_path, {"plain": PLAIN, "nao": NAO}, run_dir=str(tmp_path / "whole")))
    found, expected = images(spoilt, "plain"), images(whole, "plain")
    assert len(found["owl"]) == 1
    assert (found["owl"][0].int() - expected["owl"][0].int()).abs().max() <= 1
    for name in ("cat", "fox"):
        assert (found[name].int() - expected[name].int()).abs().max() <= 1
    assert (images(spoilt, "nao")["owl"].int() - images(whole, "nao")["owl"].int()).abs().max() <= 1
    row, other = totals(spoilt)["plain"], totals(spoilt)["nao"]
    assert (row["n"], row["not_finite"], row["fid"], row["kid"]) == (6, 1, None, None)
    assert other["not_finite"] == 0 and other["fid"] >= 0 and isfinite(other["kid"])
    table = (Path(spoilt.run_dir) / "table.md").read_text()
    assert "plain: 1 of 6 samples are not finite (owl)" in table and "nao:" not in table
    samples = pd.read_parquet(Path(spoilt.run_dir) / "samples.parquet").set_index(["method", "sample"])
    assert not samples.loc[("plain", "owl/1"), "correct"] and pd.isna(samples.loc[("plain", "owl/1"), "prediction"])
    assert samples["finite"].sum() == 11


@pytest.mark.parametrize("arm", [NAO, SELECT], ids=["nao", "seedselect"])
def test_a_concept_without_seeds_is_lost_alone(tmp_path, arm):
    task = carried_out(rare_concepts(tmp_path, {"arm": arm}, model=partial(tiny, kind=OneBadReference)))
    assert {name: len(own) for name, own in images(task, "arm").items()} == {"cat": 2, "owl": 0, "fox": 2}
    assert totals(task)["arm"]["not_finite"] == 2
    assert (Path(task.run_dir) / "images" / "tail.png").stat().st_size > 0


@pytest.mark.parametrize("kind", [Overflowing, LostUnet])
@pytest.mark.parametrize("arm", ["plain", "seedselect"])
def test_an_arm_without_any_image_ends_the_run_and_is_named(tmp_path, kind, arm):
    if (kind, arm) == (LostUnet, "seedselect"):
        pytest.skip("SeedSelect samples by its own trajectory")
    arms = {arm: PLAIN if arm == "plain" else SELECT}
    task, own = rare_concepts(tmp_path, arms, model=partial(tiny, kind=kind)), trainer()
    task.prepare(own)
    with pytest.raises(NonFiniteError, match=f"arm '{arm}': no image of 'cat', 'owl', 'fox' is finite"):
        task.run(own)
    assert not list(Path(task.run_dir).rglob("*/results.json")) and task.units(arm, arms[arm]).empty()


def damaged(part: str, device: object) -> LatentDiffusion:
    model = tiny(device)
    weights = dict(getattr(model.pipeline, part).named_parameters())
    weights["decoder.conv_out.weight" if part == "vae" else "conv_in.weight"].data[0] = torch.nan
    return model


def damaged_part(part: str):
    return lambda device: damaged(part, device)


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_weights_that_are_not_finite_are_found_before_any_work(tmp_path, part):
    task = rare_concepts(tmp_path, {"plain": PLAIN}, model=damaged_part(part))
    with pytest.raises(ValueError, match=rf"the weight \S+ of the {part} is not finite in float32"):
        task.prepare(trainer())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"samples": 1, "concepts": ["owl"]}, {"samples": 1, "concepts": ["owl", "cat"]}])
def test_distances_that_cannot_be_had_are_dashes(tmp_path, changes):
    task = carried_out(rare_concepts(tmp_path, {"plain": PLAIN}, **changes))
    row = totals(task)["plain"]
    assert (row["fid"] is None) == (row["kid"] is None) == (len(changes["concepts"]) == 1)
    assert set(COLOURS) >= set(changes["concepts"]) and row["n"] == len(changes["concepts"])
