"""Names are compared in normalized form, and repeated names are errors."""

import unicodedata

import pytest

from experiments.naming import normalize_name, unique_names

NFD = unicodedata.normalize("NFD", "jalapeño")


@pytest.mark.parametrize("name", ["jalapeño", NFD, f" {NFD}", "jalapeño\u00a0\n"])
def test_equivalent_names_have_one_form(name):
    assert normalize_name(name) == "jalapeño"


@pytest.mark.parametrize(("one", "other"), [("Crane", "crane"), ("hot dog", "hot-dog"), ("x²", "x2")])
def test_different_names_stay_different(one, other):
    assert normalize_name(one) != normalize_name(other)


def test_order_and_spelling_are_preserved():
    assert list(unique_names([f"{NFD} ", "camel"], "x").items()) == [("jalapeño", f"{NFD} "), ("camel", "camel")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "cat"], r"^counts\.tsv contains 'cat' twice: keep one\.$"),
        (
            ["cat", "cat "],
            r"^counts\.tsv contains 'cat' and 'cat ', which are one name .*: keep one\.$",
        ),
        (["jalapeño", NFD], r"'jalape\\xf1o' and 'jalapen\\u0303o'"),
        (["cat", "\u00a0"], r"^counts\.tsv contains an empty name"),
    ],
)
def test_repeated_and_empty_names_are_errors(names, message):
    with pytest.raises(ValueError, match=message):
        unique_names(names, "counts.tsv", "keep one")
