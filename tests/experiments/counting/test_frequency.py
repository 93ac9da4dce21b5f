"""Mentions of names in captions, frequency buckets, and the selection of concepts."""

import numpy as np
import pyarrow as pa
import pytest
from hydra.utils import instantiate

from experiments.counting.buckets import assign_buckets, bucket_by_threshold
from experiments.counting.matcher import count_mentions
from experiments.data.concepts import Concept, EmojiConcepts, select_concepts
from tests.commands import composed


def count(name: str, *captions: str) -> int:
    return count_mentions({name: [name]}, pa.array(captions))[name]


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("camel", "A CAMEL, at dawn"),
        ("camel", "two camels"),
        ("cherry", "a bowl of cherries"),
        ("box", "boxes"),
        ("high-heeled shoe", "high heeled shoes"),
        ("t-shirt", "my T-Shirt!"),
        ("t-shirt", "my tshirt"),
        ("café", "ｃａｆé"),
        ("café", "cafe\u0301"),
        ("fish", "ﬁsh"),
        ("ice cream", "ice  cream"),
        ("donuts", "a donut"),
        ("waffles", "one waffle"),
        ("Doberman", "two Dobermans asleep"),
    ],
)
def test_variants_of_a_name_are_mentions(name, caption):
    assert count(name, caption) == 1


@pytest.mark.parametrize(
    ("name", "caption"), [("cat", "a category"), ("cat", "concat"), ("ice cream", "cream on ice"), ("camel", "")]
)
def test_other_words_are_not_mentions(name, caption):
    assert count(name, caption) == 0


def test_caption_counts_once_per_concept():
    assert count("camel", "camel camel camels", "a camel") == 2


def test_nested_names_and_synonyms():
    names = {"dog": ["dog", "hound"], "hot dog": ["hot dog"], "sky": ["sky"]}
    captions = pa.array(["a hot dog", "a hound and a dog"])
    assert count_mentions(names, captions) == {"dog": 2, "hot dog": 1, "sky": 0}


def test_thresholds_are_strict():
    buckets = bucket_by_threshold({"a": 1001, "b": 1000, "c": 42, "d": 41}, head=1000, tail=42)
    assert buckets == {"a": "head", "b": "medium", "c": "medium", "d": "tail"}
    with pytest.raises(ValueError, match="must satisfy 0 <= tail <= head"):
        bucket_by_threshold({}, head=1, tail=2)


def embedded(*changes: str) -> EmojiConcepts:
    return instantiate(composed("data=emoji", *changes).data.source)


def test_bucket_sizes_of_the_embedded_corpus(capsys):
    concepts = embedded().concepts()
    sizes = [sum(concept.bucket == bucket for concept in concepts) for bucket in ("head", "medium", "tail")]
    assert sizes == [80, 159, 81]  # the paper: 235, 509, 256 of 1000
    assert min(c.frequency for c in concepts) == 8 and max(c.frequency for c in concepts) == 5000
    assert all(concept.references.shape == (3, 3, 64, 64) for concept in concepts)
    assert len(select_concepts(concepts, 100, ("head", "tail"), seed=0)) == 161
    assert "head 80 of 80, medium 0 of 159, tail 81 of 81" in capsys.readouterr().out


def test_embedded_corpus_has_buckets_by_rank():
    concepts = sorted(embedded("data.source.bucket_by=rank").concepts(), key=lambda c: -c.frequency)
    assert [c.bucket for c in concepts] == ["head"] * 75 + ["medium"] * 163 + ["tail"] * 82
    with pytest.raises(ValueError, match=r"ranks=\[75, 163\] do not add up to the 320 concepts"):
        embedded("data.source.bucket_by=rank", "data.source.ranks=[75,163]").concepts()


def test_unknown_bucket_rule_and_background_are_errors():
    with pytest.raises(ValueError, match=r"bucket_by='size' is unknown: choose threshold or rank"):
        assign_buckets({"a": 1}, "size", head=2, tail=1, ranks=())
    with pytest.raises(ValueError, match="background: 'red' is unknown"):
        EmojiConcepts("assets/emoji", "{phrase}", "red", head=1000, tail=42)


@pytest.fixture
def concepts() -> list[Concept]:
    blank = np.zeros((1, 3, 2, 2), np.uint8)
    return [Concept(f"c{k:02d}", "", k, ("tail", "medium", "head")[k // 10], blank) for k in range(30)]


def test_larger_selection_extends_smaller_one(concepts):
    few = {c.name for c in select_concepts(concepts, 2, ("head", "tail"), seed=0)}
    many = {c.name for c in select_concepts(concepts, 5, ("head", "tail"), seed=0)}
    assert len(few) == 4 and len(many) == 10 and few < many
    assert few != {c.name for c in select_concepts(concepts, 2, ("head", "tail"), seed=1)}


def test_selection_by_name_and_of_all(concepts):
    assert [c.name for c in select_concepts(concepts, ["c21", "c03"], ("tail",), seed=0)] == ["c21", "c03"]
    assert [c.name for c in select_concepts(concepts, "c07", ("head",), seed=0)] == ["c07"]
    assert len(select_concepts(concepts, "all", ("medium",), seed=0)) == 10
    with pytest.raises(ValueError, match="'c99'"):
        select_concepts(concepts, ["c99"], ("head",), seed=0)
