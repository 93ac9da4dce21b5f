"""Writing and reading of benchmarks in PIE-Bench's format, and the error messages of damaged benchmarks."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.editing import make_benchmark
from experiments.editing.benchmark import IMAGES, KINDS, MAPPING, SIDE, decode_mask, encode_mask, read_benchmark

SIZE = (64, 64)
SMALL = {"concept": 4, "background": 4, "style": 4, "added": 2, "removed": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small benchmark from the embedded corpus."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_benchmark, "COUNTS", SMALL)
        path = tmp_path_factory.mktemp("benchmark") / "ours"
        assert make_benchmark.write(path, "assets/emoji") == sum(SMALL.values())
    return path


@pytest.fixture(scope="module")
def edits(folder):
    return read_benchmark(folder)


def test_full_benchmark_has_four_hundred_edits():
    assert sum(make_benchmark.COUNTS.values()) >= 400


@pytest.mark.slow
def test_benchmark_has_every_kind(edits):
    kinds = Counter(KINDS[edit.kind] for edit in edits)
    assert kinds == {
        "change object": 4, "change background": 4, "change style": 4, "change attribute content": 4,
    }  # fmt: skip


def test_ground_truth_differs_only_inside_the_mask(edits):
    for edit in edits:
        image = edit.load_image(SIZE)
        target = edit.load_image(SIZE, target=True)
        mask = inner(edit)
        assert torch.equal(image[:, ~mask], target[:, ~mask])
        assert (image != target).any() and (~mask).float().mean() >= make_benchmark.MIN_BACKGROUND


def inner(edit):
    """The mask at the drawings' size, without the border that reading sets."""
    return torch.from_numpy(edit.mask[4::8, 4::8])


def test_resized_mask_matches_the_drawings(edits):
    for edit in edits:
        assert torch.equal(edit.resized_mask(SIZE), inner(edit))


def test_prompts_differ_in_the_blended_words(folder, edits):
    mapping = json.loads((folder / MAPPING).read_text())
    for edit in edits:
        before, after = edit.words
        assert edit.source != edit.target and before in edit.source.split() and after in edit.target.split()
        marked = mapping[edit.key]["editing_prompt"]
        assert marked.count("[") == marked.count("]") == 1 and "[" not in edit.target
        assert edit.concept in edit.target or KINDS[edit.kind] == "change object"


@pytest.mark.slow
def test_benchmark_is_deterministic(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(make_benchmark, "COUNTS", SMALL)
    make_benchmark.write(tmp_path / "again", "assets/emoji")
    for path in sorted(folder.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()


def test_decoded_masks_have_their_border_set():
    mask = np.random.default_rng(0).random((SIDE, SIDE)) < 0.5
    expected = mask.copy()
    expected[[0, -1]] = expected[:, [0, -1]] = True
    assert np.array_equal(decode_mask(encode_mask(mask)), expected)
    assert encode_mask(np.zeros((SIDE, SIDE), dtype=bool)) == []
    assert encode_mask(np.ones((SIDE, SIDE), dtype=bool)) == [0, SIDE * SIDE]


def test_runs_are_start_and_length_in_row_order():
    mask = decode_mask([SIDE + 3, 2])
    assert mask[1, 3] and mask[1, 4] and not mask[1, 2] and not mask[1, 5] and not mask[2, 3]


def single_edit(folder, **changes):
    """A benchmark folder with one edit that has only PIE-Bench's own fields."""
    (folder / IMAGES / "0_random").mkdir(parents=True)
    Image.new("RGB", (SIDE, SIDE), (255, 0, 0)).save(folder / IMAGES / "0_random" / "1.jpg")
    entry = {
        "image_path": "0_random/1.jpg", "original_prompt": "a [round] cake", "editing_prompt": "a [square] cake",
        "editing_instruction": "Change it", "editing_type_id": "0", "blended_word": "cake cake", "mask": [0, 5],
    }  # fmt: skip
    entry = {name: value for name, value in (entry | changes).items() if value is not None}
    (folder / MAPPING).write_text(json.dumps({"000000000000": entry}))
    return folder


def test_pie_bench_entries_are_read(tmp_path):
    (edit,) = read_benchmark(single_edit(tmp_path))
    assert (edit.source, edit.target, edit.words) == ("a round cake", "a square cake", ("cake", "cake"))
    assert edit.target_image is None and edit.concept is None
    assert edit.load_image((8, 4)).shape == (3, 8, 4)
    with pytest.raises(ValueError, match="has no ground-truth image for the edit 000000000000"):
        edit.load_image((8, 4), target=True)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mask": None}, "has no field mask"),
        ({"mask": [0]}, "invalid mask"),
        ({"mask": [SIDE * SIDE - 1, 2]}, "invalid mask"),
        ({"mask": ["a", "b"]}, r"invalid mask \(must be a list of integers\)"),
        ({"mask": [0.0, 5.5]}, "invalid mask"),
        ({"mask": [[0, 5]]}, "invalid mask"),
        ({"mask": [0, True]}, "invalid mask"),
        ({"mask": "0 5"}, "invalid mask"),
        ({"original_prompt": 5}, "original_prompt must be a string, got 5"),
        ({"editing_prompt": ["a"]}, r"editing_prompt must be a string, got \['a'\]"),
        ({"editing_instruction": 5}, "editing_instruction must be a string, got 5"),
        ({"blended_word": []}, r"blended_word must be a string, got \[\]"),
        ({"image_path": 5}, "image_path must be a string, got 5"),
        ({"target_image_path": 5}, "target_image_path must be a string, got 5"),
        ({"target_concept": 5}, "target_concept must be a string, got 5"),
        ({"editing_type_id": None}, "has no field editing_type_id"),
        ({"editing_type_id": 1.0}, "editing_type_id must be an integer from 0 to 9, got 1.0"),
        ({"editing_type_id": "10"}, "editing_type_id must be an integer from 0 to 9, got '10'"),
        ({"image_path": "0_random/2.jpg"}, "2.jpg does not exist"),
    ],
)
def test_invalid_entries_are_rejected(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"edit 000000000000 of .*{message}"):
        read_benchmark(single_edit(tmp_path, **changes))


def test_folder_without_benchmark_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"has no mapping_file\.json: set task.benchmark to PIE-Bench's folder"):
        read_benchmark(tmp_path)
    (tmp_path / MAPPING).write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_benchmark(tmp_path)
    (tmp_path / MAPPING).write_text("{}")
    with pytest.raises(ValueError, match="contains no edits"):
        read_benchmark(tmp_path)


def test_non_empty_folder_is_not_overwritten(folder):
    with pytest.raises(ValueError, match="is not empty: choose a new or empty folder"):
        make_benchmark.write(folder, "assets/emoji")
