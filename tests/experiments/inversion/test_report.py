"""Rows of the table of an inversion experiment, from samples with known values."""

import math

import numpy as np
import pytest

from experiments.inversion.figures import FIGURES
from experiments.inversion.jobs import VAE_BOUND
from experiments.inversion.report import (
    compared_within,
    detection,
    rank_agreement,
    reconstruction_tables,
    summary,
    with_vae_gaps,
)


def sample(prompt: str, residual: float) -> dict:
    shared = {"method": "m", "initial_guess": None, "steps": 4, "guidance": 1.0, "nfe": 2, "generated": False}
    shared["images"] = "real"
    return {
        **shared,
        "prompt": prompt,
        "residual": residual,
        "residual_mean": residual,
        "latent_mse": 1.0,
        "psnr": 20.0,
    }


def test_detection_is_the_area_under_the_roc_curve():
    samples = [sample("caption", 0.1), sample("caption", 0.3), sample("wrong", 0.2), sample("wrong", 0.4)]
    auc = {row["score"]: row["auc"] for row in detection(samples)}
    assert auc == {"residual": 0.75, "residual_mean": 0.75, "latent_mse": 0.5}


def test_diverged_image_makes_the_mean_infinite():
    samples = [sample("caption", 0.1), sample("caption", math.inf) | {"psnr": math.nan}]
    row = summary(samples, seed=0)
    assert math.isinf(row["residual"])
    assert math.isnan(row["psnr"])
    assert math.isnan(row["psnr_low"])
    assert row["n"] == 2


def spread(row: dict) -> list[float]:
    return [row[f"latent_mse{suffix}"] for suffix in ("", "_median", "_p95", "_largest")]


def test_latent_mse_has_median_percentile_and_maximum():
    errors = [k / 100 for k in range(1, 20)] + [9.0]
    row = summary([sample("caption", 0.1) | {"latent_mse": error} for error in errors], seed=0)
    assert spread(row) == pytest.approx([np.mean(errors), 0.105, 0.19, 9.0])


def test_lost_images_are_counted_and_infinite_in_the_maximum():
    errors = [k / 100 for k in range(1, 20)] + [9.0]
    samples = [sample("caption", 0.1) | {"latent_mse": error, "not_finite": 0.0} for error in errors]
    samples[3] |= {"latent_mse": math.nan, "not_finite": 1.0}
    row = summary(samples, seed=0)
    assert math.isinf(row["latent_mse_largest"])
    assert row["latent_mse_p95"] == 9.0
    assert row["not_finite"] == 1


@pytest.mark.parametrize("norms", [[0.9, 1.0, 5.0], [0.9, 1.0, math.nan]])
def test_norm_is_the_median_over_images(norms):
    row = summary([sample("caption", 0.1) | {"norm": norm} for norm in norms], seed=0)
    assert row["norm"] == 1.0


def test_rank_agreement_of_two_perceptual_distances():
    values = {"a": [(0.1, 1.0), (0.3, 2.0)], "b": [(0.2, 3.0), (0.4, 4.0)], "c": [(0.9, 9.0), (0.8, 8.0)]}
    samples = [
        sample("caption", 0) | {"method": method, "perceptual": perceptual, "st_lpips": st_lpips}
        for method, pairs in values.items()
        for perceptual, st_lpips in pairs
    ]
    lost = samples[0] | {"perceptual": math.nan}
    assert rank_agreement([*samples, lost]) == {
        "spearman_images": pytest.approx(1 - 6 * 2 / (6 * 35)), "images": 6, "spearman_rows": pytest.approx(1.0),
        "rows": 3,
    }  # fmt: skip


def test_rank_agreement_needs_three_rows_with_both_distances():
    samples = [sample("caption", 0) | {"method": m, "perceptual": 0.1, "st_lpips": 1.0} for m in "abc"]
    assert rank_agreement(samples[:2]) == {}
    assert rank_agreement([{**s, "st_lpips": math.nan} for s in samples]) == {}


def test_vae_gap_is_relative_to_the_same_image():
    shared = sample("caption", 0) | {"method": VAE_BOUND, "steps": None}
    bounds = [shared | {"sample": name, "psnr": psnr} for name, psnr in (("a", 30), ("b", 9))]
    rows = with_vae_gaps([*bounds, bounds[0], sample("caption", 0.1) | {"sample": "a", "psnr": 28}])
    assert [row.get("vae_gap") for row in rows] == [None, None, 2]
    assert summary(rows[2:], seed=0)["vae_gap"] == 2


def test_residual_figure_shows_settings_with_one_nfe():
    row = sample("caption", 0.1) | {"nfe_per_step": 2.0}
    assert [axis.get_title() for axis in FIGURES["residuals"]([row], []).axes] == ["4 steps, guidance 1"]


def table_row(method="a", **changes):
    return summary([sample("caption", 0.1) | {"method": method, "nfe_per_step": 2.0, **changes}], seed=0)


VAE = {"method": VAE_BOUND, "steps": None, "guidance": None, "nfe": None, "nfe_per_step": math.nan}


def heads(table):
    return [column.label for column in table.columns]


def test_table_shows_conditions_that_vary_and_the_vae_bound():
    rows = [table_row(**VAE), table_row(steps=4), table_row(steps=50)]
    (table,) = reconstruction_tables(rows, [{"method": "paper", "psnr": 19.3}])
    assert heads(table) == ["method", "steps", "NFE per step", "PSNR, dB", "latent MSE", "max residual", "n"]
    assert [row["method"] for row in table.references] == [VAE_BOUND, "paper"]
    (table,) = reconstruction_tables(rows[:2], [])
    assert "steps" not in heads(table)
    assert compared_within(rows) == "Bold: best value among rows with the same steps."
    assert compared_within(rows[:2]) == ""


def test_settings_with_fewer_images_have_a_separate_vae_bound():
    rows = [table_row(**VAE) | {"n": 16}, table_row(steps=4, vae_gap=3.0) | {"n": 16}]
    rows += [table_row(steps=50, psnr=30.5 - gap, vae_gap=gap) | {"n": 8} for gap in (1.5, 0.0)]
    (table,) = reconstruction_tables(rows, [])
    assert [(row["method"], row["psnr"], row["n"]) for row in table.references] == [
        (VAE_BOUND, 20.0, 16), (VAE_BOUND, 30.5, 8)
    ]  # fmt: skip
    lost = table_row(steps=50, psnr=math.nan, vae_gap=math.nan) | {"n": 8}
    (table,) = reconstruction_tables([*rows[:2], lost], [])
    assert len(table.references) == 1


def test_images_prompts_and_second_conditions_have_separate_tables():
    rows = [
        table_row(**VAE),
        table_row(),
        table_row(steps=50, guidance=7.5),
        table_row(prompt="wrong"),
        table_row(prompt="empty"),
    ]
    tables = reconstruction_tables(rows, [])
    assert [table.title for table in tables] == [
        "Images: real, guidance 1",
        "Images: real, guidance 7.5",
        "Images: real, prompts of other concepts, guidance 1",
        "Images: real, empty prompt, guidance 1",
    ]
    assert [len(table.references) for table in tables] == [1, 1, 0, 0]
    assert all(len(table.columns) <= 7 for table in tables)


def test_criterion_of_the_residual_is_no_column():
    (table,) = reconstruction_tables([table_row(residual_converged=0.0)], [])
    assert not any(column.key == "residual_converged" for column in table.columns)
