"""Programs hide the noise of other libraries, and nothing else; importing the package hides nothing."""

import logging
import os
import subprocess
import sys
import warnings

import pytest
from PIL import Image

from rnri.quiet import _Filter, quiet_libraries

NOISE = (
    "Loading weights", "Loading pipeline components", "No LoRA keys", "LeafSpec", "GPU available", "TPU available",
    "was truncated because", "IProgress", "__array__", "anonymous setting",
)  # fmt: skip


@pytest.fixture
def quiet(monkeypatch):
    """Quiet libraries, which are restored after the test."""
    import diffusers
    import transformers

    names = ("diffusers", "transformers", "lightning.pytorch.utilities.rank_zero")
    monkeypatch.setattr(_Filter, "reported_truncation", False)
    with warnings.catch_warnings():
        quiet_libraries()
        quiet_libraries()
        yield
    for library in (diffusers, transformers):
        library.utils.logging.enable_progress_bar()
    for name in names:
        for target in (logging.getLogger(name), *logging.getLogger(name).handlers):
            for each in [each for each in target.filters if isinstance(each, _Filter)]:
                target.removeFilter(each)


def shown(name: str, message: str) -> list[str]:
    """Return what the first handler of the library prints for a message of its module ``name``."""
    library = logging.getLogger(name.partition(".")[0])
    record = library.makeRecord(name, logging.WARNING, "file", 1, message, (), None)
    return [record.getMessage()] if library.handlers[0].filter(record) else []


def test_noise_is_hidden_and_warnings_are_shown(quiet):
    assert shown("diffusers.loaders.lora_base", "No LoRA keys associated to CLIPTextModel found with ...") == []
    assert shown("diffusers.models", "the weights are damaged") == ["the weights are damaged"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("IProgress not found. Please update jupyter and ipywidgets.", stacklevel=1)
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use ...", FutureWarning, stacklevel=1)
        warnings.warn("a real warning", stacklevel=1)
    assert [str(each.message) for each in caught] == ["a real warning"]


def test_truncated_prompt_is_one_sentence_without_a_list(quiet):
    message = "The following part of your input was truncated because CLIP can only handle 77 tokens: ['a']"
    name = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"
    assert shown(name, message) == [
        "A prompt is too long for the text encoder of the model, which ignores the end of the prompt."
    ]
    assert shown(name, message) == []


def test_import_of_the_package_hides_nothing():
    code = (
        "import warnings; before = list(warnings.filters); import rnri, rnri.quiet; assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "experiment=reconstruction", "methods=[ddim]", "steps=1", "images=1", "task.figures=[]"],
        ["train.py", "data.concepts=1", "arms=[plain]", "steps=3", "task.samples=1", "logger=wandb"],
        ["-m", "rnri", "assets/models/fox.png", "a drawing of a fox", "--steps", "1"],
        ["-m", "benchmarks.nao", "--help"],
    ],
    ids=["reconstruction", "rare_concepts", "rnri", "benchmarks"],
)
def test_program_prints_no_noise(command, tmp_path):
    if "rnri" in command:
        Image.new("RGB", (64, 64), "orange").save(tmp_path / "fox.png")
        command = [tmp_path / "fox.png" if str(word).endswith(".png") else word for word in command]
        command += ["--out", tmp_path / "out"]
    elif command[0] == "train.py":
        command = [*command, f"run_dir={tmp_path}/run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    finished = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    assert [noise for noise in NOISE if noise in finished.stderr + finished.stdout] == []
