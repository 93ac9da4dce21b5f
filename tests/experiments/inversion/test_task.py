"""The inversion experiment runs with several methods and images of colored squares."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.config.errors import one_line
from experiments.inversion.jobs import VAE_BOUND, Setting
from experiments.inversion.task import InversionExperiment
from experiments.runtime.setup import setup
from rnri import FixedPoint, ImplicitInverter, LatentDiffusion
from tests.commands import composed, forked
from tests.experiments.evaluation.test_lpips import random_weights
from tests.experiments.tiny_configs import Squares, clip, run_to_end, tiny, tiny_classifier, tiny_emoji_classifier

pytestmark = pytest.mark.slow


def setting(**options: object) -> str:
    """Return a setting of three steps for the command line."""
    fields = {"steps": 3, **options}
    return (
        f"{{_target_:experiments.inversion.jobs.Setting,{','.join(f'{key}:{value}' for key, value in fields.items())}}}"
    )


ONE = setting(nfe="[2,3]")
BOTH = "[rnri,accelerated]"
SETTINGS = [
    setting(nfe="[2,3]", methods=BOTH),
    setting(nfe=2, prompt="wrong", methods=BOTH),
    setting(nfe=2, prompt="empty", methods="[accelerated]"),
    setting(guidance=2.0, generated="true", methods="[accelerated]"),
    setting(decoder_iterations=3, methods="[edict]"),
    setting(nfe=2, edit="[white background,pink background]", methods="[accelerated]"),
]
EDIT = "white background -> pink background"
SMALL = ["task.images=3", "task.batch_size=2", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and process of a finished run."""
    folder = tmp_path_factory.mktemp("inversion")
    finished = forked(
        "experiment=convergence", f"run_dir={folder}", *SMALL, "+method@task.methods.edict=edict",
        f"task.settings=[{','.join(SETTINGS)}]", "task.figures=[residuals,detection,editing]",
        tiny_emoji_classifier(folder / "classifier"),
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return folder, finished


def rows(folder) -> list[dict]:
    return json.loads((Path(folder) / "results.json").read_text())["rows"]


@pytest.fixture(scope="module")
def table(run):
    """Rows by method, NFE, prompt and whether the images are generated."""
    folder, _ = run
    return {(row["method"], row["nfe"], row["prompt"], row["generated"]): row for row in rows(folder)}


def test_vae_bound_has_no_residual(table):
    vae = table[VAE_BOUND, None, "caption", False]
    assert vae["n"] == 3
    assert vae["latent_mse"] == 0
    assert "residual" not in vae


@pytest.mark.parametrize("nfe", [2, 3])
def test_row_has_conditions_costs_and_residuals(table, nfe):
    row = table["accelerated", nfe, "caption", False]
    assert (row["initial_guess"], row["steps"], row["guidance"], row["n"]) == ("fitted", 3, 1, 3)
    assert row["nfe_per_step"] <= nfe
    assert row["backward_per_step"] == 0
    assert row["psnr_low"] <= row["psnr"] <= row["psnr_high"]
    assert row["residual"] >= row["residual_mean"] > 0
    assert row["seconds"] > 0


def test_empty_prompt_has_rows_a_bound_and_a_table(run, table):
    caption, empty = (table["accelerated", 2, prompt, False] for prompt in ("caption", "empty"))
    assert empty["latent_mse"] != caption["latent_mse"]
    assert table[VAE_BOUND, None, "empty", False]["psnr"] == table[VAE_BOUND, None, "caption", False]["psnr"]
    assert (
        table[VAE_BOUND, None, "empty", False]["clip_score"] == table[VAE_BOUND, None, "caption", False]["clip_score"]
    )
    texts = (run[0] / "table.md").read_text().split("Images: ")
    assert sum(text.startswith("real, empty prompt") and "| vae " in text for text in texts) == 1
    samples = pd.read_parquet(run[0] / "samples.parquet")
    assert set(samples[samples["prompt"] == "empty"]["prompt_text"]) == {""}
    assert (run[0] / "images" / "3steps_guidance1_NFE2_emptyprompt.png").stat().st_size > 0


def test_rows_have_statistics_of_the_seeds(table):
    row = table["accelerated", 3, "caption", False]
    assert 0 <= row["normality"] <= 1 and 0 <= row["normality_rejected"] <= 1
    assert -1 / 3 <= row["patch_correlation"] <= 1
    assert row["straightness"] > 0
    assert row["latent_mse_textured"] >= 0
    assert row["nfe_total"] == pytest.approx(3 * row["nfe_per_step"] + 3)
    assert "straightness" not in table[VAE_BOUND, None, "caption", False]


def test_exact_method_after_decoder_inversion_reaches_the_vae_bound(table):
    row = table["edict, decoder inversion", None, "caption", False]
    assert row["latent_mse"] < 1e-8
    assert row["residual"] is None
    assert row["stored_bytes"] == 8 * 1024
    assert row["psnr"] == pytest.approx(table["vae, decoder inversion", None, "caption", False]["psnr"], abs=0.01)


def test_generated_images_have_distances_to_the_true_latent(run, table):
    row = table["accelerated", None, "caption", True]
    assert row["distance_encoded"] == row["distance_adjusted"] > 0
    assert row["distance_reconstructed"] > 0
    assert "| reconstructed ↓ |" in (run[0] / "table.md").read_text()


def test_run_writes_table_figures_and_images(run):
    folder, finished = run
    names = ("table.md", "table.tex", "table.csv", "detection.csv", "report.html", "config.yaml", "metrics.csv")
    for name in (*names, "figures/residuals.png", "figures/detection.pdf"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "images" / "3steps_guidance1_NFE2.png").stat().st_size > 0
    assert "| accelerated " in finished.stdout
    assert "Lowest PSNR: image and reconstruction" in (folder / "report.html").read_text()


def test_wrong_prompts_are_detected_by_scores(run):
    folder, _ = run
    detection = json.loads((folder / "results.json").read_text())["settings"]["detection"]
    scores = {(row["method"], row["score"]) for row in detection}
    assert (VAE_BOUND, "clip_score") in scores
    assert any(method.startswith("rnri (") and score == "residual" for method, score in scores)
    assert all(0 <= row["auc"] <= 1 for row in detection)


def test_edit_is_compared_with_the_edited_prompt(table):
    original = table[VAE_BOUND, None, EDIT, False]
    edited = table["accelerated", 2, EDIT, False]
    reconstructed = table["accelerated", 2, "caption", False]
    assert original["clip_score"] < edited["clip_score"]
    assert edited["perceptual"] > reconstructed["perceptual"]
    assert edited["residual"] == pytest.approx(reconstructed["residual"])  # inverted under the image's own prompt


def test_edits_have_a_separate_table_and_figures(run):
    folder, _ = run
    samples = pd.read_parquet(folder / "samples.parquet")
    assert samples[samples["prompt"] == EDIT]["prompt_text"].str.contains("pink background").all()
    main, edits = (folder / "table.md").read_text().split(f"Images: real, edit {EDIT}\n")
    assert "CLIP score ↑" in edits
    assert "CLIP score ↑" not in main
    assert (folder / "images" / "3steps_guidance1_NFE2_whitebackground-pinkbackground.png").stat().st_size > 0
    assert (folder / "figures" / "editing.png").stat().st_size > 0


def test_samples_have_every_image_of_every_method(run):
    samples = pd.read_parquet(run[0] / "samples.parquet")
    real = samples[(samples["method"] == "accelerated") & (samples["prompt"] == "caption") & ~samples["generated"]]
    assert len(real) == 2 * 3
    assert real["sample"].nunique() == 3
    wrong = samples[samples["prompt"] == "wrong"]
    wrong_pairs = set(zip(wrong["sample"], wrong["prompt_text"], strict=True))
    assert not wrong_pairs & set(zip(real["sample"], real["prompt_text"], strict=True))


def test_second_run_computes_nothing(run):
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in folder.glob("units/**/*.safetensors")}
    task, trainer = setup(OmegaConf.load(folder / "config.yaml"))
    first = rows(folder)
    task.run(trainer)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("units/**/*.safetensors")}
    assert rows(folder) == first


def experiment(folder: Path, **changes: object) -> InversionExperiment:
    """Return an experiment on colored squares."""
    options = {
        "source": Squares(), "concepts": "all", "buckets": ["tail"], "model": tiny, "clip": clip,
        "classifier": tiny_classifier(folder / "classifier"), "seed": 0, "run_dir": str(folder / "run"),
        "settings": [Setting(2)], "images": 3, "batch_size": 3, "figures": [], "paper": [],
    }  # fmt: skip
    return InversionExperiment(**options | changes)


@dataclass(frozen=True)
class LosesFirstImage(ImplicitInverter):
    """Reconstructs the first image of a batch as NaN."""

    def reconstruct(self, inversion, predictor, schedule):
        z = super().reconstruct(inversion, predictor, schedule)
        return torch.cat([torch.full_like(z[:1], torch.nan), z[1:]])


def test_lost_image_is_counted_and_does_not_affect_others(tmp_path):
    methods = {"complete": ImplicitInverter(FixedPoint(2)), "losing": LosesFirstImage(FixedPoint(2))}
    run_to_end(experiment(tmp_path, methods=methods))
    complete, losing = (next(row for row in rows(tmp_path / "run") if row["method"] == name) for name in methods)
    assert (complete["not_finite"], losing["not_finite"]) == (0, 1)
    assert complete["psnr"] > 0
    assert losing["psnr"] is None
    assert losing["latent_mse_largest"] is None
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    expected, psnr = (samples[samples["method"] == name].sort_values("sample")["psnr"].to_numpy() for name in methods)
    assert np.isnan(psnr).sum() == 1
    assert psnr[~np.isnan(psnr)] == pytest.approx(expected[~np.isnan(psnr)])


def test_st_lpips_is_reported_with_its_rank_correlation(tmp_path):
    changes = {
        "model": partial(LatentDiffusion.from_pretrained, "assets/models/emoji", dtype=torch.float32),
        "methods": {"a": ImplicitInverter(FixedPoint(1)), "b": ImplicitInverter(FixedPoint(3))},
    }
    table = tmp_path / "run" / "table.md"
    run_to_end(experiment(tmp_path, **changes, stlpips=str(random_weights(tmp_path / "weights.pth"))))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(row["st_lpips"] > 0 for row in results["rows"])
    assert results["settings"]["perceptual"]["images"] == 9
    assert "st_lpips" in (tmp_path / "run" / "table.csv").read_text().splitlines()[0]
    assert "Rank correlation" in table.read_text()
    assert "features of test_resnet" in table.read_text()
    run_to_end(experiment(tmp_path, **changes))
    assert "st_lpips" not in rows(tmp_path / "run")[0]
    assert "Rank" not in table.read_text()


def test_rejects_st_lpips_for_images_that_are_too_small(tmp_path):
    methods = {"a": ImplicitInverter(FixedPoint(1))}
    with pytest.raises(ValueError, match="sides >= 32 pixels, but this model generates images with sides of 16"):
        run_to_end(experiment(tmp_path, methods=methods, stlpips="weights.pth"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.images=0"], "task.images"),
        (["task.batch_size=0"], "batch_size"),
        (["+task.settings.0.guidance=0.5"], "guidance"),
        (["task.settings.0.steps=2000"], "2000"),
        (["task.settings.0.nfe=0"], "nfe"),
        (["task.settings.0.methods=[magic]"], "'magic'"),
        (["+method@task.methods.vae=ddim"], "'vae'"),
        (["task.figures=[pie]"], "pie"),
        (["task.settings=[]"], "task.settings"),
    ],
)
def test_prepare_rejects_bad_input_without_a_run_folder(overrides, message, tmp_path):
    config = composed("experiment=reconstruction", f"run_dir={tmp_path}/run", *overrides)
    with pytest.raises((ValueError, HydraException)) as error:
        setup(config)
    assert message in one_line(error.value)
    assert not (tmp_path / "run").exists()
