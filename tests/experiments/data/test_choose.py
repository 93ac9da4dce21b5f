"""Which concepts an experiment takes: numbers, names and buckets, and what is said of anything else."""

import unicodedata

import numpy as np
import pytest
from omegaconf import OmegaConf

from experiments.data.concepts import BUCKETS, Concept, EmojiConcepts, select_concepts
from experiments.data.images import Images

NAMES = ("camel", "padlock", "0", "1", "jalapeño", "1.5")


def concepts() -> list[Concept]:
    blank = Images([], np.zeros)
    return [Concept(name, name, 1, BUCKETS[k % 2], blank) for k, name in enumerate(NAMES)]


def names(wanted, buckets=BUCKETS) -> list[str]:
    return [concept.name for concept in select_concepts(concepts(), wanted, buckets, seed=0)]


def test_names_numbers_and_all():
    assert names("all") == list(NAMES)
    assert names("camel") == ["camel"] and names(["padlock", "camel"]) == ["padlock", "camel"]
    assert len(names(1)) == 2 and set(names(1)) <= set(names(2))


def test_whole_numbers_in_a_list_are_names():
    """`'data.concepts=[0,1]'`: YAML makes numbers of them."""
    assert names(OmegaConf.create([0, 1])) == ["0", "1"]
    assert names(["1.5"]) == ["1.5"]


def test_names_are_compared_in_one_form():
    assert names([unicodedata.normalize("NFD", "jalapeño"), " camel "]) == ["jalapeño", "camel"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["camel", "camel"], "data.concepts holds 'camel' twice: name each concept once"),
        (["0", 0], "data.concepts holds '0' twice"),
        (["camel", "camel "], "data.concepts holds 'camel' and 'camel ', which are one name"),
        (["jalapeño", unicodedata.normalize("NFD", "jalapeño")], "which are one name"),
        ([7], "data.concepts names '7', which the data does not hold; nearest:"),
        (["camle"], "nearest: camel"),
        ("Camel", "nearest: camel"),
        ([""], "data.concepts holds an empty name"),
        ([True], "data.concepts holds True, which is no name: put it in quotes"),
        ([1.5], "data.concepts holds 1.5, which is no name"),
        ([None], "data.concepts holds None"),
        ([["camel"]], "data.concepts holds"),
        ([], "data.concepts=[]: give a number a bucket, 'all', or a list of names"),
        (None, "data.concepts=None: give"),
        (True, "data.concepts=True: give"),
        (2.5, "data.concepts=2.5: give"),
        ({"camel": 1}, "data.concepts={'camel': 1}: give"),
        (0, "data.concepts=0: ask for at least 1"),
        (-2, "data.concepts=-2: ask for at least 1"),
    ],
    ids=repr,
)
def test_what_are_no_concepts_is_said(wanted, message):
    with pytest.raises(ValueError) as caught:
        names(wanted)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ([], "data.buckets=[] is no list of buckets: write data.buckets=[head, medium, tail]"),
        ("tail", "data.buckets='tail' is no list of buckets: write data.buckets=[tail]"),
        ("tails", "data.buckets='tails' is no list of buckets: write data.buckets=[head, medium, tail]"),
        (None, "data.buckets=None is no list"),
        (3, "data.buckets=3 is no list"),
        (["tails"], "data.buckets names 'tails': choose from head, medium, tail"),
        ([3], "data.buckets names 3"),
        ([["tail"]], "data.buckets names ['tail']"),
        (["tail", "tail"], "data.buckets names 'tail' twice"),
        (["tail"], "no concept is in data.buckets=[tail], the data has head 3, medium 3, tail 0"),
    ],
    ids=repr,
)
def test_what_are_no_buckets_is_said(buckets, message):
    with pytest.raises(ValueError) as caught:
        names("all", buckets)
    assert message in str(caught.value)


def emoji(**changes) -> EmojiConcepts:
    settings = {"folder": "assets/emoji", "prompt": "a drawing of {phrase} on a {background} background",
                "background": "white", "head": 1000, "tail": 42}  # fmt: skip
    return EmojiConcepts(**settings | changes)


def test_the_embedded_drawings_have_a_size_of_their_own():
    source = emoji()
    concept = source.concepts()[0]
    assert concept.resized((64, 64)).references[:].shape == concept.references.shape == (3, 3, 64, 64)
    for images in (concept.references, source.real_images(), source.held_out()[concept.name]):
        with pytest.raises(ValueError, match=r"images have 64 x 64 pixels .*, the checkpoint's 512 x 512: choose"):
            images.resized((512, 512))


@pytest.mark.parametrize("prompt", ["a drawing of {}", "a drawing", "a {name}", "a {phrase", "{phrase} {style}"])
def test_malformed_templates_of_the_embedded_corpus_are_refused(prompt):
    assert "{background}" not in emoji(prompt="a drawing of {phrase}").prompt
    with pytest.raises(ValueError, match=r"data\.source\.prompt=.* must hold \{phrase\}, may hold \{background\}"):
        emoji(prompt=prompt)
