"""Selection of concepts by number, name and bucket, and the error messages of invalid selections."""

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


def names(selection, buckets=BUCKETS) -> list[str]:
    return [concept.name for concept in select_concepts(concepts(), selection, buckets, seed=0)]


def test_select_by_name_number_and_all():
    assert names("all") == list(NAMES)
    assert names("camel") == ["camel"] and names(["padlock", "camel"]) == ["padlock", "camel"]
    assert len(names(1)) == 2 and set(names(1)) <= set(names(2))


def test_integers_in_a_list_are_names():
    """`'data.concepts=[0,1]'`: YAML parses integers."""
    assert names(OmegaConf.create([0, 1])) == ["0", "1"]
    assert names(["1.5"]) == ["1.5"]


def test_names_are_normalized():
    assert names([unicodedata.normalize("NFD", "jalapeño"), " camel "]) == ["jalapeño", "camel"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (["camel", "camel"], "data.concepts contains 'camel' twice: name each concept once"),
        (["0", 0], "data.concepts contains '0' twice"),
        (["camel", "camel "], "data.concepts contains 'camel' and 'camel ', which are one name"),
        (["jalapeño", unicodedata.normalize("NFD", "jalapeño")], "which are one name"),
        ([7], "data.concepts contains '7', which is not in the data; similar:"),
        (["camle"], "similar: camel"),
        ("Camel", "similar: camel"),
        ([""], "data.concepts contains an empty name"),
        ([True], "data.concepts contains True, which is not a name: quote the value"),
        ([1.5], "data.concepts contains 1.5, which is not a name"),
        ([None], "data.concepts contains None"),
        ([["camel"]], "data.concepts contains"),
        ([], "data.concepts=[]: choose a number of concepts per bucket, a list of names, or all"),
        (None, "data.concepts=None: choose"),
        (True, "data.concepts=True: choose"),
        (2.5, "data.concepts=2.5: choose"),
        ({"camel": 1}, "data.concepts={'camel': 1}: choose"),
        (0, "data.concepts=0: choose a number >= 1"),
        (-2, "data.concepts=-2: choose a number >= 1"),
    ],
    ids=repr,
)
def test_invalid_selection_is_an_error(selection, message):
    with pytest.raises(ValueError) as caught:
        names(selection)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ([], "data.buckets=[] is not a list of buckets: write data.buckets=[head, medium, tail]"),
        ("tail", "data.buckets='tail' is not a list of buckets: write data.buckets=[tail]"),
        ("tails", "data.buckets='tails' is not a list of buckets: write data.buckets=[head, medium, tail]"),
        (None, "data.buckets=None is not a list"),
        (3, "data.buckets=3 is not a list"),
        (["tails"], "data.buckets contains 'tails': choose from head, medium, tail"),
        ([3], "data.buckets contains 3"),
        ([["tail"]], "data.buckets contains ['tail']"),
        (["tail", "tail"], "data.buckets contains 'tail' twice"),
        (["tail"], "data.buckets=[tail] select no concept, the data has head 3, medium 3, tail 0"),
    ],
    ids=repr,
)
def test_invalid_buckets_are_errors(buckets, message):
    with pytest.raises(ValueError) as caught:
        names("all", buckets)
    assert message in str(caught.value)


def emoji(**changes) -> EmojiConcepts:
    settings = {"folder": "assets/emoji", "prompt": "a drawing of {phrase} on a {background} background",
                "background": "white", "head": 1000, "tail": 42}  # fmt: skip
    return EmojiConcepts(**settings | changes)


def test_embedded_drawings_have_a_fixed_size():
    source = emoji()
    concept = source.concepts()[0]
    assert concept.resized((64, 64)).references[:].shape == concept.references.shape == (3, 3, 64, 64)
    for images in (concept.references, source.real_images(), source.labeled_real_images()[concept.name]):
        with pytest.raises(ValueError, match=r"64 x 64 pixels .*, but the checkpoint needs 512 x 512: choose"):
            images.resized((512, 512))


@pytest.mark.parametrize("prompt", ["a drawing of {}", "a drawing", "a {name}", "a {phrase", "{phrase} {style}"])
def test_invalid_prompt_template_is_an_error(prompt):
    assert "{background}" not in emoji(prompt="a drawing of {phrase}").prompt
    with pytest.raises(ValueError, match=r"data\.source\.prompt=.* contain \{phrase\}, may contain \{background\}"):
        emoji(prompt=prompt)
