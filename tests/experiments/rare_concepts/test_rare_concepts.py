"""The main job on a few concepts, through the command that users type."""

import json
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra.errors import HydraException
from safetensors.torch import load_file

import train
from experiments.rare_concepts.scoring import judge
from rnri import LatentDiffusion
from tests.commands import carried_out, command, composed, forked
from tests.experiments import tiny_configs as small
from tools.inspect_wandb import describe, records

FAST = ["data.concepts=1", "task.steps=4", "task.samples=2", "select.iterations=1", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rare_concepts")
    finished = forked("experiment=rare_concepts", f"run_dir={folder}", *FAST)
    assert finished.returncode == 0, finished.stderr
    return folder, finished


def rows(folder) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["rows"]


def test_results_follow_the_contract(run):
    folder, finished = run
    table = {(row["method"], row["bucket"]): row for row in rows(folder)}
    methods = ("plain", "seedselect_ddim", "seedselect_rnri", "seedselect_ours", "best_of_ours")
    assert set(table) == {(m, b) for m in methods for b in ("head", "medium", "tail", "total")}
    for (_, bucket), row in table.items():
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["n"] == (6 if bucket == "total" else 2)
        assert (bucket == "total") == ({"fid", "kid", "t_init", "t_opt"} <= set(row))
    assert table["seedselect_rnri", "total"]["t_opt"] > 0 == table["plain", "total"]["t_opt"]
    assert table["seedselect_rnri", "total"]["iterations"] == 1 and "iterations" not in table["plain", "total"]
    assert {path.name for path in (folder / "images").iterdir()} == {"head.png", "medium.png", "tail.png"}
    for name in ("table.md", "config.yaml", "metrics.csv", "figures/accuracy.png"):
        assert (folder / name).stat().st_size > 0
    assert "| plain |" in finished.stdout


def test_a_run_says_beforehand_what_it_will_do_and_tells_of_every_unit(run):
    _, finished = run
    announced = next(line for line in finished.stdout.splitlines() if line.startswith("To compute"))
    assert "15 units" in announced and "network evaluations, about" in announced
    assert finished.stdout.index(announced) < finished.stdout.index("| plain |")
    told = [line for line in finished.stderr.splitlines() if "seedselect_ours: 3/3 concepts" in line]
    assert told and "\r" not in finished.stderr


def test_differences_between_methods_come_as_pairs(run):
    folder, finished = run
    table = {(row["method"], row["bucket"]): row["accuracy"] for row in rows(folder)}
    pairs = json.loads((folder / "results.json").read_text())["pairs"]
    assert len(pairs) == 10 * 4
    for pair in pairs:
        expected = table[pair["method"], pair["bucket"]] - table[pair["than"], pair["bucket"]]
        assert pair["difference"] == pytest.approx(expected)
        assert pair["difference_low"] <= pair["difference"] <= pair["difference_high"]
    assert "| method | less plain | less seedselect_ddim |" in finished.stdout


def test_samples_tell_of_every_image(run):
    samples = pd.read_parquet(run[0] / "samples.parquet")
    assert len(samples) == 5 * 3 * 2
    assert samples["sample"].nunique() == 6
    optimized = samples[samples["method"] != "plain"]
    assert (optimized["loss"] <= optimized["initial_loss"]).all()


def test_a_second_run_computes_nothing_again(run):
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in folder.glob("units/**/*.safetensors")}
    first = rows(folder)
    carried_out("experiment=rare_concepts", f"run_dir={folder}", *FAST)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("units/**/*.safetensors")}
    assert rows(folder) == first


def test_real_images_are_judged_once_by_each_judge(tmp_path, monkeypatch):
    seen = []

    def counted(classifier, images, **options):
        features, names = judge(classifier, images, **options)
        seen.append(len(names))
        return features, names

    monkeypatch.setattr("experiments.rare_concepts.task.judge", counted)
    found = []
    for seed in (0, 0, 1):
        small.judge(tmp_path / f"judge_{seed}", seed=seed)
        changes = {"classifier": str(tmp_path / f"judge_{seed}"), "concepts": ["cat"]}
        task = small.carried_out(small.rare_concepts(tmp_path, {"plain": small.PLAIN}, **changes))
        found.append(task._judge_real())
    assert seen.count(6) == 2  # of the real images; the concept's own are fewer
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_damaged_unit_is_computed_again_to_the_same_images(run):
    folder, _ = run
    unit = sorted((folder / "units" / "seedselect_rnri").rglob("*.safetensors"))[0]
    images = load_file(unit)["images"]
    start = unit.read_bytes()[:100]
    unit.unlink()  # the old file stays mapped behind `images`
    unit.write_bytes(start)
    # alone in its batch now, where it had neighbors before
    carried_out("experiment=rare_concepts", f"run_dir={folder}", *FAST)
    difference = (load_file(unit)["images"].int() - images.int()).abs()
    assert difference.max() <= 1  # of 255: rounding, when float sums are taken in another order
    assert torch.isfinite(load_file(unit)["seeds"]).all()


@pytest.mark.slow
def test_two_processes_share_the_concepts_and_give_the_same_images(run, tmp_path):
    folder, _ = run
    others = ("seedselect_ddim", "seedselect_rnri", "best_of_ours")
    finished = command(
        "experiment=rare_concepts", f"run_dir={tmp_path}", *FAST, "trainer.devices=2", "trainer.strategy=ddp",
        small.emoji_judge(tmp_path / "judge"), *(f"~task.arms.{name}" for name in others),
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("| plain |") == 1
    units = [unit for unit in folder.glob("units/*/*/*.safetensors") if unit.parents[1].name not in others]
    assert len(units) == 2 * 3
    for unit in units:
        images, others = (load_file(root / unit.relative_to(folder))["images"].int() for root in (folder, tmp_path))
        difference = (images - others).abs().float()
        # AdamW's first step is the sign of the gradient, so rounding moves the few elements where it is almost zero.
        assert difference.mean() < 0.5 if "seedselect" in str(unit.relative_to(folder)) else difference.max() <= 1


def whole(path: Path) -> str:
    """What a run's file says once its end is there, which W&B's own process writes shortly after ours has gone on."""
    until = time.monotonic() + 30
    while "it finished" not in (told := describe(path)) and time.monotonic() < until:
        time.sleep(0.05)
    return told


def test_weights_and_biases_offline_gets_the_same(tmp_path):
    carried_out(
        "experiment=rare_concepts", f"run_dir={tmp_path}", *FAST, "data.concepts=[camel]", "logger=wandb",
        "logger.wandb.offline=true", small.emoji_judge(tmp_path / "judge"),
    )  # fmt: skip
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert folder.name.endswith((tmp_path / "wandb_id").read_text().strip())  # under which the folder's run goes on
    (table,) = folder.glob("files/media/table/concepts_*.table.json")
    content = json.loads(table.read_text())
    assert {"method", "concept", "bucket", "accuracy"} <= set(content["columns"]) and len(content["data"]) == 5
    assert {row["bucket"] for row in rows(tmp_path)} == {"head", "total"}  # one concept, one bucket
    (path,) = folder.glob("*.wandb")
    told = whole(path)
    assert "group rare_concepts, job type plain+seedselect_ddim+seedselect_rnri+seedselect_ours+1 more" in told
    assert "it finished" in told and "values at steps 1 to 5, the last of each" in told
    (accuracy,) = (row["accuracy"] for row in rows(tmp_path) if (row["method"], row["bucket"]) == ("plain", "head"))
    assert f"plain/head/accuracy = {accuracy:.4g} (2 values)" in told  # after its unit, and the table's
    assert "table concepts, 5 rows: method, concept, bucket, " in told and "picture accuracy: media/images/" in told
    killed = tmp_path / "killed.wandb"
    killed.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    every, kept = ([record.num for record in records(file)] for file in (path, killed))
    assert 0 < len(kept) < len(every) and kept == every[: len(kept)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.concepts=[camel,zebra]"], "'zebra'"),
        (["data.concepts=0"], "data.concepts=0: give a number of concepts a bucket"),
        (["data.buckets=[middle]"], "middle"),
        (["data.folder=/nowhere"], "/nowhere"),
        (["data.classifier=/nowhere"], "/nowhere"),
        (["data.clip=/nowhere"], "/nowhere"),
        (["model.path=/nowhere"], "/nowhere"),
        (["task.arms.plain.guidance=0.5"], "guidance=0.5"),
        (["task.steps=2000"], "2000"),
        (["task.references=9"], "reference images"),
    ],
)
def test_bad_input_is_found_before_any_work(overrides, message, tmp_path):
    config = composed("experiment=rare_concepts", f"run_dir={tmp_path}/run", *overrides)
    with pytest.raises((ValueError, HydraException)) as caught:
        train.prepare(config)
    assert message in train.explain(caught.value)
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
def test_bad_input_ends_the_command_without_a_traceback(overrides, message, tmp_path):
    finished = forked(f"run_dir={tmp_path}/run", *overrides)
    assert finished.returncode != 0
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_checkpoint_without_a_part_is_named(tmp_path):
    shutil.copytree("assets/models/emoji", tmp_path / "model", ignore=shutil.ignore_patterns("unet"))
    with pytest.raises(ValueError, match="unet"):
        LatentDiffusion.from_pretrained(tmp_path / "model", device="cpu", dtype=torch.float32)
