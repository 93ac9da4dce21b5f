"""Count tables: layouts of files, provenance, ImageNet classes, buckets and error messages."""

import hashlib
import json
from pathlib import Path

import pytest

from experiments.counting.buckets import bucket_by_rank, bucket_by_threshold
from experiments.counting.counts import RANKS, bucket_sizes, main, read_count_table
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
    ("file", "content"),
    [
        ("a.tsv", "tiger cat\t3\nñandú\t0\n"),
        ("a.TSV", "\ufefftiger cat\t3\n\nñandú\t0\n"),
        ("a.csv", 'tiger cat,3\r\n"ñandú",0\r\n'),
        ("a.tsv", "Name\tcount\ntiger cat\t3\nñandú\t0\n"),
        ("a.csv", "class,Frequency\ntiger cat,3\nñandú,0\n"),
        ("a.json", '{"tiger cat": 3, "ñandú": 0}'),
    ],
)
def test_every_layout_gives_the_same_counts(write, file, content):
    path = write(file, content)
    table = read_count_table(path)
    assert list(table.counts.items()) == [("tiger cat", 3), ("ñandú", 0)]
    assert table.path == str(path)
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", ["tsv", "csv", "json"])
def test_names_are_read_letter_by_letter(write, suffix):
    expected = {name: k for k, name in enumerate(["None", "NA", "null", "nan", "007", "1e3", "True", "-", "#N/A"])}
    separator = "," if suffix == "csv" else "\t"
    rows = "".join(f"{name}{separator}{count}\n" for name, count in expected.items())
    path = write(f"a.{suffix}", json.dumps(expected) if suffix == "json" else rows)
    assert read_count_table(path).counts == expected


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.tsv", "id\tn\ncat\t9\n", "'id' has the count 'n'"),
        ("a.csv", "cat,9,1\ndog,8,2\n", "row 1 has 3 cells, not 2"),
        ("a.csv", "name,count\ncat,9\ndog\n", "row 3 has 1 cells"),
        ("a.csv", "cat,9\ncat,8\n", "'cat' twice"),
        ("a.json", '{"cat": 9, "cat": 8}', "'cat' twice"),
        ("a.tsv", "cat\t-1\n", "count -1 for 'cat'"),
        ("a.tsv", "cat\t1.5\n", "'cat' has the count '1.5'"),
        ("a.tsv", "cat\t1_000\n", "'cat' has the count '1_000'"),
        ("a.csv", 'cat,"1,000"\n', "'cat' has the count '1,000'"),
        ("a.csv", "cat,NA\n", "'cat' has the count 'NA'"),
        ("a.csv", "cat,\n", "'cat' has the count ''"),
        ("a.tsv", "cat\t٣\n", "'cat' has the count '٣'"),
        ("a.json", '{"cat": NaN}', "'cat' has the count nan"),
        ("a.json", '{"cat": "1_000"}', "'cat' has the count '1_000'"),
        ("a.json", '{"cat": true}', "'cat' has the count True"),
        ("a.json", '{"cat": null}', "'cat' has the count None"),
        ("a.json", '{"cat": {"n": 1}}', "'cat' has the count"),
        ("a.json", '[{"name": "cat", "count": 1}]', "an object that maps names to counts"),
        ("a.json", '"cat"', "an object that maps names to counts"),
        ("a.json", '{"cat": 1', "not a table"),
        ("a.json", "{}", "contains no counts"),
        ("a.tsv", "", "contains no counts"),
        ("a.tsv", "name\tcount\n", "contains no counts"),
        ("a.xlsx", "", r"ends in '\.xlsx'"),
    ],
)
def test_invalid_files_give_one_line_errors(write, file, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_count_table(write(file, content))
    assert "\n" not in str(error.value)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"none\.csv does not exist"):
        read_count_table(tmp_path / "none.csv")


def test_imagenet_classes_have_unique_names():
    classes = imagenet_classes()
    assert len(classes) == len({c.name for c in classes}) == len({c.wnid for c in classes}) == 1000
    assert (classes[0].index, classes[0].wnid, classes[0].synonyms) == (0, "n01440764", ("tench", "Tinca tinca"))
    assert classes[134].name == "crane (n02012849)" and classes[517].name == "crane (n03126707)"


def test_imagenet_counts_by_index_wordnet_id_and_name(write):
    for first, second in (("0", "134"), ("n01440764", "n02012849"), ("Tinca tinca", "crane (n02012849)")):
        table = read_count_table(write("a.tsv", f"{first}\t5\n{second}\t6\n"))
        assert imagenet_counts(table) == {0: 5, 134: 6}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("crane\t5\n", r"'crane' names the classes \[134, 517\]"),
        ("wug\t5\n", "'wug' is not a class"),
        ("tench\t5\nTinca tinca\t6\n", r"two counts for class 0 \(tench\)"),
    ],
)
def test_ambiguous_and_unknown_class_names_are_errors(write, content, message):
    with pytest.raises(ValueError, match=message):
        imagenet_counts(read_count_table(write("a.tsv", content)))


def test_rows_are_class_indices(write):
    table = read_count_table(write("a.tsv", "".join(f"class {k}\t{k * k}\n" for k in range(1000))))
    assert imagenet_counts(table, rows_are_indices=True) == {k: k * k for k in range(1000)}
    with pytest.raises(ValueError, match="has 1 rows"):
        imagenet_counts(read_count_table(write("b.tsv", "cat\t1\n")), rows_are_indices=True)


def test_buckets_by_rank():
    counts = {"d": 1, "b": 5, "a": 5, "c": 9}
    assert bucket_by_rank(counts, (2, 1, 1)) == {"d": "tail", "b": "medium", "a": "head", "c": "head"}
    assert bucket_sizes(bucket_by_rank(counts, (4, 0, 0))) == {"head": 4, "medium": 0, "tail": 0}
    for sizes in ((2, 1, 2), (5, 0, -1)):
        with pytest.raises(ValueError, match="do not add up to the 4 concepts"):
            bucket_by_rank(counts, sizes)


def test_command_prints_source_and_bucket_sizes(write, capsys):
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
