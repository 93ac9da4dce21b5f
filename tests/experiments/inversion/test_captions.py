"""Inversion of captioned images: the caption is the prompt, and an image is read when its batch is computed."""

import pytest
import torch

from experiments.data.captions import Captioned
from experiments.data.images import Images
from experiments.inversion.jobs import from_captions, mismatched
from experiments.runtime.setup import setup
from tests.commands import composed
from tests.fakes import captions
from tests.pipelines import tiny_stable_diffusion

TEXTS = ["a dog on a lawn", "a cat", "two dogs"]


def test_selection_is_random_and_reads_no_image():
    def read(item, size):
        raise AssertionError("read")

    names = [str(k) for k in range(5000)]
    pairs = Captioned(names, [f"caption {k}" for k in names], Images(names, read, (8, 8), identity=str))
    selected = from_captions(pairs, 5000, torch.Generator().manual_seed(0))
    assert sorted(image.name for image in selected) == sorted(names)
    assert selected[0].name != "0"
    assert len({image.key for image in selected}) == 5000
    wrong = mismatched(selected)
    assert all(a.prompt != b.prompt for a, b in zip(selected, wrong, strict=True))
    assert from_captions(pairs, 7, torch.Generator().manual_seed(0)) == selected[:7]
    assert (
        len(from_captions(pairs, 5001, torch.Generator())) == len(from_captions(pairs, None, torch.Generator())) == 5000
    )


@pytest.mark.slow
def test_captioned_images_are_inverted_under_their_captions(tmp_path):
    captions(tmp_path / "coco", TEXTS)
    tiny_stable_diffusion().save_pretrained(tmp_path / "model")
    options = [
        "experiment=convergence", "data=captions", f"data.captions={tmp_path}/coco/annotations.json",
        f"data.images={tmp_path}/coco/images", "data.classifier=assets/models/classifier", "task.images=3",
        "data.clip=assets/models/clip", "model=sd", f"model.path={tmp_path}/model", "model.dtype=float32",
        "model.local_files_only=true", f"run_dir={tmp_path}/run", "trainer.accelerator=cpu", "task.batch_size=2",
        "task.settings=[{_target_:experiments.inversion.jobs.Setting,steps:2,methods:[accelerated]},"
        "{_target_:experiments.inversion.jobs.Setting,steps:2,methods:[accelerated],prompt:wrong}]",
        "task.figures=[]",
    ]  # fmt: skip
    task, trainer = setup(composed(*options))
    task.run(trainer)
    table = (tmp_path / "run" / "table.md").read_text()
    assert "| PSNR, dB ↑" in table
    assert {image.prompt for job in task.jobs for image in job.images} == set(TEXTS)
