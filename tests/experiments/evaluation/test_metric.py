"""Registers of metrics: columns, aggregation and order follow from the entries."""

import math

import pytest
import torch

from experiments.evaluation.metric import Metric, MetricRegister
from experiments.evaluation.registry import EDITING, INVERSION, RARE_CONCEPTS


@pytest.fixture
def register():
    return MetricRegister(
        Metric("psnr", "PSNR", lambda batch: batch * 2, unit="dB", better="higher", interval=True, live=True),
        Metric("share", "share", unit="%", scale=100, tables=("main", "other")),
        Metric("missing", "missing", lambda batch: None, optional=True, tables=()),
    )


def test_heads_have_unit_and_direction(register):
    assert register.columns() == {"psnr": "PSNR, dB ↑", "share": "share, %"}
    assert register.columns("other") == {"share": "share, %"}


def test_new_metric_is_inserted_after_another(register):
    register.register(Metric("mse", "MSE", better="lower", interval=True, show_interval=True), after="psnr")
    assert list(register.columns()) == ["psnr", "mse", "mse_low", "mse_high", "share"]
    with pytest.raises(ValueError, match="'mse' is registered already"):
        register.register(Metric("mse", "MSE"))
    with pytest.raises(ValueError, match="after: must be the name of a registered metric, got 'x'"):
        register.register(Metric("other", "other"), after="x")


def test_only_metrics_with_a_function_are_computed(register):
    values = register.compute(torch.ones(2))
    assert list(values) == ["psnr"] and values["psnr"].tolist() == [2, 2]


def test_rows_have_means_and_intervals(register):
    row = register.summarize([{"psnr": 1.0}, {"psnr": 3.0}], seed=0)
    assert row["psnr"] == 2 and row["psnr_low"] <= 2 <= row["psnr_high"] and "share" not in row
    samples = [{"psnr": 1.0}, {"psnr": math.nan}]
    assert math.isnan(register.summarize(samples, seed=0)["psnr"])
    assert register.summarize(samples, seed=0, skip_nan=True)["psnr"] == 1


def test_scaled_values_are_for_display_only(register):
    assert register.scaled({"psnr": 1.0, "share": 0.25}) == {"share": 25.0}
    assert register.scaled({"share": None}) == {"share": None}


def test_live_and_compared_metrics(register):
    assert register.live == register.with_interval == ("psnr",)


def test_spread_counts_nan_as_infinite():
    row = INVERSION.summarize([{"latent_mse": value} for value in (1.0, 2.0, math.nan)], seed=0)
    assert row["latent_mse_median"] == 2 and row["latent_mse_largest"] == math.inf


@pytest.mark.parametrize("registered", [INVERSION, EDITING, RARE_CONCEPTS])
def test_labels_are_unique_within_a_table(registered):
    for table in {table for metric in registered for table in metric.tables}:
        labels = [metric.head for metric in registered if table in metric.tables]
        assert len(labels) == len(set(labels))
