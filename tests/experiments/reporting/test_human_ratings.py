"""Win rates of methods and agreement of raters, compared with known values."""

import sys

import pandas as pd
import pytest

from experiments.reporting import human_ratings
from experiments.reporting.human_ratings import agreement, preference_table, read_ratings, win_rates

# Krippendorff's example of three coders, as in https://en.wikipedia.org/wiki/Krippendorff%27s_alpha: nominal 0.691.
CODERS = {
    "a": "*****3412113" + "3*3",
    "b": "1*213343*" + "******",
    "c": "**21344*21133*4",
}


def ratings(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["rater", "item", "shown", "choice"])


def test_alpha_matches_krippendorffs_example():
    rows = [(coder, k, ("1", "2", "3", "4"), x) for coder, xs in CODERS.items() for k, x in enumerate(xs) if x != "*"]
    assert agreement(ratings(*rows)) == pytest.approx(0.691, abs=5e-4)


def test_alpha_of_full_agreement_and_of_single_raters():
    both = ratings(*[(r, k, ("x", "y"), "xy"[k]) for r in "ab" for k in range(2)])
    assert agreement(both) == 1
    assert agreement(both[both.rater == "a"]) is None
    assert agreement(both[both.item == 0]) is None


def test_tie_counts_equally_for_all_methods_shown():
    rows = win_rates(ratings(("a", 0, ("x", "y"), "x"), ("a", 1, ("y", "x"), "tie"), ("b", 2, ("x", "y"), "x")))
    assert [(row["method"], row["n"], row["ties"], row["raters"]) for row in rows] == [("x", 3, 1, 2), ("y", 3, 1, 2)]
    assert [row["win_rate"] for row in rows] == pytest.approx([2.5 / 3, 0.5 / 3])
    assert sum(row["win_rate"] for row in rows) == pytest.approx(1)
    assert all(row["win_rate_low"] <= row["win_rate"] <= row["win_rate_high"] for row in rows)


def test_interval_resamples_items_not_ratings():
    many = ratings(*[(f"r{k}", item, ("x", "y"), choice) for k in range(50) for item, choice in ((0, "x"), (1, "y"))])
    row = win_rates(many)[0]
    assert (row["win_rate_low"], row["win_rate_high"]) == (0, 1)


def test_command_prints_the_table(tmp_path, monkeypatch, capsys):
    table = ratings(("a", "i", ["x", "y"], "x"), ("b", "i", ["y", "x"], "x"))
    table.to_parquet(tmp_path / "all.parquet")
    (tmp_path / ".all.0123.parquet").write_bytes(b"")  # the page is writing ratings
    for path in (tmp_path / "all.parquet", tmp_path):
        monkeypatch.setattr(sys, "argv", ["human_ratings", str(path)])
        human_ratings.main()
        assert capsys.readouterr().out == preference_table(read_ratings([path])) + "\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no ratings"),
        (b"no table", "cannot be read as Parquet"),
        (pd.DataFrame({"rater": ["a"]}), "has no column item"),
        (ratings(("a", "i", ["x", "y"], "z")), "row 0: the choice is 'z', which was not shown"),
        (ratings(("a", "i", 5, "x")), "row 0: shown must be a list of two or more names of methods, got 5"),
        (ratings(("a", "i", "xy", "x")), "row 0: shown must be a list .*, got 'xy'"),
        (ratings(("a", "i", None, "tie")), "row 0: shown must be a list .*, got None"),
        (ratings(("a", "i", [1, 2], "tie")), "row 0: shown must be a list"),
        (ratings(("a", "i", ["x"], "tie")), "row 0: shown must be a list"),
        (ratings(("a", None, ["x", "y"], "x")), "row 0: item must be a string, got None"),
        (ratings((3, "i", ["x", "y"], "x")), "row 0: rater must be a string, got 3"),
        (ratings(("a", "i", ["x", "y"], 1.5)), "row 0: choice must be a string, got 1.5"),
    ],
)
def test_invalid_files_are_rejected(content, message, tmp_path, monkeypatch):
    if isinstance(content, bytes):
        (tmp_path / "f.parquet").write_bytes(content)
    elif content is not None:
        content.to_parquet(tmp_path / "f.parquet")
    monkeypatch.setattr(sys, "argv", ["human_ratings", str(tmp_path)])
    with pytest.raises(SystemExit, match=message):
        human_ratings.main()
