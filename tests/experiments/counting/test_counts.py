"""Files of counts: every format, where they come from, ImageNet's classes, buckets, and what is said of bad files."""

import hashlib
import json
from pathlib import Path

import pytest

from experiments.counting.counts import RANKS, bucket_sizes, main, read_count_table
from experiments.counting.frequency import bucket_by_rank, bucket_by_threshold
from experiments.counting.imagenet_counts import imagenet_classes, imagenet_counts

LAION = Path(__file__).resolve().parents[4] / "shared" / "data" / "laion" / "imagenet1k_laion2b_counts.tsv"


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("file", "content", "columns"),
    [
        ("a.tsv", "tiger cat\t3\nñandú\t0\n", ("1", "2")),
        ("a.TSV", "\ufefftiger cat\t3\n\nñandú\t0\n", ("1", "2")),
        ("a.csv", 'tiger cat,3\r\n"ñandú",0\r\n', ("1", "2")),
        ("a.tsv", "Name\tcount\ntiger cat\t3\nñandú\t0\n", ("NonEmptyStr", "count")),
        ("a.csv", "wnid,freq,class\nn1,3,tiger cat\nn2,0,ñandú\n", ("class", "freq")),
        ("a.json", '{"tiger cat": 3, "ñandú": 0}', ("key", "value")),
        ("a.json", '{"tiger cat": {"count": 3}, "ñandú": {"count": 0}}', ("key", "count")),
        ("a.json", '[{"name": "tiger cat", "count": 3}, {"name": "ñandú", "count": 0}]', ("name", "count")),
    ],
)
def test_every_format_gives_the_same_counts_and_says_where_they_come_from(write, file, content, columns):
    path = write(file, content)
    table = read_count_table(path)
    assert list(table.counts.items()) == [("tiger cat", 3), ("ñandú", 0)]
    assert (table.path, table.columns) == (str(path), columns)
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_columns_by_label(write):
    table = "id\tall\tfiltered\ncat\t9\t4\n"
    assert read_count_table(write("a.tsv", table), "id", "filtered").counts == {"cat": 4}
    nested = json.dumps({"7": {"actual_freq": 9, "relevant": 4}})
    assert read_count_table(write("a.json", nested), count="relevant").counts == {"7": 4}
    listed = json.dumps([{"id": 7, "n": 4}])
    assert read_count_table(write("b.json", listed), "id", "n").counts == {"7": 4}


@pytest.mark.parametrize(
    ("file", "content", "labels", "message"),
    [
        ("a.tsv", "id\tn\ncat\t9\n", ("id", "freq"), r"no column 'freq' \(its columns: id, n\): set count="),
        ("a.csv", "class,n\ncat,9\n", (None, None), "no column of counts by a usual label"),
        ("a.csv", "cat,9,1\ndog,8,2\n", (None, None), "two columns"),
        ("a.csv", "name,count\ncat,9\ndog\n", (None, None), r"row 3 has 1 cells"),
        ("a.csv", "cat,9\ncat,8\n", (None, None), "'cat' twice"),
        ("a.json", '{"cat": 9, "cat": 8}', (None, None), "'cat' twice"),
        ("a.tsv", "cat\t-1\n", (None, None), "count -1 for 'cat'"),
        ("a.tsv", "cat\t1.5\n", (None, None), "'cat' has the count '1.5'"),
        ("a.json", '{"cat": true}', (None, None), "'cat' has the count True"),
        ("a.json", '{"cat": null}', (None, None), "'cat' has the count None"),
        ("a.json", '{"cat": {"n": 1}}', (None, None), "no field 'count'"),
        ("a.json", '"cat"', (None, None), "an object or a list"),
        ("a.json", '{"cat": 1', (None, None), "not a table"),
        ("a.json", "{}", (None, None), "holds no counts"),
        ("a.tsv", "", (None, None), "is empty"),
        ("a.tsv", "name\tcount\n", (None, None), "holds no counts"),
        ("a.xlsx", "", (None, None), r"ends in '\.xlsx'"),
    ],
)
def test_bad_files_are_answered_in_one_sentence(write, file, content, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        read_count_table(write(file, content), *labels)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.csv does not exist"):
        read_count_table(tmp_path / "none.csv")


def test_imagenet_classes_have_unique_names():
    classes = imagenet_classes()
    assert len(classes) == len({c.name for c in classes}) == len({c.wnid for c in classes}) == 1000
    assert (classes[0].index, classes[0].wnid, classes[0].synonyms) == (0, "n01440764", ("tench", "Tinca tinca"))
    assert classes[134].name == "crane (n02012849)" and classes[517].name == "crane (n03126707)"


def test_imagenet_counts_by_index_id_and_name(write):
    for first, second in (("0", "134"), ("n01440764", "n02012849"), ("Tinca tinca", "crane (n02012849)")):
        table = read_count_table(write("a.tsv", f"{first}\t5\n{second}\t6\n"))
        assert imagenet_counts(table) == {0: 5, 134: 6}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("crane\t5\n", r"'crane' fits the classes \[134, 517\]"),
        ("wug\t5\n", "'wug' fits no class"),
        ("tench\t5\nTinca tinca\t6\n", r"two counts for class 0 \(tench\)"),
    ],
)
def test_names_that_do_not_fit_one_class(write, content, message):
    with pytest.raises(ValueError, match=message):
        imagenet_counts(read_count_table(write("a.tsv", content)))


def test_rows_in_the_order_of_indices(write):
    table = read_count_table(write("a.tsv", "".join(f"class {k}\t{k * k}\n" for k in range(1000))))
    assert imagenet_counts(table, rows_are_indices=True) == {k: k * k for k in range(1000)}
    with pytest.raises(ValueError, match="has 1 rows"):
        imagenet_counts(read_count_table(write("b.tsv", "cat\t1\n")), rows_are_indices=True)


def test_ranks():
    counts = {"d": 1, "b": 5, "a": 5, "c": 9}
    assert bucket_by_rank(counts, (2, 1, 1)) == {"d": "tail", "b": "medium", "a": "head", "c": "head"}
    assert bucket_sizes(bucket_by_rank(counts, (4, 0, 0))) == {"head": 4, "medium": 0, "tail": 0}
    for sizes in ((2, 1, 2), (5, 0, -1)):
        with pytest.raises(ValueError, match="do not add up to the 4 concepts"):
            bucket_by_rank(counts, sizes)


def test_command_prints_source_and_sizes(write, capsys):
    path = write("a.tsv", "a\t2000000\nb\t10000\nc\t9999\n")
    main([str(path)])
    out = capsys.readouterr().out
    assert hashlib.sha256(path.read_bytes()).hexdigest() in out and "head 1, medium 1, tail 1 of 3" in out
    main([str(path), "--ranks", "0", "1", "2"])
    assert "head 0, medium 1, tail 2 of 3" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([str(path), "--ranks", "1", "1", "2"])
    assert stop.value.code == 2 and "do not add up" in capsys.readouterr().err


@pytest.mark.skipif(not LAION.is_file(), reason="the counts of LAION-2B are not part of the project")
def test_laion_counts_of_imagenet():
    counts = imagenet_counts(read_count_table(LAION), rows_are_indices=True)
    assert (counts[0], counts[1]) == (5637, 139121)
    by_threshold = bucket_by_threshold(counts, head=1_000_000, tail=10_000)
    assert bucket_sizes(by_threshold) == {"head": 137, "medium": 711, "tail": 152}
    assert tuple(bucket_sizes(bucket_by_rank(counts, RANKS)).values()) == RANKS
