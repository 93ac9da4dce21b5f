"""Markdown tables and the text of their cells."""

import pytest

from experiments.reporting.tables import markdown_table, percent, percentage_points


def test_missing_values_are_dashes():
    table = markdown_table([{"a": 1.23456, "b": "x"}, {"a": 2}], {"a": "A", "b": "B"})
    assert table.splitlines() == ["| A | B |", "|---|---|", "| 1.23 | x |", "| 2 | – |"]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_none_and_nan_are_dashes(value):
    row = {"fid": value, "accuracy": value, "accuracy_low": value, "accuracy_high": value}
    assert markdown_table([row], {"fid": "FID"}).splitlines()[-1] == "| – |"
    assert percent(row, "accuracy") == percentage_points(row, "accuracy") == percent({}, "accuracy") == "–"


def test_percentages_show_their_intervals():
    row = {"accuracy": 0.851, "accuracy_low": 0.8, "accuracy_high": 0.9}
    assert percent(row, "accuracy") == "85.1 (80–90)"
    row = {"gain": 0.032, "gain_low": -0.01, "gain_high": 0.051}
    assert percentage_points(row, "gain") == "+3.2 (-1 to +5)"
    assert percentage_points(row, "gain", digits=1) == "+3.2 (-1.0 to +5.1)"


def test_vertical_bars_are_escaped():
    assert markdown_table([{"method": "a|b"}], {"method": "method"}).splitlines()[-1] == r"| a\|b |"
