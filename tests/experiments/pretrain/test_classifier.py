"""Training of evaluation classifiers on user-provided folders, and the output folders of all trainings."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from experiments.data.images import UnreadableImage
from experiments.data.labeled import LabeledEmoji, LabeledFolders
from experiments.evaluation.classifier import load_classifier
from experiments.pretrain.training import load_pretrained
from experiments.runtime.setup import save_config, setup
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
    task, trainer = setup(config)
    save_config(config)
    task.run(trainer)
    return json.loads((root / "run" / "results.json").read_text())


def check_error(root: Path, message: str, *overrides: str, error: type[ValueError] = ValueError) -> None:
    """The setup raises an error of exactly this type and message, and does not create the folder of the run."""
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$") as caught:
        setup(configured("classifier", root, *folders(root), *overrides))
    assert caught.type is error
    assert not (root / "run").exists()


@pytest.mark.slow
def test_classifier_of_user_folders(root):
    assert run(root)["steps"] == 2
    classifier = load_classifier(root / "run" / "model")
    assert classifier.labels == NAMES and classifier.image_size == 32
    assert classifier(torch.rand(2, 3, 48, 64)).shape == (2, 3)


@pytest.mark.slow
def test_excluded_group_measures_the_saved_classifier(root):
    result = run(root, "task.excluded=[real]")
    assert set(result) >= {"real", "accuracy", "n", "steps"} and result["n"] == 6
    classifier = load_classifier(root / "run" / "model")
    images = LabeledFolders({"real": str(root / "real")})
    images.prepare(32)
    unseen = images.dataset(["real"], augment=False)
    correct = [classifier(unseen[k][0][None]).argmax().item() == unseen[k][1] for k in range(6)]
    assert result["real"] == pytest.approx(sum(correct) / 6, abs=1 / 6)  # float16 may change one


@pytest.mark.slow
def test_frozen_modules_keep_the_loaded_weights(root):
    network = timm.create_model("resnet10t", num_classes=7)
    torch.save({f"other.{k}": tensor for k, tensor in enumerate(network.state_dict().values())}, root / "start.pth")
    options = ["task.architecture=resnet10t", f"task.init_from={root}/start.pth", "task.frozen=[conv1,bn1,layer1]"]
    run(root, *options)
    learned = load_classifier(root / "run" / "model").network.state_dict()
    for name, tensor in network.state_dict().items():
        if name.startswith(("conv1.", "bn1.", "layer1.")):
            # averaging equal weights rounds, which may change the last digit in float16
            torch.testing.assert_close(learned[name], tensor, rtol=2e-3, atol=1e-6)
    moved = [name for name, tensor in network.state_dict().items() if name.startswith("layer4.") and tensor.ndim == 4]
    assert moved and not any(torch.equal(learned[name], network.state_dict()[name].half().float()) for name in moved)


@pytest.mark.slow
def test_weights_of_another_network_are_an_error(root):
    network = timm.create_model("resnet10t", num_classes=7)
    torch.save(network.state_dict(), root / "start.pth")
    num_tensors = len(network.state_dict())
    num_expected = len(timm.create_model("resnet18", num_classes=len(NAMES)).state_dict())
    check_error(
        root,
        f"task.init_from='{root}/start.pth' has {num_tensors} tensors, whose order and shapes do not match the "
        f"{num_expected} tensors of this network: set task.architecture to the architecture of the file, or choose "
        "another file.",
        f"task.init_from={root}/start.pth",
        "task.architecture=resnet18",
    )
    check_error(
        root,
        f"task.init_from: {root}/none.pth cannot be read as weights ([Errno 2] No such file or directory: "
        f"'{root}/none.pth'); set it to a .pth file.",
        f"task.init_from={root}/none.pth",
    )
    check_error(
        root,
        "task.frozen: 'conv2' is not a module of resnet10t; choose a module, such as conv1.2, conv1, conv1.6.",
        "task.frozen=[conv2]",
    )


@pytest.mark.slow
def test_additional_folder_and_image_size(root):
    (root / "more" / "owl").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "more" / "owl" / "0.gif")
    run(root, f"+data.labeled.folders.more={root}/more", "data.labeled.size=[16,24]", "data.labeled.workers=1")
    assert load_classifier(root / "run" / "model").labels == ["camel", "owl", "padlock", "tomato"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "task.excluded=[fid]",
            "task.excluded=['fid']: must be some, but not all, of the groups references, real.",
        ),
        (
            "task.excluded=[references,real]",
            "task.excluded=['references', 'real']: must be some, but not all, of the groups references, real.",
        ),
        (
            "task.architecture=resnet1000",
            "task.architecture='resnet1000' with task.pretrained=False and task.image_size=32 and task.batch_size=64 "
            "cannot be created by timm (Unknown model (resnet1000)): choose other values.",
        ),
        (
            "task.architecture=vit_tiny_patch16_224",
            "task.architecture='vit_tiny_patch16_224' with task.pretrained=False and task.image_size=32 and "
            "task.batch_size=64 cannot be created by timm (Input height (32) doesn't match model (224).): choose other "
            "values.",
        ),
    ],
)
def test_rejects_untrainable_settings(root, override, message):
    check_error(root, message, override)


def test_rejects_untrainable_folders(root):
    owl = root / "real" / "owl"
    owl.mkdir()
    check_error(root, f"{owl} contains no images that Pillow reads: add images or remove the folder.")
    Image.new("RGB", (9, 9)).save(owl / "0.png")
    check_error(
        root,
        "task.excluded=['real'] leaves no training image of 'owl': add images to references, or exclude fewer groups.",
        "task.excluded=[real]",
    )
    (owl / "1.jpg").write_bytes(b"")
    check_error(
        root,
        f"{owl}/1.jpg cannot be read as an image (cannot identify image file '{owl}/1.jpg'): replace or remove it.",
        error=UnreadableImage,
    )
    check_error(root, f"{root}/nowhere is not a folder: choose a folder of images.", f"data.references={root}/nowhere")


def test_folders_without_labels_are_errors(root):
    with pytest.raises(ValueError, match="contain 0 folders of images"):
        LabeledFolders({"a": str(root / "real" / "camel")}).prepare(32)
    with pytest.raises(ValueError, match=r"size.*greater than 0"):
        LabeledFolders({"a": str(root / "real")}, size=0)


def test_augmentation_mirrors_images_of_folders(root):
    images = LabeledFolders({"a": str(root / "real")})
    images.prepare(16)
    assert len(images.dataset(["a"], augment=False)) == 6 and images.dataset([], augment=True).labels == []
    augmented = images.dataset(["a"], augment=True)
    assert len(augmented) == 12
    (first, label), (mirrored, same) = augmented[5], augmented[11]
    assert label == same == 2 and first.shape == (3, 16, 16) and 0 <= first.min() <= first.max() <= 1
    assert torch.equal(mirrored, first.flip(-1))


def test_drawings_are_grouped_by_split():
    images = LabeledEmoji("assets/emoji", group_by="split")
    images.prepare(64)
    assert images.groups == ["corpus", "fid", "reference"] and not images.missing_labels(["corpus"])
    counts = [len(images.dataset([group], augment=False)) for group in images.groups]
    assert counts[2] == 960 and sum(counts) == 2714


def test_drawings_are_grouped_by_designer():
    images = LabeledEmoji("assets/emoji")
    images.prepare(64)
    assert len(images.labels) == 320 and len(images.groups) == 9
    assert not images.missing_labels(images.groups) and images.missing_labels(["fxemoji"])
    count = len(images.dataset(["twemoji"], augment=False))
    assert 0 < count <= 320 and len(images.dataset(["twemoji"], augment=True)) == 48 * count


@pytest.mark.parametrize("training", TRAININGS)
def test_default_output_is_in_the_run_folder(training, tmp_path):
    assert "pretrain_classifier" in TRAININGS
    name = training.removeprefix("pretrain_")
    assert configured(name, tmp_path).task.output == f"{tmp_path}/run/model"
    assert configured(name, tmp_path, "task.output=elsewhere").task.output == "elsewhere"


@pytest.mark.parametrize("name", ["autoencoder", "clip", "denoiser"])
def test_other_trainings_need_a_corpus(name, root):
    config = configured(name, root, "data=folder", f"data.references={root}", f"data.real={root}")
    with pytest.raises(ValueError, match="set data=emoji"):
        setup(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder", "classifier", "clip", "denoiser"])
def test_unwritable_output_fails_before_training(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"task\.output=.*file/model"):
        setup(configured(name, tmp_path, f"task.output={tmp_path}/file/model"))


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("autoencoder", "task.init_from", "AutoencoderKL"),
        ("denoiser", "task.vae", "AutoencoderKL"),
        ("denoiser", "task.init_from", "StableDiffusionPipeline"),
    ],
)
def test_invalid_initial_model_fails_before_training(name, key, message, tmp_path):
    for folder in (tmp_path / "none", Path("assets/models/clip").resolve()):
        with pytest.raises(ValueError, match=rf"{key}='{folder}' cannot be loaded as {message}"):
            setup(configured(name, tmp_path, f"{key}={folder}"))


@pytest.mark.parametrize(
    ("model", "part", "file"), [(AutoencoderKL, "vae", "."), (StableDiffusionPipeline, ".", "unet")]
)
def test_initial_model_without_a_weight_is_an_error(model, part, file, tmp_path):
    """diffusers would fill the missing weight with random numbers."""
    folder = shutil.copytree(Path("assets/models/emoji") / part, tmp_path / "start")
    assert load_pretrained(model, "task.init_from", str(folder)).dtype == torch.float32
    path = folder / file / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    missing = sorted(state)[3]
    save_file({name: weight for name, weight in state.items() if name != missing}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"task.init_from='{folder}' .*do not contain {missing} \(1 such weights\)"):
        load_pretrained(model, "task.init_from", str(folder))
