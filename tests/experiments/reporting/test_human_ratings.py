"""Preferences and agreement against known answers."""

import sys

import pandas as pd
import pytest

from experiments.reporting import human_ratings as preferences
from experiments.reporting.human_ratings import agreement, preference_table, read_ratings, win_rates

# Krippendorff's example of three coders, as in https://en.wikipedia.org/wiki/Krippendorff%27s_alpha: nominal 0.691.
CODERS = {
    "a": "*****3412113" + "3*3",
    "b": "1*213343*" + "******",
    "c": "**21344*21133*4",
}


def ratings(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["rater", "item", "shown", "choice"])


def test_alpha_is_krippendorff_s():
    rows = [(coder, k, ("1", "2", "3", "4"), x) for coder, xs in CODERS.items() for k, x in enumerate(xs) if x != "*"]
    assert agreement(ratings(*rows)) == pytest.approx(0.691, abs=5e-4)


def test_alpha_is_one_where_all_agree_and_undefined_without_a_second_rater():
    both = ratings(*[(r, k, ("x", "y"), "xy"[k]) for r in "ab" for k in range(2)])
    assert agreement(both) == 1
    assert agreement(both[both.rater == "a"]) is None
    assert agreement(both[both.item == 0]) is None


def test_a_tie_counts_for_all_that_were_shown():
    found = win_rates(ratings(("a", 0, ("x", "y"), "x"), ("a", 1, ("y", "x"), "tie"), ("b", 2, ("x", "y"), "x")))
    assert [(row["method"], row["n"], row["ties"], row["raters"]) for row in found] == [("x", 3, 1, 2), ("y", 3, 1, 2)]
    assert [row["share"] for row in found] == pytest.approx([2.5 / 3, 0.5 / 3])
    assert sum(row["share"] for row in found) == pytest.approx(1)
    assert all(row["share_low"] <= row["share"] <= row["share_high"] for row in found)


def test_the_interval_is_over_items_not_ratings():
    many = ratings(*[(f"r{k}", item, ("x", "y"), choice) for k in range(50) for item, choice in ((0, "x"), (1, "y"))])
    row = win_rates(many)[0]
    assert (row["share_low"], row["share_high"]) == (0, 1)


def test_the_command_prints_the_table(tmp_path, monkeypatch, capsys):
    table = ratings(("a", "i", ["x", "y"], "x"), ("b", "i", ["y", "x"], "x"))
    table.to_parquet(tmp_path / "all.parquet")
    for given in (tmp_path / "all.parquet", tmp_path):
        monkeypatch.setattr(sys, "argv", ["preferences", str(given)])
        preferences.main()
        assert capsys.readouterr().out == preference_table(read_ratings([given])) + "\n"


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "holds no ratings"),
        (b"no table", "cannot be read as Parquet"),
        (pd.DataFrame({"rater": ["a"]}), "lacks the column item"),
        (ratings(("a", "i", ["x", "y"], "z")), "chooses 'z'"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(content, says, tmp_path, monkeypatch):
    if isinstance(content, bytes):
        (tmp_path / "f.parquet").write_bytes(content)
    elif content is not None:
        content.to_parquet(tmp_path / "f.parquet")
    monkeypatch.setattr(sys, "argv", ["preferences", str(tmp_path)])
    with pytest.raises(SystemExit, match=says):
        preferences.main()
