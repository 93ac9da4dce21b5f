"""A judge of a user's own folders, and where trainings write; none of them takes more than three steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import train
from experiments.data.labeled import LabeledEmoji, LabeledFolders
from experiments.evaluation.classifier import load_classifier
from tests.experiments.pretrain.configured import configured

TRAININGS = sorted(path.stem for path in Path("configs/experiment").glob("pretrain_*.yaml"))
NAMES = ["camel", "padlock", "tomato"]


@pytest.fixture
def root(tmp_path) -> Path:
    generator = np.random.default_rng(0)
    for kind in ("references", "real"):
        for name in NAMES:
            (tmp_path / kind / name).mkdir(parents=True)
            for k in range(2):
                noise = generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / kind / name / f"{k}.png")
    return tmp_path


def folders(root: Path) -> list[str]:
    return [
        "data=folder", f"data.references={root}/references", f"data.real={root}/real", "task.image_size=32",
        "task.batch_size=64", "trainer.precision=32-true",
    ]  # fmt: skip


def run(root: Path, *overrides: str) -> dict:
    config = configured("classifier", root, *folders(root), *overrides)
    task, trainer = train.prepare(config)
    train.save_config(config)
    task.run(trainer)
    return json.loads((root / "run" / "results.json").read_text())


def refused(root: Path, *overrides: str) -> str:
    with pytest.raises(Exception) as caught:
        train.prepare(configured("classifier", root, *folders(root), *overrides))
    assert not (root / "run").exists()
    return train.explain(caught.value)


def test_a_judge_of_ones_own_folders(root):
    assert run(root)["steps"] == 2
    judge = load_classifier(root / "run" / "model")
    assert judge.labels == NAMES and judge.image_size == 32
    assert judge(torch.rand(2, 3, 48, 64)).shape == (2, 3)


def test_a_group_left_out_measures_the_judge_that_is_saved(root):
    result = run(root, "task.excluded=[real]")
    assert set(result) >= {"real", "accuracy", "n", "steps"} and result["n"] == 6
    judge, images = load_classifier(root / "run" / "model"), LabeledFolders({"real": str(root / "real")})
    images.prepare(32)
    unseen = images.dataset(["real"], augment=False)
    hits = [judge(unseen[k][0][None]).argmax().item() == unseen[k][1] for k in range(6)]
    assert result["real"] == pytest.approx(sum(hits) / 6, abs=1 / 6)  # half precision may turn one


def test_a_training_starts_from_the_weights_in_a_file_and_leaves_frozen_parts_alone(root):
    network = timm.create_model("resnet10t", num_classes=7)
    torch.save({f"other.{k}": tensor for k, tensor in enumerate(network.state_dict().values())}, root / "start.pth")
    options = ["task.architecture=resnet10t", f"task.init_from={root}/start.pth", "task.frozen=[conv1,bn1,layer1]"]
    run(root, *options)
    learned = load_classifier(root / "run" / "model").network.state_dict()
    for name, tensor in network.state_dict().items():
        if name.startswith(("conv1.", "bn1.", "layer1.")):
            # averaging equal weights rounds, and so may turn the last digit of half precision
            torch.testing.assert_close(learned[name], tensor, rtol=2e-3, atol=1e-6)
    moved = [name for name, tensor in network.state_dict().items() if name.startswith("layer4.") and tensor.ndim == 4]
    assert moved and not any(torch.equal(learned[name], network.state_dict()[name].half().float()) for name in moved)


def test_a_start_of_another_network_is_refused(root):
    network = timm.create_model("resnet10t", num_classes=7)
    torch.save(network.state_dict(), root / "start.pth")
    assert "not in order the" in refused(root, f"task.init_from={root}/start.pth", "task.architecture=resnet18")
    assert "cannot be read as weights" in refused(root, f"task.init_from={root}/none.pth")
    assert "task.frozen names 'conv2', no part of" in refused(root, "task.frozen=[conv2]")


def test_a_folder_more_and_a_size_of_its_own(root):
    (root / "more" / "owl").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "more" / "owl" / "0.gif")
    run(root, f"+data.labeled.folders.more={root}/more", "data.labeled.size=[16,24]", "data.labeled.workers=1")
    assert load_classifier(root / "run" / "model").labels == ["camel", "owl", "padlock", "tomato"]


def test_what_cannot_be_learned_is_said_before_the_training(root):
    assert "task.excluded=['fid']: name some, but not all, of references, real" in refused(root, "task.excluded=[fid]")
    assert "name some, but not all" in refused(root, "task.excluded=[references,real]")
    assert "task.architecture='resnet1000'" in refused(root, "task.architecture=resnet1000")
    assert "task.image_size=32" in refused(root, "task.architecture=vit_tiny_patch16_224")
    (root / "real" / "owl").mkdir()
    assert "owl holds no images" in refused(root)
    Image.new("RGB", (9, 9)).save(root / "real" / "owl" / "0.png")
    assert "leaves no image of 'owl' to learn from" in refused(root, "task.excluded=[real]")
    (root / "real" / "owl" / "1.jpg").write_bytes(b"")
    assert "1.jpg cannot be read as an image" in refused(root)
    assert "not a folder" in refused(root, f"data.references={root}/nowhere")


def test_folders_without_labels_are_refused(root):
    with pytest.raises(ValueError, match="hold 0 folders of images"):
        LabeledFolders({"a": str(root / "real" / "camel")}).prepare(32)
    with pytest.raises(ValueError, match=r"size=0"):
        LabeledFolders({"a": str(root / "real")}, size=0)


def test_images_of_folders_are_seen_in_a_mirror_when_they_are_to_change(root):
    images = LabeledFolders({"a": str(root / "real")})
    images.prepare(16)
    assert len(images.dataset(["a"], augment=False)) == 6 and images.dataset([], augment=True).labels == []
    changed = images.dataset(["a"], augment=True)
    assert len(changed) == 12
    (first, label), (mirrored, same) = changed[5], changed[11]
    assert label == same == 2 and first.shape == (3, 16, 16) and 0 <= first.min() <= first.max() <= 1
    assert torch.equal(mirrored, first.flip(-1))


def test_drawings_are_left_out_by_split():
    images = LabeledEmoji("assets/emoji", group_by="split")
    images.prepare(64)
    assert images.groups == ["corpus", "fid", "reference"] and not images.missing_labels(["corpus"])
    counts = [len(images.dataset([group], augment=False)) for group in images.groups]
    assert counts[2] == 960 and sum(counts) == 2714


def test_drawings_are_left_out_by_designer():
    images = LabeledEmoji("assets/emoji")
    images.prepare(64)
    assert len(images.labels) == 320 and len(images.groups) == 9
    assert not images.missing_labels(images.groups) and images.missing_labels(["fxemoji"])
    own = len(images.dataset(["twemoji"], augment=False))
    assert 0 < own <= 320 and len(images.dataset(["twemoji"], augment=True)) == 48 * own


@pytest.mark.parametrize("training", TRAININGS)
def test_a_training_writes_below_its_run_folder_unless_told(training, tmp_path):
    assert "pretrain_classifier" in TRAININGS
    what = training.removeprefix("pretrain_")
    assert configured(what, tmp_path).task.output == f"{tmp_path}/run/model"
    assert configured(what, tmp_path, "task.output=elsewhere").task.output == "elsewhere"


@pytest.mark.parametrize("what", ["autoencoder", "clip", "denoiser"])
def test_other_trainings_need_a_corpus(what, root):
    config = configured(what, root, "data=folder", f"data.references={root}", f"data.real={root}")
    with pytest.raises(ValueError, match="use data=emoji"):
        train.prepare(config)


@pytest.mark.parametrize("what", ["autoencoder", "classifier", "clip", "denoiser"])
def test_a_model_that_cannot_be_written_is_found_before_the_training(what, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"task\.output=.*file/model"):
        train.prepare(configured(what, tmp_path, f"task.output={tmp_path}/file/model"))


@pytest.mark.parametrize(
    ("what", "key", "message"),
    [
        ("autoencoder", "task.init_from", "AutoencoderKL"),
        ("denoiser", "task.vae", "AutoencoderKL"),
        ("denoiser", "task.init_from", "StableDiffusionPipeline"),
    ],
)
def test_a_model_to_go_on_from_is_loaded_before_the_training(what, key, message, tmp_path):
    for folder in (tmp_path / "none", Path("assets/models/clip").resolve()):
        with pytest.raises(ValueError, match=rf"{key}='{folder}' is no folder of {message}"):
            train.prepare(configured(what, tmp_path, f"{key}={folder}"))
