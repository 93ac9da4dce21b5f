"""Links to shards are followed, and hidden and temporary files are skipped. Columns of nulls are valid."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.counting.matcher import patterns
from experiments.counting.shards import count_shard, list_shards

NAMES = {"cat": ["cat"]}


def write(path, captions):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"caption": captions}), path)
    return path


def counted(urls) -> tuple[int, int]:
    """Number of captions and of shards."""
    shards = list_shards([str(url) for url in urls])
    return sum(count_shard(shard, "caption", patterns(NAMES), 1).captions for shard in shards), len(shards)


@pytest.fixture
def hub(tmp_path):
    """The layout of the Hub cache: file names are links to blobs."""
    write(tmp_path / "blobs" / "abc", ["a cat", "two"])
    write(tmp_path / "blobs" / "def", ["three"])
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "0.parquet").symlink_to("../blobs/abc")
    (tmp_path / "snap" / "1.parquet").symlink_to("../blobs/def")
    return tmp_path


@pytest.mark.parametrize("asked", ["snap", "snap/*.parquet", "**/*.parquet"])
def test_links_are_followed(hub, asked):
    assert counted([hub / asked]) == (3, 2)


def test_path_of_a_link_is_read(hub):
    assert counted([hub / "snap" / "1.parquet"]) == (1, 1)


def test_link_has_the_identity_of_its_target(hub):
    before = list_shards([str(hub / "snap")])[0].identity
    write(hub / "blobs" / "abc", ["a cat", "two", "three more"])
    os.utime(hub / "blobs" / "abc", (1, 1))
    assert list_shards([str(hub / "snap")])[0].identity != before


@pytest.mark.parametrize("asked", ["snap", "snap/*.parquet"])
def test_broken_link_is_an_error(hub, asked):
    (hub / "snap" / "2.parquet").symlink_to("../blobs/missing")
    with pytest.raises(ValueError, match=r"2\.parquet is a broken link"):
        list_shards([str(hub / asked)])


@pytest.fixture
def linked(tmp_path):
    """A folder with a file, a subfolder, a link to another folder, and links that lead back."""
    write(tmp_path / "other" / "deep" / "2.parquet", ["a", "b", "c"])
    write(tmp_path / "named" / "0.parquet", ["a cat"])
    write(tmp_path / "named" / "sub" / "1.parquet", ["a", "b"])
    (tmp_path / "named" / "link").symlink_to("../other", target_is_directory=True)
    (tmp_path / "named" / "link.parquet").symlink_to("../other/deep", target_is_directory=True)
    (tmp_path / "other" / "back").symlink_to("../named", target_is_directory=True)
    (tmp_path / "named" / "itself").symlink_to(".", target_is_directory=True)
    (tmp_path / "all").symlink_to("named", target_is_directory=True)
    return tmp_path


@pytest.mark.parametrize("asked", ["named", "nam*", "all", "al*"])
def test_linked_folders_are_read_once(linked, asked):
    assert counted([linked / asked]) == (9, 4)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("named/link/deep/*.parquet", (3, 1)),
        ("named/li*/deep/*.parquet", (3, 1)),
        ("named/*/*.parquet", (9, 4)),
        ("named/s*", (2, 1)),
        ("named/link.*", (3, 1)),
        ("oth*/d*", (3, 1)),
    ],
)
def test_patterns_match_linked_folders(linked, asked, expected):
    assert counted([linked / asked]) == expected


@pytest.fixture
def spark(tmp_path):
    root = tmp_path / "hid"
    write(root / "part.parquet", ["a cat"])
    for name in (
        "_temporary/0/part.parquet",
        ".staging/part.parquet",
        "_part.parquet",
        ".part.parquet",
        "a/_b/c.parquet",
    ):
        write(root / name, ["not yet"])
    return root


@pytest.mark.parametrize("asked", ["", "*.parquet", "**/*.parquet"])
def test_hidden_and_temporary_files_are_skipped(spark, asked):
    assert counted([spark / asked if asked else spark]) == (1, 1)


def test_hive_partitions_are_read(tmp_path):
    write(tmp_path / "_lang=en" / "part.parquet", ["a cat"])
    assert counted([tmp_path]) == (1, 1)


@pytest.mark.parametrize("asked", ["_part.parquet", "_p*.parquet", "_temporary/*/part.parquet"])
def test_explicitly_named_hidden_files_are_read(spark, asked):
    assert counted([spark / asked]) == (1, 1)


def test_folder_in_a_hidden_path_is_read(tmp_path):
    write(tmp_path / "_cache" / ".hidden" / "part.parquet", ["a cat"])
    assert counted([tmp_path / "_cache" / ".hidden"]) == (1, 1)


@pytest.mark.parametrize(
    "kind", [pa.null(), pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("rows", [0, 3])
def test_shard_of_nulls_has_zero_counts(tmp_path, kind, rows):
    pq.write_table(pa.table({"caption": pa.array([None] * rows, kind)}), tmp_path / "part.parquet")
    (shard,) = list_shards([str(tmp_path)])
    result = count_shard(shard, "caption", patterns(NAMES), 1)
    assert (result.captions, result.nulls, result.counts) == (0, rows, (0,))
