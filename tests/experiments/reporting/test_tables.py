"""Tables of results: texts of cells, best values, Markdown and LaTeX."""

import pytest

from experiments.reporting.tables import Column, Table, markdown_table, percent, varying

PSNR = Column("psnr", "PSNR, dB", "higher")
MSE = Column("mse", "MSE", "lower")


def bold(table: Table) -> list[list[str]]:
    """Return the texts of the bold cells of each row."""
    return [
        [text for text, best in zip(texts, flags, strict=True) if best]
        for texts, flags in zip(table.cells, table.best(), strict=True)
    ]


def test_missing_values_are_dashes():
    table = markdown_table([{"a": 1.23456, "b": "x"}, {"a": 2}], {"a": "A", "b": "B"})
    assert table.splitlines() == ["| A | B |", "|---|---|", "| 1.23 | x |", "| 2 | – |"]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_none_and_nan_are_dashes(value):
    row = {"fid": value, "accuracy": value, "accuracy_low": value, "accuracy_high": value}
    assert markdown_table([row], {"fid": "FID"}).splitlines()[-1] == "| – |"
    assert percent(row, "accuracy") == PSNR.text(row) == percent({}, "accuracy") == "–"


def test_cells_show_their_intervals():
    row = {"accuracy": 0.851, "accuracy_low": 0.8, "accuracy_high": 0.9}
    assert percent(row, "accuracy") == "85.1 (80–90)"
    row = {"gain": 0.032, "gain_low": -0.01, "gain_high": 0.051}
    assert Column("gain", "gain", scale=100, signed=True).text(row) == "+3.2 (-1 to +5)"
    assert PSNR.text({"psnr": 23.14, "psnr_low": 22.4, "psnr_high": 23.94}) == "23.1 (22.4–23.9)"
    assert PSNR.text({"psnr": 23.14, "psnr_low": float("nan"), "psnr_high": float("nan")}) == "23.1"


def test_numbers_have_three_significant_digits():
    texts = [PSNR.text({"psnr": value}) for value in (1234.5, 0.00012345, 1.2345e9, 8, float("inf"))]
    assert texts == ["1234", "0.000123", "1.23e+09", "8", "inf"]


def test_best_values_are_bold_and_equal_texts_are_ties():
    rows = [{"psnr": 20.01, "mse": 0.5}, {"psnr": 20.02, "mse": 0.1}, {"psnr": 10.0}]
    assert bold(Table(rows, [PSNR, MSE])) == [["20"], ["20", "0.1"], []]


def test_references_and_values_that_are_not_finite_are_never_bold():
    rows = [{"psnr": 20.0}, {"psnr": float("inf")}, {"psnr": float("nan")}]
    assert bold(Table(rows, [PSNR], references=[{"psnr": 40.0}])) == [["20"], [], [], []]
    assert bold(Table(rows[:1], [PSNR])) == [[]]  # a single row is not compared


def test_values_are_compared_within_equal_conditions():
    rows = [{"steps": steps, "psnr": float(psnr)} for steps, psnr in ((4, 10), (4, 11), (50, 30), (50, 29))]
    assert bold(Table(rows, [PSNR], within=["steps"])) == [[], ["11"], ["30"], []]


def test_markdown_columns_are_aligned():
    rows = [{"method": "a|b", "psnr": 20.0}, {"method": "accelerated", "psnr": 30.0}]
    table = Table(rows, [Column("method", "method"), PSNR], "Images: real").markdown()
    assert table.splitlines() == [
        "Images: real",
        "",
        "| method      | PSNR, dB ↑ |",
        "|-------------|------------|",
        "| a\\|b        | 20         |",
        "| accelerated | **30**     |",
    ]


def test_latex_is_escaped_and_has_rules():
    rows = [{"method": "a_b & 100%", "psnr": 20.0, "psnr_low": 19.0, "psnr_high": 21.0}, {"method": "x", "psnr": 1.0}]
    latex = Table(rows, [Column("method", "method_%"), PSNR]).latex()
    assert latex.splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method\_\% & PSNR, dB $\uparrow$ \\",
        r"\midrule",
        r"a\_b \& 100\% & \textbf{20 (19--21)} \\",
        r"x & 1 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_vertical_bars_are_escaped():
    assert markdown_table([{"method": "a|b"}], {"method": "method"}).splitlines()[-1] == r"| a\|b |"


def test_varying_keys():
    assert varying([{"steps": 4, "guidance": 1}, {"steps": 50, "guidance": 1}], ["steps", "guidance"]) == ["steps"]
