"""The main job on a user's checkpoint, images, counts and classifier: the same code, other configs."""

import json
from pathlib import Path

import pytest
import timm
from hydra import compose, initialize_config_dir
from PIL import Image

import train
from experiments.judges.classifier import Classifier
from tests.pipelines import IMAGE_SIZE, tiny_stable_diffusion

COLOURS = {"tiger cat": "orange", "payphone": "blue"}


@pytest.fixture
def files(tmp_path):
    for prediction in ("epsilon", "v_prediction"):
        tiny_stable_diffusion(prediction).save_pretrained(tmp_path / prediction)
    for kind in ("references", "real"):
        for name, colour in COLOURS.items():
            (tmp_path / kind / name).mkdir(parents=True)
            for k in range(2):
                Image.new("RGB", (20 + k, 20), colour).save(tmp_path / kind / name / f"{k}.png")
    (tmp_path / "counts.tsv").write_text("tiger cat\t3\npayphone\t5000000\n")
    network = timm.create_model("resnet10t", num_classes=2)
    Classifier(network, list(COLOURS), 32, (0.5,) * 3, (0.5,) * 3).save(tmp_path / "classifier", "resnet10t")
    return tmp_path


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_main_job_on_a_stable_diffusion_checkpoint(files, prediction):
    options = [
        "model=sd", f"model.path={files / prediction}", "model.dtype=float32", "model.local_files_only=true",
        "data=folder", f"data.references={files}/references", f"data.real={files}/real",
        f"data.counts={files}/counts.tsv", f"data.classifier={files}/classifier", "data.clip=assets/models/clip",
        f"data.source.size={IMAGE_SIZE}", f"run_dir={files}/run", "trainer.accelerator=cpu", "task.steps=4",
        "task.samples=3", "task.references=2", "task.checkpoint=true", "select.iterations=1",
        "task.arms.seedselect_rnri.guidance=3.0", "seed=1",
    ]  # fmt: skip
    with initialize_config_dir(str(Path("configs").resolve()), version_base="1.3"):
        config = compose("train", options)
    task, trainer = train.prepare(config)
    task.run(trainer)
    rows = json.loads((files / "run" / "results.json").read_text())["rows"]
    assert {row["bucket"] for row in rows} == {"head", "tail", "total"}
    assert all(row["n"] == (6 if row["bucket"] == "total" else 3) for row in rows)
    assert (files / "run" / "images" / "tail.png").is_file()
