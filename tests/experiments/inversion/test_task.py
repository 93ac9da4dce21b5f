"""Methods side by side, through the command that users type."""

import json
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf

import train
from experiments.data.concepts import Concept
from experiments.inversion.figures import FIGURES
from experiments.inversion.jobs import (
    VAE_BOUND,
    ImagePrompt,
    Setting,
    generated_images,
    jobs,
    mismatched,
    from_concepts,
)
from experiments.inversion.report import COLUMNS, detection, rank_agreement, summary, with_vae_gaps
from experiments.inversion.task import InversionExperiment
from rnri import FixedPoint, ImplicitInverter, LatentDiffusion, PromptAware, SafeguardedAnderson
from rnri.methods import EDICT
from tests.commands import composed, forked
from tests.experiments.evaluation.test_lpips import random_weights
from tests.experiments.tiny_configs import Squares, carried_out, clip, judge, tiny

ONE = "{_target_:experiments.inversion.jobs.Setting,steps:3,nfe:[1,2]}"
WRONG = "{_target_:experiments.inversion.jobs.Setting,steps:3,nfe:2,wrong_prompts:true}"
EDIT = (
    "{_target_:experiments.inversion.jobs.Setting,steps:3,nfe:2,"
    "edit:[white background,pink background],methods:[accelerated]}"
)
MADE = "{_target_:experiments.inversion.jobs.Setting,steps:3,guidance:2.0,generated:true}"
EXACT = "{_target_:experiments.inversion.jobs.Setting,steps:3,methods:[edict],decoder_iterations:3}"
FAST = ["task.images=3", "task.batch_size=2", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    finished = forked(
        "experiment=convergence", f"run_dir={folder}", *FAST, "+method@task.methods.edict=edict",
        f"task.settings=[{ONE.replace('}', ',methods:[rnri_mean_sign,accelerated]}')},"
        f"{WRONG.replace('}', ',methods:[rnri_mean_sign,accelerated]}')},"
        f"{MADE.replace('}', ',methods:[accelerated]}')},{EXACT},{EDIT}]",
        "task.figures=[residuals,detection,editing]",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return folder, finished


def rows(folder) -> list[dict]:
    return json.loads((Path(folder) / "results.json").read_text())["rows"]


def test_results_follow_the_contract(run):
    folder, finished = run
    table = {(r["method"], r["nfe"], r["prompts"], r["generated"]): r for r in rows(folder)}
    vae = table[VAE_BOUND, None, "right", False]
    assert vae["n"] == 3 and vae["latent_mse"] == 0 and "residual" not in vae
    for count in (1, 2):
        row = table["accelerated", count, "right", False]
        assert row["start"] == "fitted" and row["steps"] == 3 and row["guidance"] == 1
        assert row["nfe_per_step"] <= count and row["backward_per_step"] == 0
        assert row["psnr_low"] <= row["psnr"] <= row["psnr_high"]
        assert row["residual"] >= row["residual_mean"] > 0 and row["seconds_per_image"] > 0 and row["n"] == 3
    exact = table["edict, decoder inversion", None, "right", False]
    assert exact["latent_mse"] < 1e-8 and exact["residual"] is None and exact["stored_bytes"] == 8 * 1024
    assert exact["psnr"] == pytest.approx(table["vae, decoder inversion", None, "right", False]["psnr"], abs=0.01)
    made = table["accelerated", None, "right", True]
    assert made["distance_encoded"] == made["distance_adjusted"] > 0 and made["distance_reconstructed"] > 0
    assert "| reconstructed |" in (folder / "table.md").read_text()
    for name in ("table.md", "config.yaml", "metrics.csv", "figures/residuals.png", "figures/detection.png"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "images" / "3steps_guidance1_2evaluations.png").stat().st_size > 0
    found = json.loads((folder / "results.json").read_text())["settings"]["detection"]
    assert {(d["method"], d["score"]) for d in found} >= {
        (VAE_BOUND, "clip_score"),
        ("rnri_mean_sign (2 evaluations)", "residual"),
    }
    assert all(0 <= d["auc"] <= 1 for d in found)
    assert "| accelerated |" in finished.stdout


def test_edits_are_measured_against_the_edited_prompt(run):
    folder, _ = run
    table = {(r["method"], r["prompts"]): r for r in rows(folder) if not r["generated"]}
    edit = "white background -> pink background"
    itself, edited, plain = table[VAE_BOUND, edit], table["accelerated", edit], table["accelerated", "right"]
    assert itself["clip_score"] < edited["clip_score"] and edited["perceptual"] > plain["perceptual"]
    assert edited["residual"] == pytest.approx(plain["residual"])  # the inversion is under the image's own prompt
    samples = pd.read_parquet(folder / "samples.parquet")
    assert samples[samples["prompts"] == edit]["prompt"].str.contains("pink background").all()
    main, edits = (folder / "table.md").read_text().split("| method | steps | guidance | edit |")
    assert edit in edits and edit not in main
    assert (folder / "images" / "3steps_guidance1_2evaluations_whitebackground-pinkbackground.png").stat().st_size > 0
    assert (folder / "figures" / "editing.png").stat().st_size > 0


def test_an_edit_is_two_texts_of_which_the_prompts_hold_the_first():
    setting = Setting(4, edit=["a ", "the "])
    assert setting.target("a cat") == "the cat" and setting.prompts == "a  -> the "
    found = jobs({"edict": EDICT()}, [setting], images(), 8)
    assert all([i.prompt for i in job.images] == [i.prompt for i in images()] for job in found)  # of the inversion
    with pytest.raises(ValueError, match=r"edit=\['photo', 'sketch'\]: the prompt 'a (cat|dog|owl)' does not hold"):
        jobs({"edict": EDICT()}, [Setting(4, edit=["photo", "sketch"])], images(), 8)
    for wrong in ("photo", ["photo"], ["photo", ""]):
        with pytest.raises(ValueError, match="give two texts"):
            Setting(4, edit=wrong)
    with pytest.raises(ValueError, match="exclude each other"):
        Setting(4, edit=["a", "the"], wrong_prompts=True)


def test_samples_hold_every_image_of_every_method(run):
    samples = pd.read_parquet(run[0] / "samples.parquet")
    real = samples[(samples["method"] == "accelerated") & (samples["prompts"] == "right") & ~samples["generated"]]
    assert len(real) == 2 * 3 and real["sample"].nunique() == 3
    wrong = samples[samples["prompts"] == "wrong"]
    assert not set(zip(wrong["sample"], wrong["prompt"], strict=True)) & set(
        zip(real["sample"], real["prompt"], strict=True)
    )


def test_a_second_run_computes_nothing_again(run):
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in folder.glob("units/**/*.safetensors")}
    config = OmegaConf.load(folder / "config.yaml")
    task, trainer = train.prepare(config)
    first = rows(folder)
    task.run(trainer)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("units/**/*.safetensors")}
    assert rows(folder) == first


def concepts() -> list[Concept]:
    generator = np.random.default_rng(0)
    return [
        Concept(name, f"a {name}", 5, "tail", generator.integers(0, 255, (count, 3, 4, 4), dtype=np.uint8))
        for name, count in (("cat", 2), ("dog", 2), ("owl", 1))
    ]


def images(count: int = 3) -> list[ImagePrompt]:
    return from_concepts(concepts(), count, torch.Generator().manual_seed(0))


def test_images_take_every_concept_before_any_twice():
    chosen = images(5)
    assert {image.concept for image in chosen[:3]} == {"cat", "dog", "owl"}
    assert len({image.key for image in chosen}) == 5
    assert [image.key for image in images(2)] == [image.key for image in chosen[:2]]
    with pytest.raises(ValueError, match=r"task\.images=6"):
        images(6)


def test_images_to_generate_are_as_many_as_asked_for():
    own = images(2)
    made = generated_images(own, 5)
    assert [image.prompt for image in made] == [own[k % 2].prompt for k in range(5)]
    assert len({image.name for image in made}) == 5  # each has noise of its own
    (job,) = (j for j in jobs({"edict": EDICT()}, [Setting(4, generated=True, images=5)], own, 8) if j.inverter)
    assert [image.name for image in job.images] == [image.name for image in made]


def test_wrong_prompts_are_of_other_concepts():
    for image, wrong in zip(images(5), mismatched(images(5)), strict=True):
        assert wrong.name == image.name and wrong.prompt != image.prompt
    with pytest.raises(ValueError, match="two concepts"):
        mismatched(images(1))


def test_jobs_cover_methods_settings_and_batches_once():
    methods = {"aidi": ImplicitInverter(FixedPoint()), "edict": EDICT()}
    settings = [
        Setting(4, nfe=[1, 2], methods=["aidi"]),
        Setting(4),
        Setting(4, nfe=1, methods=["aidi"]),
    ]
    found = jobs(methods, settings, images(3), batch_size=2)
    per_batch = {(job.method, job.setting.nfe) for job in found}
    assert per_batch == {(VAE_BOUND, None), ("aidi", 1), ("aidi", 2), ("aidi", None), ("edict", None)}
    assert len(found) == 2 * len(per_batch)
    aidi = next(job for job in found if job.setting.nfe == 2)
    assert aidi.inverter.solver.iterations == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [([Setting(4, methods=["bidi"])], "'bidi'"), ([Setting(4, nfe=3)], "'edict' cannot use nfe=3: EDICT has a fixed number")],
)
def test_jobs_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        jobs({"edict": EDICT()}, settings, images(2), 2)


def sample(prompts: str, residual: float) -> dict:
    shared = {"method": "m", "start": None, "steps": 4, "guidance": 1.0, "nfe": 2, "generated": False}
    shared["images"] = "real"
    return {
        **shared,
        "prompts": prompts,
        "residual": residual,
        "residual_mean": residual,
        "latent_mse": 1.0,
        "psnr": 20.0,
    }


def test_detection_is_the_area_under_the_curve():
    samples = [sample("right", 0.1), sample("right", 0.3), sample("wrong", 0.2), sample("wrong", 0.4)]
    found = {row["score"]: row["auc"] for row in detection(samples)}
    assert found == {"residual": 0.75, "residual_mean": 0.75, "latent_mse": 0.5}


def test_a_summary_does_not_hide_what_diverged():
    samples = [sample("right", 0.1), sample("right", math.inf) | {"psnr": math.nan}]
    row = summary(samples, seed=0)
    assert math.isinf(row["residual"]) and math.isnan(row["psnr"]) and math.isnan(row["psnr_low"]) and row["n"] == 2


def test_a_table_says_how_errors_spread_and_what_was_lost():
    """A mean alone may be that of a few images that were lost."""
    errors = [k / 100 for k in range(1, 20)] + [9.0]
    samples = [sample("right", 0.1) | {"latent_mse": error, "not_finite": 0.0} for error in errors]
    row = summary(samples, seed=0)
    found = [row[f"latent_mse{name}"] for name in ("", "_median", "_p95", "_largest")]
    assert found == pytest.approx([np.mean(errors), 0.105, 0.19, 9.0]) and row["not_finite"] == 0
    samples[3] |= {"latent_mse": math.nan, "not_finite": 1.0}
    row = summary(samples, seed=0)
    assert math.isinf(row["latent_mse_largest"]) and row["latent_mse_p95"] == 9.0 and row["not_finite"] == 1
    assert {COLUMNS[f"latent_mse{name}"] for name in ("", "_median", "_p95", "_largest")} == {
        "latent MSE", "median", "95 %", "largest",
    }  # fmt: skip


@dataclass(frozen=True)
class Losing(ImplicitInverter):
    """Reconstructs the first image of a batch as NaN."""

    def reconstruct(self, inversion, predictor, schedule):
        z = super().reconstruct(inversion, predictor, schedule)
        return torch.cat([torch.full_like(z[:1], torch.nan), z[1:]])


def test_an_image_that_is_lost_is_counted_and_costs_no_other(tmp_path):
    methods = {"whole": ImplicitInverter(FixedPoint(2)), "losing": Losing(FixedPoint(2))}
    task = InversionExperiment(
        source=Squares(), concepts="all", buckets=["tail"], model=tiny, clip=clip, classifier=judge(tmp_path / "judge"),
        seed=0, run_dir=str(tmp_path / "run"), methods=methods, settings=[Setting(2)], images=3, batch_size=3,
        figures=[], paper=[],
    )  # fmt: skip
    carried_out(task)
    whole, losing = (next(row for row in rows(tmp_path / "run") if row["method"] == name) for name in methods)
    assert (whole["not_finite"], losing["not_finite"]) == (0, 1)
    assert losing["psnr"] is None and losing["latent_mse_largest"] is None and whole["psnr"] > 0
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    kept = [samples[samples["method"] == name].sort_values("sample")["psnr"].to_numpy() for name in methods]
    assert np.isnan(kept[1]).sum() == 1
    assert kept[1][~np.isnan(kept[1])] == pytest.approx(kept[0][~np.isnan(kept[1])])


def test_lpips_of_a_file_stands_beside_the_judges_distance_and_both_are_named(tmp_path):
    given = {
        "source": Squares(), "concepts": "all", "buckets": ["tail"], "clip": clip, "seed": 0,
        "model": partial(LatentDiffusion.from_pretrained, "assets/models/emoji", dtype=torch.float32),
        "classifier": judge(tmp_path / "judge"), "run_dir": str(tmp_path / "run"), "settings": [Setting(2)],
        "images": 3, "batch_size": 3, "figures": [], "paper": [],
        "methods": {"a": ImplicitInverter(FixedPoint(1)), "b": ImplicitInverter(FixedPoint(3))},
    }  # fmt: skip
    carried_out(InversionExperiment(**given, stlpips=str(random_weights(tmp_path / "weights.pth"))))
    results, table = json.loads((tmp_path / "run" / "results.json").read_text()), tmp_path / "run" / "table.md"
    assert all(row["st_lpips"] > 0 for row in results["rows"])
    assert results["settings"]["perceptual"]["images"] == 9 and "ST-LPIPS" in table.read_text()
    assert "Rank correlation" in table.read_text() and "the features of resnet10t" in table.read_text()
    carried_out(InversionExperiment(**given))
    assert "st_lpips" not in rows(tmp_path / "run")[0] and "Rank" not in table.read_text()
    with pytest.raises(ValueError, match="at least 32 pixels a side, and this model makes 16"):
        carried_out(InversionExperiment(**given | {"model": tiny}, stlpips="weights.pth"))


def test_ranks_of_the_two_distances_are_compared_over_images_and_over_rows():
    values = {"a": [(0.1, 1.0), (0.3, 2.0)], "b": [(0.2, 3.0), (0.4, 4.0)], "c": [(0.9, 9.0), (0.8, 8.0)]}
    made = [
        sample("right", 0) | {"method": method, "perceptual": p, "st_lpips": q}
        for method, own in values.items()
        for p, q in own
    ]
    lost = made[0] | {"perceptual": math.nan}
    found = rank_agreement([*made, lost])
    assert found == {
        "spearman_images": pytest.approx(1 - 6 * 2 / (6 * 35)), "images": 6, "spearman_rows": pytest.approx(1.0),
        "rows": 3,
    }  # fmt: skip
    assert rank_agreement(made[:4]) == {} == rank_agreement([{**s, "st_lpips": math.nan} for s in made])


def test_every_image_is_held_against_its_own_ceiling():
    shared = sample("right", 0) | {"method": VAE_BOUND, "steps": None}
    ceiling = [shared | {"sample": name, "psnr": psnr} for name, psnr in (("a", 30), ("b", 9))]
    found = with_vae_gaps([*ceiling, ceiling[0], sample("right", 0.1) | {"sample": "a", "psnr": 28}])
    assert [row.get("vae_gap") for row in found] == [None, None, 2]
    assert summary(found[2:], seed=0)["vae_gap"] == 2


def test_residuals_are_drawn_where_evaluations_do_not_vary():
    row = sample("right", 0.1) | {"nfe_per_step": 2.0}
    assert [axis.get_title() for axis in FIGURES["residuals"]([row], []).axes] == ["4 steps, guidance 1"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.images=0"], "task.images=0"),
        (["task.batch_size=0"], "batch_size=0"),
        (["+task.settings.0.guidance=0.5"], "guidance=0.5"),
        (["task.settings.0.steps=2000"], "2000"),
        (["task.settings.0.nfe=0"], "nfe=0"),
        (["task.settings.0.methods=[magic]"], "'magic'"),
        (["+method@task.methods.vae=ddim"], "'vae'"),
        (["task.figures=[pie]"], "pie"),
        (["task.settings=[]"], "task.settings=[]: give a list of Setting, at least one"),
    ],
)
def test_bad_input_is_found_before_any_work(overrides, message, tmp_path):
    config = composed("experiment=reconstruction", f"run_dir={tmp_path}/run", *overrides)
    with pytest.raises((ValueError, HydraException)) as caught:
        train.prepare(config)
    assert message in train.explain(caught.value)
    assert not (tmp_path / "run").exists()
