"""Hours per type of GPU come from measured times only."""

import pytest

from experiments.planning import gpu_times
from experiments.planning.cost import Cost
from experiments.planning.gpu_times import CHECKPOINTS, GPU_TYPES, GpuTimes, format_hours, load_times, store_times

SECONDS = {"forward": 0.01, "backward": 0.02, "decodings": 0.1, "decodings_backward": 0.2}
TURBO = GpuTimes("NVIDIA H200", "stabilityai/sdxl-turbo", "bfloat16", 4, SECONDS, "2.14")


@pytest.fixture
def empty_file(tmp_path, monkeypatch):
    path = tmp_path / "gpu_times.json"
    path.write_text("[]")
    monkeypatch.setattr(gpu_times, "FILE", path)


def test_hours_are_the_sum_over_all_kinds_of_evaluations():
    cost = Cost(forward=3.6e5, decodings=3.6e4, backward=1.8e5, decodings_backward=1.8e4)
    assert TURBO.hours(cost) == pytest.approx(1 + 1 + 1 + 1)


def test_only_measured_cells_contain_hours():
    lines = format_hours(Cost(forward=3.6e6), [TURBO]).splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| NVIDIA")}
    assert list(rows) == list(GPU_TYPES)
    assert [cell.strip() for cell in rows["NVIDIA H200"].split("|")[2:-1]] == [
        "not measured", "10.0", "not measured", "not measured",
    ]  # fmt: skip
    assert all(line.count("not measured") == len(CHECKPOINTS) for gpu, line in rows.items() if gpu != "NVIDIA H200")


def test_without_measurement_a_sentence_says_so():
    assert format_hours(Cost(forward=1), []).startswith("Hours on other GPUs: not measured")


@pytest.mark.usefixtures("empty_file")
def test_a_new_measurement_replaces_the_old_one():
    store_times([TURBO])
    other = GpuTimes("NVIDIA L4", TURBO.checkpoint, "bfloat16", 4, SECONDS, "2.14")
    newer = GpuTimes(TURBO.gpu, TURBO.checkpoint, "bfloat16", 8, SECONDS, "2.15")
    store_times([other, newer])
    assert load_times() == [newer, other]


def test_stored_times_are_valid():
    assert all(set(row.seconds) <= set(SECONDS) for row in load_times())
