"""The command ``count_captions`` resumes, counts each shard once, and gives the same counts with any engine."""

import json
import re
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.counting import count_captions
from experiments.counting.count_captions import main
from experiments.counting.counts import read_count_table
from experiments.counting.matcher import patterns
from experiments.counting.shards import Shard, count_shard, list_shards
from tests.experiments.counting.captions import NAMES, random_captions, reference_counts

ROOT = Path(__file__).parents[3]


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
    paths = [f"{corpus}/{shard}" for shard in shards]
    return [*paths, "--names", f"{corpus}/names.json", "--output", f"{corpus}/counts.tsv", *more]


@pytest.fixture
def here(monkeypatch):
    """Counts in this process; the list of counted shards."""
    from concurrent.futures import ThreadPoolExecutor
    from contextlib import contextmanager

    counted = []

    @contextmanager
    def thread(workers):
        with ThreadPoolExecutor(1) as pool:
            yield pool, lambda argument: argument

    def count(shard: Shard, *query):
        counted.append(Path(shard.url).name)
        return count_shard(shard, *query)

    monkeypatch.setattr(count_captions, "processes", thread)
    monkeypatch.setattr(count_captions, "count_shard", count)
    return counted


def expected(*seeds: int) -> dict[str, int]:
    return reference_counts(NAMES, [caption for seed in seeds for caption in random_captions(seed, 50)])


@pytest.mark.slow
def test_command_writes_counts_and_provenance(corpus, here, capsys):
    main(command(corpus))
    assert read_count_table(corpus / "counts.tsv").counts == expected(0, 1, 2, 3)
    source = json.loads((corpus / "counts.tsv.provenance.json").read_text())
    assert (source["captions"], source["nulls"], source["column"]) == (200, 0, "caption")
    assert len(source["forms_sha256"]) == 64
    assert [Path(shard["url"]).name for shard in source["shards"]] == [f"{k}.parquet" for k in range(4)]
    assert f"{len(NAMES)} names in 200 captions of 4 shards" in capsys.readouterr().out


@pytest.mark.slow
def test_every_output_format(corpus, here):
    for suffix in ("csv", "json"):
        main([*command(corpus), "--output", f"{corpus}/counts.{suffix}"])
        assert read_count_table(corpus / f"counts.{suffix}").counts == expected(0, 1, 2, 3)


def test_interrupted_run_resumes(corpus, here):
    main(command(corpus, shards=("shards/0.parquet", "shards/2.parquet")))
    here.clear()
    main(command(corpus))
    assert sorted(here) == ["1.parquet", "3.parquet"]
    assert read_count_table(corpus / "counts.tsv").counts == expected(0, 1, 2, 3)
    here.clear()
    main(command(corpus))
    assert here == []


def test_invalid_cache_entries_are_recomputed(corpus, here):
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
    (corpus / "names.json").write_text('{"cat": []}')
    main(command(corpus))
    assert len(here) == 4
    assert list(read_count_table(corpus / "counts.tsv").counts) == ["cat"]


def test_repeated_shards_and_copies_count_once(corpus, here, capsys):
    (corpus / "shards" / "copy of 1.parquet").write_bytes((corpus / "shards" / "1.parquet").read_bytes())
    main(command(corpus, shards=("shards", "shards/0.parquet", "shards/*.parquet", "shards/../shards/0.parquet")))
    assert len(here) == 5
    assert read_count_table(corpus / "counts.tsv").counts == expected(0, 1, 2, 3)
    assert re.search(r"copy of 1\.parquet|1\.parquet repeats", capsys.readouterr().out)
    assert len(json.loads((corpus / "counts.tsv.provenance.json").read_text())["copies"]) == 1


def test_damaged_shard_keeps_other_counts(corpus, here, capsys):
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
        (["--names", "names.xml"], "is not a file of names"),
        (["--names", "none.txt"], "does not exist"),
        (["--output", "counts.txt"], r"must end in \.tsv, \.csv or \.json"),
        (["--workers", "0"], "--workers 0"),
        (["--scheduler", "tcp://host:1"], "--scheduler needs --engine dask"),
        (["--storage", "[1]"], "must be a JSON object"),
        (["--storage", "{"], "must be a JSON object"),
    ],
)
def test_invalid_options_give_one_line_errors(corpus, here, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        main([*command(corpus), *changes])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and re.search(message, error)


def test_unwritable_output_fails_before_counting(corpus, here, capsys):
    for output in ("names.json/counts.tsv", "folder.tsv"):
        (corpus / "folder.tsv").mkdir(exist_ok=True)
        with pytest.raises(SystemExit) as stop:
            main([*command(corpus), "--output", f"{corpus}/{output}"])
        assert stop.value.code == 2 and f"{output} cannot be written" in capsys.readouterr().err
    assert here == []


def test_invalid_shards_are_named(corpus):
    for pattern in ("none", "*.csv", "x"):
        with pytest.raises(ValueError, match="matches no Parquet"):
            list_shards([f"{corpus}/{pattern}"])
    with pytest.raises(ValueError, match="cannot be listed"):
        list_shards(["nosuch://bucket/a.parquet"])
    pq.write_table(pa.table({"caption": [1, 2]}), corpus / "numbers.parquet")
    with pytest.raises(ValueError, match="has int64 in the column 'caption'"):
        count_shard(*list_shards([f"{corpus}/numbers.parquet"]), "caption", patterns(NAMES), len(NAMES))


def test_remote_shards():
    """An in-memory file system, through the same code as ``s3://``."""
    memory = fsspec.filesystem("memory")
    for k in range(2):
        with memory.open(f"/bucket/{k}.parquet", "wb") as file:
            pq.write_table(pa.table({"caption": random_captions(k, 50)}), file)
    shards = list_shards(["memory://bucket/*.parquet", "memory://bucket/0.parquet"])
    counts = [count_shard(shard, "caption", patterns(NAMES), len(NAMES)).counts for shard in shards]
    assert dict(zip(NAMES, np.sum(counts, axis=0).tolist(), strict=True)) == expected(0, 1)


def test_shards_in_s3(corpus, here):
    """A local S3 server; its version tags identify a replaced shard."""
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
    run = [sys.executable, "-m", "experiments.counting.count_captions", *argv]
    subprocess.run(run, check=True, cwd=ROOT, capture_output=True, timeout=6000)
    assert read_count_table(corpus / "counts.tsv").counts == expected(0, 1, 2, 3)
    assert len(list((corpus / "counts.tsv.shards").iterdir())) == 4


def test_workers_exit_when_the_parent_is_killed():
    code = """
import os, signal
from experiments.counting.count_engines import processes
with processes(1) as (pool, share):
    pool.submit(os.getpid).result()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    # The output closes when the last process that writes to it exits.
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=600)
    assert run.returncode == -signal.SIGKILL


def test_missing_dask_is_an_error(corpus, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(SystemExit):
        main(command(corpus, "--engine", "dask"))
    assert "pip install 'dask[distributed]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"), [(BrokenProcessPool(), "reduce --workers"), (RuntimeError("odd"), r"RuntimeError\('odd'\)")]
)
def test_failing_worker_keeps_other_counts(corpus, here, monkeypatch, capsys, error, message):
    def fail_once(shard: Shard, *query):
        if shard.url.endswith("2.parquet"):
            raise error
        return count_shard(shard, *query)

    monkeypatch.setattr(count_captions, "count_shard", fail_once)
    with pytest.raises(SystemExit):
        main(command(corpus))
    assert re.search(rf"1 of 4 shards failed.*2\.parquet.*{message}", capsys.readouterr().err)
    assert len(list((corpus / "counts.tsv.shards").iterdir())) == 3


@pytest.mark.parametrize("method", ["batched", "automaton", "polars", "duckdb"])
def test_benchmarked_methods_give_equal_counts(tmp_path, method):
    from benchmarks.count_captions import METHODS, measure

    if method in ("polars", "duckdb"):
        pytest.importorskip(method)
    names = {"cat": ("cat", "tom cat"), "hot dog": ("hot dog",), "café": ("café",), "none": ("none",)}
    captions = ["Two CATS & tom cats", "hot-dogs; hot dog", "category", "Café – cat", "cafe\u0301", "", "of hot"]
    write_shard(tmp_path / "a.parquet", captions)
    counts, _ = measure(METHODS[method](tmp_path / "a.parquet", "caption", names), repeats=1)
    assert counts == {"cat": 2, "hot dog": 1, "café": 2, "none": 0}
