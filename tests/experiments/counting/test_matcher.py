"""The batch counter equals the reference implementation for any string, and reads only the column of captions."""

import random
import unicodedata
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.counting.matcher import BatchCounter, patterns, read_words
from experiments.counting.shards import count_shard, list_shards
from experiments.counting.text import normalize
from tests.experiments.counting.captions import NAMES, batch_counts, random_captions, random_text, reference_counts


@pytest.mark.slow
@pytest.mark.parametrize(("size", "seeds"), [(1, 20), (2, 20), (7, 20), (3000, 3), (9001, 1)])
def test_batch_counts_equal_reference(size, seeds):
    for seed in range(seeds):
        captions = random_captions(seed, size)
        assert batch_counts(NAMES, captions) == reference_counts(NAMES, captions)
    expected = reference_counts(NAMES, random_captions(0, 3000))
    assert min(expected.values()) > 5  # every name occurs, also the rarest one of four words


@pytest.mark.slow
def test_counts_are_exact_when_every_hash_collides():
    captions = random_captions(0, 1000)
    counter = BatchCounter(patterns(NAMES), len(NAMES))
    exact = counter.count(pa.array(captions))
    counter._roles[:] = 7
    counter._pairs[:] = True
    assert counter.count(pa.array(captions)).tolist() == exact.tolist()


def test_many_names():
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnprst"]
    rng = random.Random(0)
    names = {name: (name,) for name in {" ".join(rng.choices(words, k=rng.randint(1, 3))) for _ in range(1000)}}
    captions = [" ".join(rng.choices(words, k=8)) for _ in range(1000)]
    assert batch_counts(names, captions) == reference_counts(names, captions)


def read(captions: list[str]) -> list[str]:
    """The captions as the batch counter normalizes them."""
    words = read_words(pa.array(captions, pa.string()))
    text = words.text.tobytes()
    bounds = [*np.searchsorted(words.starts, words.captions), len(words.starts)]
    spans = [slice(*pair) for pair in pairwise(bounds)]
    pieces = [[text[s:e] for s, e in zip(words.starts[span], words.ends[span], strict=True)] for span in spans]
    return [f" {b' '.join(piece).decode()} " for piece in pieces]


@pytest.mark.slow
def test_words_are_normalized_independently_of_neighbors():
    """Every assigned character of Unicode at the start and at the end of a caption, next to letters."""
    scalars = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    assert len(scalars) > 140_000
    for start in range(0, len(scalars), 40_000):
        captions = [f"{c}a=b{c}" for c in scalars[start : start + 40_000]]
        assert read(captions) == [normalize(caption) for caption in captions]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_characters_of_all_scripts(seed):
    captions = random_text(seed, 4000)
    assert read(captions) == [normalize(caption) for caption in captions]
    names = {f"{k}": (name,) for k, name in enumerate(random_text(100 + seed, 300)) if normalize(name).strip()}
    expected = reference_counts(names, captions)
    assert batch_counts(names, captions) == expected
    assert sum(expected.values()) > 1000


def test_ascii_punctuation_does_not_combine_with_marks():
    """The condition for normalizing words one by one, for every combining mark."""
    punctuation = [chr(c) for c in range(128) if not chr(c).isalnum()]
    for mark in (chr(c) for c in range(0x110000) if unicodedata.combining(chr(c))):
        for tail in (mark, f"{mark}\u0338a"):
            assert {normalize(character + tail) for character in punctuation} == {normalize(tail)}


TEXT = pa.string()


@pytest.mark.parametrize("kind", [TEXT, pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), TEXT)])
def test_string_types_and_nulls(tmp_path, kind):
    captions = ["a cat", None, "", "hot dogs", None, "dog"]
    table = pa.table({"url": pa.array(range(6)), "text": pa.array(captions, TEXT).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    (shard,) = list_shards([str(tmp_path / "a.parquet")])
    counts = count_shard(shard, "text", patterns(NAMES), len(NAMES))
    assert (counts.captions, counts.nulls) == (4, 2)
    assert dict(zip(NAMES, counts.counts, strict=True)) == reference_counts(NAMES, [c for c in captions if c])


def test_sliced_arrays():
    captions = pa.array(["a cat", "a dog", "hot dog", "tee"])
    counts = BatchCounter(patterns(NAMES), len(NAMES)).count(captions[1:3])
    assert dict(zip(NAMES, counts.tolist(), strict=True)) == reference_counts(NAMES, ["a dog", "hot dog"])


def test_reads_only_the_caption_column(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).bytes(3_000_000)
    images = pa.array([noise[k : k + 1000] for k in range(0, len(noise), 1000)])
    pq.write_table(pa.table({"image": images, "caption": ["a cat"] * len(images)}), tmp_path / "a.parquet")
    (shard,) = list_shards([str(tmp_path / "a.parquet")])
    read = []
    opened = count_shard.__globals__["url_to_fs"](shard.url)[0].__class__._open

    def watched(self, *args, **kwargs):
        file = opened(self, *args, **kwargs)
        original = file.f.read
        file.read = lambda *size: read.append(len(data := original(*size))) or data
        return file

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem._open", watched)
    assert count_shard(shard, "caption", patterns(NAMES), len(NAMES)).counts[0] == 3000
    assert 0 < sum(read) < 200_000
