"""Right & new images: the columns of the results, and finished runs that are scored again."""

import json
from pathlib import Path

import pandas as pd
import pytest

from experiments.rare_concepts.report import real_note
from rnri.validation import ConfigError
from tests.experiments.tiny_configs import COLORS, PLAIN, rare_concepts, run_to_end, tiny_classifier, trainer


def results(task) -> dict[tuple[str, str], dict]:
    rows = json.loads((Path(task.run_dir) / "results.json").read_text())["rows"]
    return {(row["method"], row["bucket"]): row for row in rows}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_to_end(rare_concepts(tmp_path_factory.mktemp("right_new"), {"plain": PLAIN}))


@pytest.mark.slow
def test_results_have_the_columns_of_the_measure(run):
    total = results(run)["plain", "total"]
    names = {"right_new", "right_new_low", "right_new_high", "copies", "m_cp", "authentic", "c_t", "copies_concept"}
    assert names <= set(total)
    assert "accuracy_second" not in total
    assert "sscd" not in total


def test_samples_are_right_and_new_if_they_are_correct_and_no_copies(run):
    samples = pd.read_parquet(Path(run.run_dir) / "samples.parquet")
    assert (samples["right_new"] == (samples["correct"] & ~samples["copy"].astype(bool))).all()
    below = samples["distance_shape"] < samples["threshold_shape"]
    below |= samples["distance_layout"] < samples["threshold_layout"]
    assert (below == samples["copy"]).all()
    assert results(run)["plain", "total"]["right_new"] == pytest.approx(samples["right_new"].mean())


def test_real_row_has_the_scores_of_the_references(run):
    real = results(run)["real", "total"]
    assert real["n"] == len(COLORS) * run.references
    assert real["accuracy"] == real["ceiling"] == results(run)["plain", "total"]["ceiling"]
    assert "| real " in (Path(run.run_dir) / "table.md").read_text()


def test_finished_images_are_scored_again_without_being_generated_again(run, tmp_path):
    folder = Path(run.run_dir)
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*.safetensors")}
    assert len([path for path in files if "real" in path.parts]) == 1 + len(COLORS)  # features, scores of each concept
    first = results(run)
    second = tiny_classifier(tmp_path / "second", seed=1)
    changes = {"classifier": run.classifier, "second_classifier": second, "run_dir": run.run_dir}
    again = run_to_end(rare_concepts(tmp_path, {"plain": PLAIN}, **changes))
    assert files == {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*.safetensors")}
    total = results(again)["plain", "total"]
    assert 0 <= total["accuracy_second_low"] <= total["accuracy_second"] <= total["accuracy_second_high"] <= 1
    assert "second network, %" in (folder / "table.md").read_text()
    for name in ("right_new", "copies", "m_cp", "accuracy"):
        assert total[name] == first["plain", "total"][name]
    samples = pd.read_parquet(folder / "samples.parquet")
    expected = samples["correct_second"] & ~samples["copy"].astype(bool)
    assert total["right_new_second"] == pytest.approx(expected.mean())
    report = (folder / "report.html").read_text()
    assert "Second network: right &amp; new, and accuracy per group of concepts" in report
    concepts = pd.read_csv(folder / "concepts.csv")
    assert concepts["accuracy_second"].mean() == pytest.approx(total["accuracy_second"])


def test_second_classifier_without_a_label_is_refused(tmp_path):
    second = tiny_classifier(tmp_path / "second", labels=["cat", "owl"])
    with pytest.raises(ValueError, match=r"data.second_classifier=.* has no label 'fox'"):
        rare_concepts(tmp_path, {"plain": PLAIN}, second_classifier=second).prepare(trainer())


def test_arm_named_real_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="choose another name for the arm"):
        rare_concepts(tmp_path, {"real": PLAIN}).prepare(trainer())


def test_missing_sscd_file_is_refused_before_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"metrics.sscd: /nowhere does not exist"):
        rare_concepts(tmp_path, {"plain": PLAIN}, sscd="/nowhere").prepare(trainer())


def test_note_on_real_images_says_when_copies_are_not_detected():
    total = {"bucket": "total", "n": 4}
    head = {"bucket": "head", "n": 2, "copies": 0.5}
    for unknown in ({}, {"copies": None}):
        note = real_note([head, total | unknown])
        assert note == "Copies are not detected, because there are too few real images."
    assert real_note([head, total | {"copies": 0.25}]) == (
        "25.0 % of the 4 real images count as copies of other real images, although they are not."
    )
    none = real_note([head, total | {"copies": 0.0}])
    assert none == "None of the 4 real images counts as a copy of another real image."
