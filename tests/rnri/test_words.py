"""Words and phrases are expected and replaced as whole words."""

import pytest

from rnri.words import find_phrase, replace_phrase


@pytest.mark.parametrize(
    ("phrase", "text", "expected"),
    [
        ("cat", "a cathedral at night", []),
        ("cat", "two cats, a bobcat and a cat_1", []),
        ("cat", "Cat, (cat) cat's CAT.", ["Cat", "cat", "cat", "CAT"]),
        ("black cat", "a black\n cat", ["black\n cat"]),
        ("a.b", "a.b acb", ["a.b"]),
        ("straße", "die Straße, die Straßen", ["Straße"]),
        (" ", "a cat", []),
    ],
)
def test_only_whole_words_match(phrase, text, expected):
    assert [text[start:end] for start, end in find_phrase(phrase, text)] == expected


def test_every_occurrence_is_replaced():
    assert replace_phrase("cat", "dog", "Cat and cat in a cathedral") == "dog and dog in a cathedral"
    assert replace_phrase("a ", r"the \1 ", "a cat") == r"the \1 cat"
    assert replace_phrase("owl", "dog", "a cat") == "a cat"
