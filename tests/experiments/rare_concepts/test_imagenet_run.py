"""The rare-concepts experiment with ImageNet and a timm classifier, in one process and in two that share a folder."""

import json
import os
from pathlib import Path

import pytest

from experiments.runtime.run_lock import join_or_start_run
from tests.commands import composed, start
from tests.fakes import imagenet_count_table, imagenet_tables, timm_folder
from tests.pipelines import tiny_stable_diffusion


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    imagenet_tables(folder / "imagenet", (0, 500, 999), 3, 2)
    imagenet_count_table(folder / "counts.tsv")
    timm_folder(folder / "classifier")
    tiny_stable_diffusion().save_pretrained(folder / "model")
    return folder


def overrides(data: Path, run_dir: Path) -> list[str]:
    return [
        "model=sd", f"model.path={data}/model", "model.local_files_only=true",
        "data=imagenet", f"data.path={data}/imagenet", f"data.counts={data}/counts.tsv",
        f"data.classifier={data}/classifier", "data.clip=assets/models/clip", f"run_dir={run_dir}", "task.steps=4",
        "task.samples=2", "task.references=2", "select.iterations=1", "trainer.accelerator=cpu",
        "task.concepts_per_batch=1", "~task.arms.seedselect_rnri", "~task.arms.seedselect_ddim",
        "~task.arms.between_ours",
    ]  # fmt: skip


def rows(folder: Path) -> list[dict]:
    """Return the results without the times."""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name not in ("t_init", "t_opt")} for row in rows]


@pytest.mark.slow
def test_two_runs_of_a_folder_give_the_results_of_one(data, tmp_path):
    runs = [start(*overrides(data, tmp_path / name)) for name in ("alone", "shared", "shared")]
    finished = [run() for run in runs]
    assert not any(run.returncode for run in finished), finished
    outputs = [(run.stdout, run.stderr) for run in finished]
    assert rows(tmp_path / "alone") == rows(tmp_path / "shared")
    total = next(row for row in rows(tmp_path / "alone") if row["bucket"] == "total")
    assert total["extractor"] == "resnet10t" and total["n_real"] == 6 and total["n"] == 6
    reports = [out.count("Accuracy per group of concepts:") for out, _ in outputs]
    joined = sum(
        "this run computes a part of the results, and the first run writes the report" in out for out, _ in outputs
    )
    assert reports[0] == 1 and reports[1:].count(0) == joined  # 0 if one ended before the other began
    assert not (tmp_path / "shared" / "leases").exists()
    units = [sorted(p.name for p in (tmp_path / name).glob("units/*/*/*")) for name in ("alone", "shared")]
    assert units[0] == units[1] and len(units[0]) == 6


def test_rejects_a_second_run_with_other_settings(data, tmp_path, monkeypatch):
    config, other, training = (
        composed(f"run_dir={tmp_path}/run", *more) for more in ([], ["seed=1"], ["experiment=pretrain_classifier"])
    )
    first = join_or_start_run(config, None, None)
    for wrong, message in ((other, "has different settings"), (training, "is training")):
        with pytest.raises(
            ValueError,
            match=rf"run_dir=.* is in use by process {os.getpid()} on .*, which {message}: wait until that process",
        ):
            join_or_start_run(wrong, None, None)

    class Task:
        is_reporter = None

    class Trainer:
        loggers = ("csv",)

    task, trainer = Task(), Trainer()
    second = join_or_start_run(config, task, trainer)
    assert trainer.loggers == [] and not task.is_reporter()
    first.close()  # as if the first run had died before its report
    assert task.is_reporter()
    results = tmp_path / "run" / "results.json"
    results.write_text("{}")
    os.utime(results, (0, 0))  # the clock of the file server is behind
    assert not task.is_reporter()
    second.finish()
