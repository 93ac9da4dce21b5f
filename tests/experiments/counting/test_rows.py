"""Names with special characters are equal after writing and reading. Only .csv files have quotation marks."""

import re

import pytest

from experiments.counting.count_captions import write_counts
from experiments.counting.counts import read_count_table
from experiments.counting.names import read_names
from experiments.counting.rows import check_tsv_cells
from rnri.tables import read_rows

HARD = ['"open quote', '7" record', '"quoted"', "back\\slash", "a\\tb", "comma, here", "index", "名", "'single'", '""',
        "\\", "two  blanks"]  # fmt: skip
BREAKS = ["tab\there", "line\nbreak", "carriage\rreturn"]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".json"])
@pytest.mark.parametrize("names", [HARD, HARD[::-1], ["index", "cat"], *([name] for name in HARD)])
def test_written_counts_are_read_back(tmp_path, suffix, names):
    path = tmp_path / f"counts{suffix}"
    write_counts(path, names, range(len(names)))
    assert list(read_count_table(path).counts.items()) == list(zip(names, range(len(names)), strict=True))


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_tabs_and_line_breaks_need_csv_or_json(tmp_path, suffix):
    path = tmp_path / f"counts{suffix}"
    write_counts(path, BREAKS, range(3))
    assert list(read_count_table(path).counts) == BREAKS
    for name in BREAKS:
        with pytest.raises(ValueError, match=r"contains a tab or line break, which a \.tsv file cannot contain"):
            check_tsv_cells(["cat", name])


def test_tsv_is_written_without_quotes(tmp_path):
    write_counts(tmp_path / "counts.tsv", ['"open', "a\\b"], [1, 2])
    assert (tmp_path / "counts.tsv").read_text() == '"open\t1\na\\b\t2\n'


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".TSV"])
def test_quotation_marks_in_tsv_are_characters(tmp_path, suffix):
    path = tmp_path / f"names{suffix}"
    path.write_text('cat\n"open quote\ndog\n5" disk\tfloppy "A"\r\nhorse')
    names = read_names(str(path))
    assert list(names) == ["cat", '"open quote', "dog", '5" disk', "horse"]
    assert names['5" disk'] == ('5" disk', 'floppy "A"')


@pytest.mark.parametrize("content", ['cat,1\n"dog,2\nhorse,3\n', 'cat,1\n"dog" x,2\n'])
@pytest.mark.parametrize("read", [read_names, read_count_table])
def test_unclosed_quotation_mark_in_csv_is_an_error(tmp_path, content, read):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=r"a\.csv has a quotation mark that is not closed .*: close it") as error:
        read(str(tmp_path / "a.csv"))
    assert "\n" not in str(error.value)


def test_csv_quotes_and_doubled_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('"hot, dog",1\n"5"" disk",2\n')
    assert read_rows(tmp_path / "a.csv") == [["hot, dog", "1"], ['5" disk', "2"]]


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".csv"])
def test_other_encodings_are_errors(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes("jalapeño\n".encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(f"a{suffix} is not UTF-8")):
        read_names(str(tmp_path / f"a{suffix}"))


def test_names_are_normalized(tmp_path):
    (tmp_path / "a.txt").write_text("jalapen\u0303o\tchili\u0301\n\u00a0cat \n", encoding="utf-8")
    assert read_names(str(tmp_path / "a.txt")) == {"jalape\u00f1o": ("jalape\u00f1o", "chil\u00ed"), "cat": ("cat",)}
    (tmp_path / "a.tsv").write_text("jalapen\u0303o\t3\ncat \t4\n", encoding="utf-8")
    assert read_count_table(tmp_path / "a.tsv").counts == {"jalape\u00f1o": 3, "cat": 4}


def test_names_with_equal_normal_form_are_errors(tmp_path):
    (tmp_path / "a.txt").write_text("jalapen\u0303o\njalape\u00f1o\n", encoding="utf-8")
    (tmp_path / "a.tsv").write_text("jalapen\u0303o\t3\njalape\u00f1o\t4\n", encoding="utf-8")
    for read, name in ((read_names, "a.txt"), (read_count_table, "a.tsv")):
        with pytest.raises(ValueError, match=rf"{re.escape(name)} contains .* which are one name"):
            read(str(tmp_path / name))
