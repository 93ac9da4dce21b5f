"""Names that look alike are one name, and two of one place that become one are refused."""

import unicodedata

import pytest

from experiments.naming import normalize_name, unique_names

NFD = unicodedata.normalize("NFD", "jalapeño")


@pytest.mark.parametrize("name", ["jalapeño", NFD, f" {NFD}", "jalapeño\u00a0\n"])
def test_names_that_look_alike_are_one(name):
    assert normalize_name(name) == "jalapeño"


@pytest.mark.parametrize(("one", "other"), [("Crane", "crane"), ("hot dog", "hot-dog"), ("x²", "x2")])
def test_names_that_look_different_are_two(one, other):
    assert normalize_name(one) != normalize_name(other)


def test_names_keep_their_order_and_how_they_are_written():
    assert list(unique_names([f"{NFD} ", "camel"], "x").items()) == [("jalapeño", f"{NFD} "), ("camel", "camel")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "cat"], r"^counts\.tsv holds 'cat' twice: keep one\.$"),
        (["cat", "cat "], r"^counts\.tsv holds 'cat' and 'cat ', which are one name but for blanks .*: keep one\.$"),
        (["jalapeño", NFD], r"'jalape\\xf1o' and 'jalapen\\u0303o'"),
        (["cat", "\u00a0"], r"^counts\.tsv holds an empty name"),
    ],
)
def test_two_that_become_one_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        unique_names(names, "counts.tsv", "keep one")
