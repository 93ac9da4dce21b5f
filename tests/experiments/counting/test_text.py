"""Normalization of text in any writing system: combining marks remain, and invisible characters are dropped."""

import unicodedata

import pytest

from experiments.counting.text import normalize
from tests.experiments.counting.captions import batch_counts, random_text


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("elephant", "an ele\u00adphant at the zoo"),
        ("ele\u00adphant", "an elephant"),
        ("elephant", "ele\u200bphants"),
        ("elephant", "\ufeffelephant"),
        ("elephant", "\u202aelephant\u202c"),
        ("cat", "cat\ufe0f \u2060and dog"),
        ("हाथी", "एक हाथी जंगल में"),
        ("क्षत्रिय", "क्\u200dषत्रिय"),
        ("می‌خواهم", "میخواهم"),
        ("ช้าง", "ช้าง สีขาว"),
        ("น้ำ", "นํ้า".replace("นํ้า", unicodedata.normalize("NFKC", "น้ำ"))),
        ("كِتاب", "كِتاب"),
        ("שָׁלוֹם", unicodedata.normalize("NFD", "שָׁלוֹם")),
        ("café", "CAFE\u0301"),
        ("café", "cafe\u00ad\u0301"),
        ("naïve", "\u00a8naïve"),
        ("cat", "´cat´"),
        ("cat", "-\u0301cat"),
        ("cat", " \u0301cat"),
        ("cat", "≠cat =\u0338cat"),
        ("İstanbul", "istanbul"),
        ("istanbul", "İSTANBUL"),
        ("İstanbul", "i\u0307stanbul"),
        ("Straße", "STRASSE"),
        ("STRAẞE", "straße"),
        ("ǰ", "\u004a\u030c"),
        ("ΐ", "Ϊ\u0301"),
        ("ŉ", "ʼN"),
        ("ᾳ", "ΑΙ"),
        ("fish", "ﬁsh"),
        ("cat", "ｃａｔｓ"),
        ("ガス", "ｶﾞｽ"),
        ("각", "\u1100\u1161\u11a8"),
        ("x2", "x²"),
        ("CO2", "CO₂"),
        ("cat", "a cat™"),
        ("cat™", "a cat"),
        ("cat™", "two cats"),
        ("cat℠", "a cat®"),
        ("cat", "cat🅫"),
        ("cat", "ⓒⓐⓣ"),
        ("cat", "🄲🄰🅃"),
        ("٣", "٣ قطط"),
        ("cat", "🐈\u200d⬛cat❤️"),
    ],
)
def test_equivalent_words_are_mentions(name, caption):
    assert batch_counts({"it": (name,)}, [caption]) == {"it": 1}


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("हाथी", "हाथ"),
        ("हाथ", "हाथी"),
        ("कल", "कला"),
        ("क", "क्"),
        ("كتاب", "كِتاب"),
        ("ช้าง", "ชาง"),
        ("שלום", "שָׁלוֹם"),
        ("cafe", "café"),
        ("caf", "cafe\u0301"),
        ("cat", "ca\u00adtegory"),
        ("cattm", "cat™"),
        ("catsm", "cat℠"),
        ("cat", "cat\u0301"),
    ],
)
def test_parts_of_words_are_not_mentions(name, caption):
    assert batch_counts({"it": (name,)}, [caption]) == {"it": 0}


@pytest.mark.slow
def test_normalization_is_idempotent():
    scalars = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    forms = normalize("=".join(f"{c} a{c}b" for c in scalars))
    assert normalize(forms) == forms


def test_canonically_equivalent_strings_have_one_form():
    for text in random_text(0, 5000):
        form = normalize(text)
        assert normalize(form) == form
        assert {normalize(unicodedata.normalize(kind, text)) for kind in ("NFC", "NFD")} == {form}


def test_ignorable_characters_are_dropped():
    for text in random_text(1, 300):
        for character in "\u00ad\u034f\u200b\u200c\u200d\u2060\ufe0f\ufeff\U000e0020":
            assert normalize(character.join(text)) == normalize(text)


def test_surrogates_are_not_letters():
    assert normalize("cat\ud83ddog") == " cat dog "
