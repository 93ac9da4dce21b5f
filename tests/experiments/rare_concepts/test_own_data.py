"""The rare-concepts experiment with the checkpoint, images, counts and classifier of a user."""

import json
from pathlib import Path

import pytest
import timm
from hydra.errors import HydraException
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import load_file

from experiments.config.errors import one_line
from experiments.evaluation.classifier import Classifier, Preprocessing
from experiments.runtime.setup import setup
from tests.commands import composed
from tests.pipelines import IMAGE_SIZE, LATENT_SHAPE, tiny_stable_diffusion

PREPROCESSING = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
COLORS = {"tiger cat": "orange", "payphone": "blue"}


CHECKPOINTS = {  # prediction type, and height and width of the latents
    "square": ("epsilon", LATENT_SHAPE[1:]),
    "wide": ("v_prediction", (8, 12)),
}


@pytest.fixture
def files(tmp_path):
    for name, (prediction, size) in CHECKPOINTS.items():
        tiny_stable_diffusion(prediction, unet={"sample_size": size}).save_pretrained(tmp_path / name)
    for kind in ("references", "real"):
        for name, color in COLORS.items():
            (tmp_path / kind / name).mkdir(parents=True)
            for k in range(2):
                Image.new("RGB", (20 + k, 20), color).save(tmp_path / kind / name / f"{k}.png")
    (tmp_path / "counts.tsv").write_text("tiger cat\t3\npayphone\t5000000\n")
    network = timm.create_model("resnet10t", num_classes=2)
    Classifier(network, list(COLORS), PREPROCESSING).save(tmp_path / "classifier", "resnet10t")
    return tmp_path


def configured(files: Path, checkpoint: str, *overrides: str) -> DictConfig:
    options = [
        "model=sd", f"model.path={files / checkpoint}", "model.dtype=float32", "model.local_files_only=true",
        "data=folder", f"data.references={files}/references", f"data.real={files}/real",
        f"data.counts={files}/counts.tsv", f"data.classifier={files}/classifier", "data.clip=assets/models/clip",
        f"run_dir={files}/run", "trainer.accelerator=cpu", "task.steps=4", "task.samples=3", "task.references=2",
        "task.gradient_checkpointing=true", "select.iterations=1", "task.arms.seedselect_rnri.guidance=3.0", "seed=1",
        "~task.arms.seedselect_ours", "~task.arms.between_ours", *overrides,
    ]  # fmt: skip
    return composed(*options)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_main_job_on_a_stable_diffusion_checkpoint(files, checkpoint):
    """Images have the checkpoint's size, which need not be square."""
    task, trainer = setup(configured(files, checkpoint))
    height, width = CHECKPOINTS[checkpoint][1]
    scale = IMAGE_SIZE // LATENT_SHAPE[1]
    assert task.context.concepts[0].references.shape == (2, 3, scale * height, scale * width)
    task.run(trainer)
    rows = json.loads((files / "run" / "results.json").read_text())["rows"]
    assert {row["bucket"] for row in rows} == {"head", "tail", "total"}
    assert {row["method"] for row in rows} == {"plain", "seedselect_ddim", "seedselect_rnri", "real"}
    for row in rows:
        images = 2 if row["method"] == "real" else 3  # per concept: the references, or the samples
        assert row["n"] == (2 * images if row["bucket"] == "total" else images)
    assert (files / "run" / "images" / "tail.png").is_file()
    unit = next((files / "run" / "units").rglob("*.safetensors"))
    assert load_file(unit)["images"].shape == (3, 3, scale * height, scale * width)


def broken(path: Path) -> None:
    """Truncate a file after its header."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size - 30])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.source.size=32"], "images have 32 x 32 pixels (height x width), but the checkpoint needs 16 x 16"),
        (["data.source.size=[16,24]"], "images have 16 x 24 pixels"),
        (["task.references=3"], "task.references=3, but 'payphone' has 2 reference images"),
        (["data.source.prompt='a {}'"], "it must contain {name}"),
        (["data.concepts=[payphone,'tiger cat',payphone]"], "data.concepts"),
    ],
)
def test_prepare_rejects_data_that_does_not_fit(files, overrides, message):
    with pytest.raises((ValueError, HydraException)) as caught:
        setup(configured(files, "square", *overrides))
    assert message in one_line(caught.value)
    assert not (files / "run").exists()


@pytest.mark.parametrize("kind", ["references", "real"])
def test_prepare_rejects_a_truncated_image(files, kind):
    broken(files / kind / "payphone" / "1.png")
    with pytest.raises(ValueError, match=rf"{kind}.payphone.1\.png cannot be read as an image"):
        setup(configured(files, "square"))
    assert not (files / "run").exists()


def test_concepts_named_by_numbers_are_selected(files):
    for kind in ("references", "real"):
        for k, name in enumerate(COLORS):
            (files / kind / name).rename(files / kind / str(k))
    (files / "counts.tsv").write_text("0\t3\n1\t5000000\n")
    network = timm.create_model("resnet10t", num_classes=2)
    Classifier(network, ["0", "1"], PREPROCESSING).save(files / "classifier", "resnet10t")
    task, _ = setup(configured(files, "square", "data.concepts=[1,0]"))
    assert [concept.name for concept in task.context.concepts] == ["1", "0"]


def test_inversion_experiment_uses_the_checkpoints_size(files):
    options = ["experiment=reconstruction", f"run_dir={files}/inversion", "task.images=3", "trainer.accelerator=cpu"]
    data = [f"data.{name}={files / name}" for name in ("references", "real", "classifier")]
    data += ["data=folder", f"data.counts={files}/counts.tsv", "data.clip=assets/models/clip", "model=sd"]
    data += [f"model.path={files}/wide", "model.dtype=float32", "model.local_files_only=true"]
    task, _ = setup(composed(*options, *data))
    assert {tuple(image.image.shape) for job in task.jobs for image in job.images} == {(3, 16, 24)}
