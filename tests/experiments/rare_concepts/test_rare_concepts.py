"""The rare-concepts experiment runs with three concepts, one per bucket."""

import json
import shutil

import pandas as pd
import pytest
import torch
from hydra.errors import HydraException
from safetensors.torch import load_file

from experiments.config.errors import one_line
from experiments.evaluation.classifier import classify_images
from experiments.runtime.setup import setup
from rnri import LatentDiffusion
from tests.commands import composed, forked, run_in_process
from tests.experiments import tiny_configs as small
from tests.wandb_files import wait_for_exit_record
from tools.inspect_wandb import records, summarize

pytestmark = pytest.mark.slow

SMALL = ["data.concepts=1", "task.steps=2", "task.samples=2", "select.iterations=1", "trainer.accelerator=cpu"]
ARMS = ("plain", "seedselect_ddim", "seedselect_rnri", "seedselect_ours", "between_ours")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return small.tiny_emoji_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, classifier):
    """Folder and process of a finished run that logs to the CSV file and to W&B offline."""
    folder = tmp_path_factory.mktemp("rare_concepts")
    options = ["logger=wandb", "logger.wandb.offline=true", classifier]
    finished = forked("experiment=rare_concepts", f"run_dir={folder}", *SMALL, *options)
    assert finished.returncode == 0, finished.stderr
    return folder, finished


def rows(folder) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["rows"]


@pytest.fixture(scope="module")
def table(run):
    folder, _ = run
    return {(row["method"], row["bucket"]): row for row in rows(folder)}


def test_results_have_a_row_per_arm_and_bucket(table):
    methods = (*ARMS, "real")
    assert set(table) == {(method, bucket) for method in methods for bucket in ("head", "medium", "tail", "total")}


def test_accuracy_has_an_interval_and_a_count(table):
    for (method, bucket), row in table.items():
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        per_concept = 3 if method == "real" else 2  # references or samples
        assert row["n"] == per_concept * (3 if bucket == "total" else 1)


def test_headline_is_right_and_new(run, table):
    folder, finished = run
    for row in table.values():
        assert row["right_new_low"] <= row["right_new"] <= row["right_new_high"] <= 1
        assert row["right_new"] <= row["accuracy"]
        assert 0 <= row["copies"] <= 1
    head = (folder / "table.md").read_text().splitlines()[0]
    assert [cell.strip() for cell in head.split("|")[1:3]] == ["method", "right & new, % ↑"]
    assert "% of the 9 real images count as copies" in finished.stdout
    total = table["seedselect_rnri", "total"]
    assert -1 <= total["m_cp"] <= 1 and 0 <= total["authentic"] <= 1 and total["c_t"] is not None
    assert table["real", "total"]["c_t"] == 0
    assert "images that are right and new" in (folder / "report.html").read_text() or total["right_new"] == 0


def test_only_totals_have_distances_and_times(table):
    for (_, bucket), row in table.items():
        assert (bucket == "total") == ({"fid", "kid", "t_init", "t_opt"} <= set(row))


def test_only_optimized_arms_have_iterations(table):
    assert table["seedselect_rnri", "total"]["t_opt"] > 0 == table["plain", "total"]["t_opt"]
    assert table["seedselect_rnri", "total"]["iterations"] == 1
    assert "iterations" not in table["plain", "total"]


def test_run_writes_table_figures_and_config(run):
    folder, finished = run
    assert {path.stem for path in (folder / "images").iterdir()} == {"head", "medium", "tail"}
    for name in ("table.md", "table.csv", "table.tex", "config.yaml", "metrics.csv", "figures/accuracy.pdf"):
        assert (folder / name).stat().st_size > 0
    assert "| plain " in finished.stdout


def test_report_has_the_images_and_concepts_of_every_arm(run, table):
    folder, _ = run
    report = (folder / "report.html").read_text()
    arms = {method for method, _ in table} - {"real"}
    assert all(f"{arm}: " in report for arm in arms)
    concepts = pd.read_csv(folder / "concepts.csv")
    assert set(concepts["method"]) == arms
    assert {"concept", "bucket", "frequency", "accuracy", "copies", "n"} <= set(concepts)
    assert concepts.groupby("method")["accuracy"].mean().to_dict() == pytest.approx(
        {method: table[method, "total"]["accuracy"] for method in arms}
    )


def test_run_prints_an_estimate_and_a_progress_line_per_unit(run):
    _, finished = run
    estimate = next(line for line in finished.stdout.splitlines() if line.startswith("To compute"))
    assert "15 units" in estimate
    assert "network evaluations, about" in estimate
    assert finished.stdout.index(estimate) < finished.stdout.index("| plain ")
    assert any("seedselect_ours 3/3 concepts" in line for line in finished.stderr.splitlines())
    assert "\r" not in finished.stderr


def test_pairs_are_differences_of_accuracies(run, table):
    folder, finished = run
    pairs = json.loads((folder / "results.json").read_text())["pairs"]
    assert len(pairs) == 10 * 4
    for pair in pairs:
        method = table[pair["method"], pair["bucket"]]["accuracy"]
        baseline = table[pair["baseline"], pair["bucket"]]["accuracy"]
        assert pair["difference"] == pytest.approx(method - baseline)
        assert pair["difference_low"] <= pair["difference"] <= pair["difference_high"]
    head = next(line for line in finished.stdout.splitlines() if "minus plain" in line)
    assert [cell.strip() for cell in head.split("|")[1:4]] == ["method", "minus plain", "minus seedselect_ddim"]


def test_samples_have_one_row_per_image(run):
    samples = pd.read_parquet(run[0] / "samples.parquet")
    assert len(samples) == len(ARMS) * 3 * 2
    assert samples["sample"].nunique() == 6
    optimized = samples[samples["method"] != "plain"]
    assert (optimized["loss"] <= optimized["initial_loss"]).all()


@pytest.fixture(scope="module")
def wandb_folder(run):
    (folder,) = run[0].glob("wandb/offline-run-*")
    return folder


def test_wandb_run_has_the_id_of_its_folder(run, wandb_folder):
    assert wandb_folder.name.endswith((run[0] / "wandb_id").read_text().strip())


def test_wandb_gets_a_table_of_concepts(wandb_folder):
    (path,) = wandb_folder.glob("files/media/table/concepts_*.table.json")
    content = json.loads(path.read_text())
    assert {"method", "concept", "bucket", "accuracy"} <= set(content["columns"])
    assert len(content["data"]) == len(ARMS) * 3


def test_wandb_gets_running_means_figures_and_tables(wandb_folder, table):
    (path,) = wandb_folder.glob("*.wandb")
    wait_for_exit_record(path)
    text = summarize(path)
    assert "group rare_concepts, job type plain+seedselect_ddim+seedselect_rnri+seedselect_ours+1 more" in text
    assert "state: finished" in text
    assert "last values of the metrics at steps 1 to 15:" in text
    accuracy = table["plain", "head"]["accuracy"]
    assert f"plain/head/accuracy = {accuracy:.4g} (2 values)" in text  # after its unit, and with the table
    assert "table concepts, 15 rows: method, concept, bucket, " in text
    assert "accuracy: media/images/" in text


def test_wandb_file_of_a_killed_run_is_readable(wandb_folder, tmp_path):
    (path,) = wandb_folder.glob("*.wandb")
    wait_for_exit_record(path)
    truncated = tmp_path / "killed.wandb"
    truncated.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    complete = [record.num for record in records(path)]
    readable = [record.num for record in records(truncated)]
    assert 0 < len(readable) < len(complete)
    assert readable == complete[: len(readable)]


def test_second_run_computes_nothing(run, classifier):
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in folder.glob("units/**/*.safetensors")}
    first = rows(folder)
    run_in_process("experiment=rare_concepts", f"run_dir={folder}", *SMALL, classifier)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("units/**/*.safetensors")}
    assert rows(folder) == first


def test_damaged_unit_is_recomputed_to_the_same_images(run, classifier):
    folder, _ = run
    unit = sorted((folder / "units" / "seedselect_rnri").rglob("*.safetensors"))[0]
    images = load_file(unit)["images"]
    start = unit.read_bytes()[:100]
    unit.unlink()  # the old file stays mapped in `images`
    unit.write_bytes(start)
    run_in_process("experiment=rare_concepts", f"run_dir={folder}", *SMALL, classifier)
    difference = (load_file(unit)["images"].int() - images.int()).abs()
    assert difference.max() <= 1  # of 255: alone in its batch, sums are rounded differently
    assert torch.isfinite(load_file(unit)["seeds"]).all()


def test_real_images_are_classified_once_per_classifier(tmp_path, monkeypatch):
    counts = []

    def counting(classifier, images, **options):
        features, names = classify_images(classifier, images, **options)
        counts.append(len(names))
        return features, names

    monkeypatch.setattr("experiments.rare_concepts.evaluator.classify_images", counting)
    features = []
    for seed in (0, 0, 1):
        classifier = small.tiny_classifier(tmp_path / f"classifier_{seed}", seed=seed)
        changes = {"classifier": classifier, "concepts": ["cat"]}
        task = small.run_to_end(small.rare_concepts(tmp_path, {"plain": small.PLAIN}, **changes))
        features.append(task.evaluator.real_features())
    assert counts.count(6) == 2  # six real images; the concept itself has fewer
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


def test_two_processes_generate_the_same_images_as_one(run, classifier, tmp_path):
    folder, _ = run
    omitted = ("seedselect_ddim", "seedselect_rnri", "between_ours")
    finished = forked(  # Lightning starts the second process
        "experiment=rare_concepts", f"run_dir={tmp_path}", *SMALL, "trainer.devices=2", "trainer.strategy=ddp",
        classifier, *(f"~task.arms.{name}" for name in omitted),
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("Accuracy per group of concepts:") == 1
    units = [unit for unit in folder.glob("units/*/*/*.safetensors") if unit.parents[1].name not in omitted]
    assert len(units) == 2 * 3
    for unit in units:
        alone, shared = (load_file(root / unit.relative_to(folder))["images"].int() for root in (folder, tmp_path))
        difference = (alone - shared).abs().float()
        # AdamW's first step is the sign of the gradient, so rounding changes the few elements where it is almost zero.
        assert difference.mean() < 0.5 if "seedselect" in str(unit.relative_to(folder)) else difference.max() <= 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.concepts=[camel,zebra]"], "'zebra'"),
        (["data.concepts=0"], "data.concepts"),
        (["data.buckets=[middle]"], "middle"),
        (["data.folder=/nowhere"], "/nowhere"),
        (["data.classifier=/nowhere"], "/nowhere"),
        (["data.clip=/nowhere"], "/nowhere"),
        (["model.path=/nowhere"], "/nowhere"),
        (["task.arms.plain.guidance=0.5"], "guidance"),
        (["task.steps=2000"], "2000"),
        (["task.references=9"], "reference images"),
    ],
)
def test_prepare_rejects_bad_input_without_a_run_folder(overrides, message, tmp_path):
    config = composed("experiment=rare_concepts", f"run_dir={tmp_path}/run", *overrides)
    with pytest.raises((ValueError, HydraException)) as error:
        setup(config)
    assert message in one_line(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=no_such"], "no_such"),
        (["task.no_such_key=1"], "no_such_key"),
        (["method@task.arms.seedselect_rnri.inverter=no_such"], "no_such"),
        (["data.concepts=[zebra]"], "'zebra'"),
    ],
)
def test_command_reports_bad_input_without_a_traceback(overrides, message, tmp_path):
    finished = forked(f"run_dir={tmp_path}/run", *overrides)
    assert finished.returncode != 0
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_missing_component_of_a_checkpoint_is_named(tmp_path):
    shutil.copytree("assets/models/emoji", tmp_path / "model", ignore=shutil.ignore_patterns("unet"))
    with pytest.raises(ValueError, match="unet"):
        LatentDiffusion.from_pretrained(tmp_path / "model", device="cpu", dtype=torch.float32)
