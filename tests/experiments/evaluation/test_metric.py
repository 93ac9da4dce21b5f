"""The entries in a registry of metrics determine the columns, the aggregation and the order of metrics."""

import math

import pytest
import torch

from experiments.evaluation.metric import Metric, MetricRegister
from experiments.evaluation.registry import EDITING, INVERSION, RARE_CONCEPTS


@pytest.fixture
def register():
    return MetricRegister(
        Metric(
            "psnr",
            "PSNR",
            lambda batch: batch * 2,
            unit="dB",
            better="higher",
            interval=True,
            live=True,
            tables=("main",),
        ),
        Metric("share", "share", unit="%", scale=100, tables=("main", "other")),
        Metric("missing", "missing", lambda batch: None, optional=True),
    )


def test_heads_have_unit_and_direction(register):
    assert [(column.key, column.head) for column in register.columns()] == [
        ("psnr", "PSNR, dB ↑"),
        ("share", "share, %"),
    ]
    assert [column.key for column in register.columns("other")] == ["share"]


def test_new_metric_is_inserted_after_another(register):
    register.register(Metric("mse", "MSE", better="lower", interval=True, tables=("main",)), after="psnr")
    assert [column.key for column in register.columns()] == ["psnr", "mse", "share"]
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
    share = register.columns("other")[0]
    assert (share.text({"share": 0.25}), share.text({"share": None})) == ("25.0", "–")


def test_live_and_compared_metrics(register):
    assert register.live == register.with_interval == ("psnr",)


def test_spread_counts_nan_as_infinite():
    row = INVERSION.summarize([{"latent_mse": value} for value in (1.0, 2.0, math.nan)], seed=0)
    assert row["latent_mse_median"] == 2 and row["latent_mse_largest"] == math.inf


@pytest.mark.parametrize("registered", [INVERSION, EDITING, RARE_CONCEPTS])
def test_labels_are_unique_within_a_table(registered):
    for table in {table for metric in registered for table in metric.tables}:
        labels = [metric.column.head for metric in registered if table in metric.tables]
        assert len(labels) == len(set(labels))
