"""Names survive the way through files, whatever signs they hold; only .csv knows quotation marks."""

import re

import pytest

from experiments.counting.count_captions import write_counts
from experiments.counting.counts import read_count_table
from experiments.counting.names import read_names
from experiments.counting.rows import read_rows

HARD = ['"open quote', '7" record', '"quoted"', "tab\there", "line\nbreak", "carriage\rreturn", "back\\slash", "a\\tb",
        "comma, here", "#escaped", "index", "名", "'single'", '""', "\\", "two  blanks"]  # fmt: skip


@pytest.mark.parametrize("ending", [".tsv", ".csv", ".json"])
@pytest.mark.parametrize(
    "names", [HARD, HARD[::-1], ["index", "cat"], ['"a', 'b"'], ["#escaped"], *([name] for name in HARD)]
)
def test_counts_are_read_as_written(tmp_path, ending, names):
    path = tmp_path / f"counts{ending}"
    write_counts(path, names, range(len(names)))
    assert list(read_count_table(path).counts.items()) == list(zip(names, range(len(names)), strict=True))


def test_plain_names_stand_as_they_are(tmp_path):
    write_counts(tmp_path / "counts.tsv", ['"open', "a\\b"], [1, 2])
    assert (tmp_path / "counts.tsv").read_text() == '"open\t1\na\\b\t2\n'


@pytest.mark.parametrize("ending", [".txt", ".tsv", ".TSV"])
def test_a_quotation_mark_takes_no_lines(tmp_path, ending):
    path = tmp_path / f"names{ending}"
    path.write_text('cat\n"open quote\ndog\n5" disk\tfloppy "A"\r\nhorse')
    names = read_names(str(path))
    assert list(names) == ["cat", '"open quote', "dog", '5" disk', "horse"]
    assert names['5" disk'] == ('5" disk', 'floppy "A"')


def test_a_quotation_mark_takes_no_counts(tmp_path):
    (tmp_path / "a.tsv").write_text('cat\t1\n"open\t2\ndog\t3\n')
    assert read_count_table(tmp_path / "a.tsv").counts == {"cat": 1, '"open': 2, "dog": 3}


@pytest.mark.parametrize("content", ['cat,1\n"dog,2\nhorse,3\n', 'cat,1\n"dog" x,2\n'])
@pytest.mark.parametrize("read", [read_names, read_count_table])
def test_csv_with_an_open_quotation_mark_is_refused(tmp_path, content, read):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=r"a\.csv has a quotation mark that is not closed .*: close it") as error:
        read(str(tmp_path / "a.csv"))
    assert "\n" not in str(error.value)


def test_csv_quotes_and_doubled_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('"hot, dog",1\n"5"" disk",2\n')
    assert read_rows(tmp_path / "a.csv") == [["hot, dog", "1"], ['5" disk', "2"]]


@pytest.mark.parametrize("ending", [".txt", ".tsv", ".csv"])
def test_other_encodings_are_refused(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes("jalapeño\n".encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(f"a{ending} is not text in UTF-8")):
        read_names(str(tmp_path / f"a{ending}"))


def test_names_are_compared_in_one_form(tmp_path):
    (tmp_path / "a.txt").write_text("jalapen\u0303o\tchili\u0301\n\u00a0cat \n", encoding="utf-8")
    assert read_names(str(tmp_path / "a.txt")) == {"jalape\u00f1o": ("jalape\u00f1o", "chil\u00ed"), "cat": ("cat",)}
    (tmp_path / "a.tsv").write_text("jalapen\u0303o\t3\ncat \t4\n", encoding="utf-8")
    assert read_count_table(tmp_path / "a.tsv").counts == {"jalape\u00f1o": 3, "cat": 4}


def test_names_that_become_one_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("jalapen\u0303o\njalape\u00f1o\n", encoding="utf-8")
    (tmp_path / "a.tsv").write_text("jalapen\u0303o\t3\njalape\u00f1o\t4\n", encoding="utf-8")
    for read, name in ((read_names, "a.txt"), (read_count_table, "a.tsv")):
        with pytest.raises(ValueError, match=rf"{re.escape(name)} holds .* which are one name"):
            read(str(tmp_path / name))
