"""Counting names in shards of captions: equal to the plain counter, resumable, each shard once, by any engine."""

import json
import random
import re
import signal
import subprocess
import sys
import unicodedata
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.data import count_captions
from experiments.data.count_captions import main
from experiments.data.count_matcher import BatchCounter, count_mentions, patterns, read_words
from experiments.data.count_names import read_names
from experiments.data.count_shards import Shard, count_shard, list_shards
from experiments.data.counts import read_count_table
from experiments.data.frequency import mentions, normalise

ROOT = Path(__file__).parents[2]
NAMES = {
    "cat": ("cat", "tom cat"),
    "dog": ("dog", "hound"),
    "hot dog": ("hot dog",),
    "house of cards": ("house of cards", "card house of dogs"),
    "T-shirt": ("T-shirt", "tee"),
    "café": ("café", "Straße"),
    "cat again": ("cat again", "cat"),
    "photographers": ("photographers", "photographer"),
    "猫": ("猫",),
}
PARTS = [
    "cat", "Cats", "TOM", "hot", "dog", "DOGS", "hound's", "house", "of", "cards", "card", "tee", "shirt", "T-Shirt",
    "tshirts", "cafe\u0301", "CAFÉ", "ｃａｆé", "strasse", "Straße", "STRASSEN", "猫", "photographer", "photographic",
    "photographers", "category", "concat", "house of cards", "Houses-of cards", "card house of", "hot-dog",
    "ﬁsh", "½", "№", "\u0301", "=\u0338", "\u0345", "ŉ", "’", "–", "_", "-", "1", "\n", "\t", "\x00",
    "\u2028", "İ", "ς", "각", "\u1100\u1161", "\u0e33", "🐈", "𝐜𝐚𝐭", "x" * 300,
]  # fmt: skip


def random_captions(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    joins = ["", " ", " ", " ", "  ", "-", ", ", "\n"]
    return ["".join(rng.choice(PARTS) + rng.choice(joins) for _ in range(rng.randrange(9))) for _ in range(n)]


def plain_counts(names: dict[str, tuple[str, ...]], captions: list[str]) -> dict[str, int]:
    """What a mention is, without anything that saves time."""
    forms, texts = mentions(names), [normalise(caption) for caption in captions]
    found = {form: {k for k, text in enumerate(texts) if form in text} for form in forms}
    return {name: len(set().union(*(found[f] for f, owners in forms.items() if name in owners))) for name in names}


def batch_counts(names: dict[str, tuple[str, ...]], captions: list[str]) -> dict[str, int]:
    return count_mentions(names, pa.array(captions, pa.string()))


@pytest.mark.parametrize(("size", "seeds"), [(1, 20), (2, 20), (7, 20), (3000, 3), (9001, 1)])
def test_batches_count_as_the_plain_counter(size, seeds):
    for seed in range(seeds):
        captions = random_captions(seed, size)
        assert batch_counts(NAMES, captions) == plain_counts(NAMES, captions)
    expected = plain_counts(NAMES, random_captions(0, 3000))
    assert min(expected.values()) > 5  # every name is met, the rarest of four words too


def test_hashes_only_save_time():
    """Counts are exact even where every word passes for one of a name."""
    captions = random_captions(0, 1000)
    counter = BatchCounter(patterns(NAMES), len(NAMES))
    exact = counter.count(pa.array(captions))
    counter._places[:], counter._pairs[:] = 7, True
    assert counter.count(pa.array(captions)).tolist() == exact.tolist()


def test_many_names():
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnprst"]
    rng = random.Random(0)
    names = {name: (name,) for name in {" ".join(rng.choices(words, k=rng.randint(1, 3))) for _ in range(1000)}}
    captions = [" ".join(rng.choices(words, k=8)) for _ in range(1000)]
    assert batch_counts(names, captions) == plain_counts(names, captions)


def test_each_character_beside_letters_is_normalised_as_alone():
    """Every assigned character of Unicode at the start and at the end of a caption, beside letters."""
    scalars = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    assert len(scalars) > 140_000
    for start in range(0, len(scalars), 40_000):
        captions = [f"{c}a=b{c}" for c in scalars[start : start + 40_000]]
        words = read_words(pa.array(captions))
        text, at = words.text.tobytes(), np.searchsorted(words.starts, words.captions)
        for k, caption in enumerate(captions):
            span = slice(at[k], at[k + 1] if k + 1 < len(at) else None)
            found = b" ".join(text[s:e] for s, e in zip(words.starts[span], words.ends[span], strict=True))
            assert f" {found.decode()} " == normalise(caption), hex(ord(caption[0]))


def test_ascii_signs_change_nothing_in_the_marks_that_follow():
    """What allows normalising the words apart, for every combining mark."""
    signs = [chr(c) for c in range(128) if not chr(c).isalnum()]
    for mark in (chr(c) for c in range(0x110000) if unicodedata.combining(chr(c))):
        for tail in (mark, f"{mark}\u0338a"):
            assert {normalise(sign + tail) for sign in signs} == {normalise(tail)}


TEXT = pa.string()


@pytest.mark.parametrize("kind", [TEXT, pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), TEXT)])
def test_every_kind_of_text_and_nulls(tmp_path, kind):
    captions = ["a cat", None, "", "hot dogs", None, "dog"]
    table = pa.table({"url": pa.array(range(6)), "text": pa.array(captions, TEXT).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    (shard,) = list_shards([str(tmp_path / "a.parquet")])
    counts = count_shard(shard, "text", patterns(NAMES), len(NAMES))
    assert (counts.captions, counts.nulls) == (4, 2)
    assert dict(zip(NAMES, counts.counts, strict=True)) == plain_counts(NAMES, [c for c in captions if c])


def test_arrays_that_are_slices():
    captions = pa.array(["a cat", "a dog", "hot dog", "tee"])
    counts = BatchCounter(patterns(NAMES), len(NAMES)).count(captions[1:3])
    assert dict(zip(NAMES, counts.tolist(), strict=True)) == plain_counts(NAMES, ["a dog", "hot dog"])


def test_only_the_caption_column_is_read(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).bytes(3_000_000)
    images = pa.array([noise[k : k + 1000] for k in range(0, len(noise), 1000)])
    pq.write_table(pa.table({"image": images, "caption": ["a cat"] * len(images)}), tmp_path / "a.parquet")
    (shard,) = list_shards([str(tmp_path / "a.parquet")])
    read = []
    opened = count_shard.__globals__["url_to_fs"](shard.url)[0].__class__._open

    def watched(self, *args, **kwargs):
        file = opened(self, *args, **kwargs)
        plain = file.f.read
        file.read = lambda *size: read.append(len(data := plain(*size))) or data
        return file

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem._open", watched)
    assert count_shard(shard, "caption", patterns(NAMES), len(NAMES)).counts[0] == 3000
    assert 0 < sum(read) < 200_000


def write_shard(path: Path, captions: list[str], column: str = "caption") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: captions, "url": [str(k) for k in range(len(captions))]}), path)


@pytest.fixture
def corpus(tmp_path) -> Path:
    for k in range(4):
        write_shard(tmp_path / "shards" / f"{k}.parquet", random_captions(k, 50))
    (tmp_path / "names.json").write_text(json.dumps(NAMES), encoding="utf-8")
    return tmp_path


def command(corpus: Path, *more: str, shards: tuple[str, ...] = ("shards",)) -> list[str]:
    places = [f"{corpus}/{shard}" for shard in shards]
    return [*places, "--names", f"{corpus}/names.json", "--output", f"{corpus}/counts.tsv", *more]


@pytest.fixture
def here(monkeypatch):
    """Counts in this process, and lists the shards that are counted."""
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import contextmanager

    counted = []

    @contextmanager
    def thread(workers):
        with ThreadPoolExecutor(1) as pool:
            yield pool, lambda argument: argument

    def count(shard: Shard, *question):
        counted.append(Path(shard.url).name)
        return count_shard(shard, *question)

    monkeypatch.setattr(count_captions, "processes", thread)
    monkeypatch.setattr(count_captions, "count_shard", count)
    return counted


def expected(*seeds: int) -> dict[str, int]:
    return plain_counts(NAMES, [caption for seed in seeds for caption in random_captions(seed, 50)])


def test_command_counts_and_says_from_what(corpus, here, capsys):
    main(command(corpus))
    assert read_count_table(corpus / "counts.tsv").counts == expected(0, 1, 2, 3)
    source = json.loads((corpus / "counts.tsv.provenance.json").read_text())
    assert (source["captions"], source["nulls"], source["column"]) == (200, 0, "caption")
    assert len(source["forms_sha256"]) == 64
    assert [Path(shard["url"]).name for shard in source["shards"]] == [f"{k}.parquet" for k in range(4)]
    assert f"{len(NAMES)} names in 200 captions of 4 shards" in capsys.readouterr().out


def test_outputs_of_every_format(corpus, here):
    for suffix in ("csv", "json"):
        main([*command(corpus), "--output", f"{corpus}/counts.{suffix}"])
        assert read_count_table(corpus / f"counts.{suffix}").counts == expected(0, 1, 2, 3)


def test_a_run_goes_on_where_the_last_one_stopped(corpus, here):
    main(command(corpus, shards=("shards/0.parquet", "shards/2.parquet")))
    here.clear()
    main(command(corpus))
    assert sorted(here) == ["1.parquet", "3.parquet"]
    assert read_count_table(corpus / "counts.tsv").counts == expected(0, 1, 2, 3)
    here.clear()
    main(command(corpus))
    assert here == []


def test_damaged_counts_changed_shards_and_other_names_are_counted_anew(corpus, here):
    main(command(corpus))
    next((corpus / "counts.tsv.shards").iterdir()).write_text('{"counts"')
    here.clear()
    main(command(corpus))
    assert len(here) == 1
    here.clear()
    write_shard(corpus / "shards" / "1.parquet", random_captions(9, 60))
    main(command(corpus))
    assert here == ["1.parquet"]
    here.clear()
    (corpus / "names.json").write_text('["cat"]')
    main(command(corpus))
    assert len(here) == 4
    assert list(read_count_table(corpus / "counts.tsv").counts) == ["cat"]


def test_shards_named_twice_and_copies_count_once(corpus, here, capsys):
    (corpus / "shards" / "copy of 1.parquet").write_bytes((corpus / "shards" / "1.parquet").read_bytes())
    main(command(corpus, shards=("shards", "shards/0.parquet", "shards/*.parquet", "shards/../shards/0.parquet")))
    assert len(here) == 5
    assert read_count_table(corpus / "counts.tsv").counts == expected(0, 1, 2, 3)
    assert re.search(r"copy of 1\.parquet|1\.parquet repeats", capsys.readouterr().out)
    assert len(json.loads((corpus / "counts.tsv.provenance.json").read_text())["copies"]) == 1


def test_a_bad_shard_costs_no_other_and_leaves_no_output(corpus, here, capsys):
    bad = corpus / "shards" / "2.parquet"
    good = bad.read_bytes()
    bad.write_bytes(good[:-30])
    with pytest.raises(SystemExit):
        main(command(corpus))
    assert re.search(r"1 of 4 shards failed.*2\.parquet cannot be read as Parquet", capsys.readouterr().err)
    assert not (corpus / "counts.tsv").exists()
    bad.write_bytes(good)
    here.clear()
    main(command(corpus))
    assert here == ["2.parquet"]
    assert read_count_table(corpus / "counts.tsv").counts == expected(0, 1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--column", "TEXT"], r"no column 'TEXT' \(its columns: caption, url\): set --column"),
        (["--names", "names.xml"], "is no file of names"),
        (["--names", "none.txt"], "does not exist"),
        (["--output", "counts.txt"], r"must end in \.tsv, \.csv or \.json"),
        (["--workers", "0"], "--workers 0"),
        (["--scheduler", "tcp://host:1"], "--scheduler needs --engine dask"),
        (["--storage", "[1]"], "must be a JSON object"),
        (["--storage", "{"], "must be a JSON object"),
    ],
)
def test_bad_options_are_answered_in_one_line(corpus, here, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        main([*command(corpus), *changes])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and re.search(message, error)


def test_bad_shards_are_named(corpus):
    for place, message in (("none", "names no Parquet"), ("*.csv", "names no Parquet"), ("x", "names no Parquet")):
        with pytest.raises(ValueError, match=message):
            list_shards([f"{corpus}/{place}"])
    with pytest.raises(ValueError, match="cannot be listed"):
        list_shards(["nosuch://bucket/a.parquet"])
    pq.write_table(pa.table({"caption": [1, 2]}), corpus / "numbers.parquet")
    with pytest.raises(ValueError, match="holds int64 in the column 'caption'"):
        count_shard(*list_shards([f"{corpus}/numbers.parquet"]), "caption", patterns(NAMES), len(NAMES))


def test_remote_shards():
    """Another file system than the local one, through the same code as ``s3://``."""
    memory = fsspec.filesystem("memory")
    for k in range(2):
        with memory.open(f"/bucket/{k}.parquet", "wb") as file:
            pq.write_table(pa.table({"caption": random_captions(k, 50)}), file)
    shards = list_shards(["memory://bucket/*.parquet", "memory://bucket/0.parquet"])
    counts = [count_shard(shard, "caption", patterns(NAMES), len(NAMES)).counts for shard in shards]
    assert dict(zip(NAMES, np.sum(counts, axis=0).tolist(), strict=True)) == expected(0, 1)


def test_shards_in_s3(corpus, here):
    """A server of S3 on this machine; its tags of versions tell a shard that was written again."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        storage = {"key": "user", "secret": "hidden", "endpoint_url": f"http://{host}:{port}"}
        bucket = fsspec.filesystem("s3", **storage)
        bucket.mkdir("bucket")
        bucket.put(f"{corpus}/shards/*.parquet", "bucket/")
        argv = command(corpus, "--storage", json.dumps(storage))
        argv[0] = "s3://bucket/*.parquet"
        main(argv)
        assert read_count_table(corpus / "counts.tsv").counts == expected(0, 1, 2, 3)
        here.clear()
        bucket.put(f"{corpus}/shards/3.parquet", "bucket/2.parquet")
        bucket.invalidate_cache()
        main(argv)
        assert here == ["2.parquet"]  # now a copy of another
        assert read_count_table(corpus / "counts.tsv").counts == expected(0, 1, 3)
        assert not any("hidden" in path.read_text() for path in corpus.rglob("*.json"))
    finally:
        server.stop()


ENGINES = [
    "processes",
    pytest.param("dask", marks=pytest.mark.skipif(not find_spec("distributed"), reason="Dask is not installed")),
]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_workers(corpus, engine):
    argv = command(corpus, "--workers", "2", "--engine", engine)
    run = [sys.executable, "-m", "experiments.data.count_captions", *argv]
    subprocess.run(run, check=True, cwd=ROOT, capture_output=True, timeout=120)
    assert read_count_table(corpus / "counts.tsv").counts == expected(0, 1, 2, 3)
    assert len(list((corpus / "counts.tsv.shards").iterdir())) == 4


def test_workers_end_with_a_killed_parent():
    code = """
import os, signal
from experiments.data.count_engines import processes
with processes(1) as (pool, share):
    pool.submit(os.getpid).result()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    # The output closes when the last process that writes to it ends.
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert run.returncode == -signal.SIGKILL


def test_dask_missing_is_said(corpus, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(SystemExit):
        main(command(corpus, "--engine", "dask"))
    assert "pip install 'dask[distributed]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"), [(BrokenProcessPool(), "use fewer workers"), (RuntimeError("odd"), r"RuntimeError\('odd'\)")]
)
def test_a_worker_that_fails_costs_no_other_shard(corpus, here, monkeypatch, capsys, error, message):
    def fail_once(shard: Shard, *question):
        if shard.url.endswith("2.parquet"):
            raise error
        return count_shard(shard, *question)

    monkeypatch.setattr(count_captions, "count_shard", fail_once)
    with pytest.raises(SystemExit):
        main(command(corpus))
    assert re.search(rf"1 of 4 shards failed.*2\.parquet.*{message}", capsys.readouterr().err)
    assert len(list((corpus / "counts.tsv.shards").iterdir())) == 3


@pytest.mark.parametrize("method", ["ours", "plain", "polars", "duckdb"])
def test_benchmarked_methods_count_alike(tmp_path, method):
    from benchmarks.count_captions import METHODS, measure

    if method in ("polars", "duckdb"):
        pytest.importorskip(method)
    names = {"cat": ("cat", "tom cat"), "hot dog": ("hot dog",), "café": ("café",), "none": ("none",)}
    captions = ["Two CATS & tom cats", "hot-dogs; hot dog", "category", "Café – cat", "cafe\u0301", "", "of hot"]
    write_shard(tmp_path / "a.parquet", captions)
    counts, _ = measure(METHODS[method](tmp_path / "a.parquet", "caption", names), repeats=1)
    assert counts == {"cat": 2, "hot dog": 1, "café": 2, "none": 0}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.txt", "tench\tTinca tinca\n\ncat\n"),
        ("a.tsv", "\ufefftench\tTinca tinca\ncat\tcat\n"),
        ("a.csv", "tench, Tinca tinca\ncat\n"),
        ("a.json", '{"tench": ["Tinca tinca"], "cat": []}'),
    ],
)
def test_names_of_every_format(tmp_path, file, content):
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert read_names(str(tmp_path / file)) == {"tench": ("tench", "Tinca tinca"), "cat": ("cat",)}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", "cat\ncat\tpuss\n", "'cat' twice"),
        ("a.json", '{"cat": [], "cat": []}', "'cat' twice"),
        ("a.json", '{"cat": "puss"}', "a list of synonyms"),
        ("a.json", '{"cat": [1]}', "a list of synonyms"),
        ("a.json", "[3]", "a list of synonyms"),
        ("a.json", "3", "must hold a list"),
        ("a.json", "{", "cannot be read"),
        ("a.txt", "\n", "holds no names"),
    ],
)
def test_bad_names(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_names(str(tmp_path / file))


def test_names_without_letters_are_refused():
    with pytest.raises(ValueError, match="'!!!' has no letter or digit"):
        patterns({"!!!": ("!!!",)})


def test_imagenet_names():
    names = read_names("imagenet1k")
    assert len(names) == 1000 and names["crane (n02012849)"] == ("crane",)
    captions = ["a tench", "Tinca tinca", "two cranes", "JACK-O-LANTERNS"]
    counts = batch_counts(names, captions)
    assert {name: n for name, n in counts.items() if n} == {
        "tench": 2, "crane (n02012849)": 1, "crane (n03126707)": 1, "jack-o'-lantern": 1,
        "jackfruit": 1,
    }  # fmt: skip  # jack is a synonym of jackfruit
