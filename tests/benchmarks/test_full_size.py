"""The benchmark at full size runs with reduced networks on a CPU. Measured times are not tested."""

import json
import sys
import time

import pytest
import torch

from benchmarks import full_size
from benchmarks.full_size import CHECKPOINTS, OUT_OF_TIME, Case, Row, Session, all_cases, goals, table

CASES = ("ddim", "invert and edit with VAE", "DDIM inversion of diffusers", "NAO centroid of 5 seeds")
ARGV = ["full_size", "--device", "cpu", "--tiny", "--models", "sdxl_turbo", "--minutes", "30", "--steps", "2"]


def run(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", [*ARGV, *options])
    return full_size.main()


def session(deadline=1e9, rows=None):
    return Session("cpu", torch.float32, True, 2, time.perf_counter() + deadline, rows or [])


@pytest.mark.slow
def test_command_prints_a_table_and_writes_json(monkeypatch, capsys, tmp_path):
    path = tmp_path / "result.json"
    assert run(monkeypatch, "--json", str(path), "--cases", *CASES) == 0
    rows = json.loads(path.read_text())["rows"]
    by_case = {(row["case"], row["steps"]): row for row in rows}
    assert by_case["ddim", 2]["evaluations"] == by_case["DDIM inversion of diffusers", 2]["evaluations"] == 2
    assert by_case["invert and edit with VAE", 4]["evaluations"] == 3 * 4
    assert all(row["seconds"] > 0 and row["images_per_hour"] > 0 and not row["note"] for row in rows)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == len(rows) + 2


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_seedselect_is_compared_with_calls_that_have_a_backward_pass(checkpoint):
    name = f"SeedSelect update, {'with' if checkpoint else 'without'} checkpointing"
    row = session().measure("flux_schnell", next(case for case in all_cases([]) if case.name == name))
    assert row.note == "" and row.ratio > 0
    assert row.evaluations == (6 if checkpoint else 4)  # an update with two steps and the loss after the update


def test_failing_case_does_not_end_the_run():
    def fail(_bench, _row):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    current = session()
    assert current.measure("sd15", Case("large", fail, 0)).note == "not measured: CUDA out of memory."
    assert current.measure("sd15", Case("bare call", full_size.bare_call, 0)).seconds > 0


def test_no_case_starts_after_the_deadline():
    row = session(deadline=-1).measure("sd15", Case("bare call", full_size.bare_call, 0))
    assert row.note == OUT_OF_TIME and row.seconds is None
    assert "1 cases were not measured" in table([row])


def test_important_cases_come_first():
    cases = all_cases([])
    assert [case.rank for case in cases] == sorted(case.rank for case in cases)
    assert cases[0].name == "bare call" and next(iter(CHECKPOINTS)) == "sdxl_turbo"


def test_empty_fields_are_empty_cells():
    assert Row("sd15", "bare call", seconds=0.5).cells() == ["sd15", "bare call", "1", "", "0.5000", *[""] * 5]


def test_times_of_a_reduced_network_are_not_stored(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--write")
    expected = "--write: the times must be measured at full size in bfloat16 on a CUDA GPU, got cpu, bfloat16, tiny"
    assert expected in capsys.readouterr().err


def test_goals_are_met_missed_or_not_measured():
    rows = [
        Row("sd15", "ddim", steps=20, ratio=1.01),
        Row("sdxl", "accelerated, 2 NFE", steps=20, ratio=1.04),
        Row("sd15", "bare call", ratio=2.0),
        Row("sdxl_turbo", "invert and edit", steps=2, seconds=0.25),
        Row("sdxl_turbo", "invert and edit", steps=4, seconds=0.9),
        Row("sd15", "offload: none", extra_gib=0.2),
    ]
    assert list(goals(rows).values()) == ["missed (1.04)", "met (0.25)", "not measured", "met (0.2)"]
    assert set(goals([]).values()) == {"not measured"}


@pytest.mark.slow
def test_documented_command_measures_every_model(monkeypatch, capsys):
    options = ["--device", "cpu", "--tiny", "--minutes", "30", "--steps", "2", "--cases", "accelerated, 2 NFE"]
    monkeypatch.setattr(sys, "argv", ["full_size", *options])
    assert full_size.main() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert {line.split(" | ")[0].removeprefix("| ") for line in rows} - {"---"} == set(CHECKPOINTS)
