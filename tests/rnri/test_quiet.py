"""Programs hide the noise of other libraries, and nothing else; importing the package hides nothing."""

import json
import logging
import os
import subprocess
import sys
import warnings

import pytest
from PIL import Image

from rnri.quiet import _Filter, quiet_libraries
from tests.experiments.tiny_configs import tiny_emoji_classifier

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


JOBS = (
    ["experiment=reconstruction", "methods=[ddim]", "steps=1", "images=1", "task.figures=[]"],
    ["data.concepts=1", "arms=[plain]", "steps=3", "task.samples=1", "logger=wandb"],
)
RUN_JOBS = """
import json, runpy, sys
for overrides in json.loads(sys.argv[1]):
    sys.argv = ["train.py", *overrides]
    runpy.run_path("train.py", run_name="__main__")
"""


def noise_of(*command: object) -> list[str]:
    """Run Python with this command line in another process, which must succeed, and return the noise in its output."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    finished = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    return [noise for noise in NOISE if noise in finished.stderr + finished.stdout]


@pytest.mark.slow
def test_jobs_print_no_noise(tmp_path):
    classifier = tiny_emoji_classifier(tmp_path / "classifier")
    jobs = [[*job, classifier, f"run_dir={tmp_path}/run{number}"] for number, job in enumerate(JOBS)]
    assert noise_of("-c", RUN_JOBS, json.dumps(jobs)) == []
    assert len(list(tmp_path.glob("run*/results.json"))) == len(JOBS)


@pytest.mark.slow
def test_inversion_command_prints_no_noise(tmp_path):
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "fox.png")
    command = ("-m", "rnri", tmp_path / "fox.png", "a drawing of a fox", "--steps", "1", "--out", tmp_path / "out")
    assert noise_of(*command) == []


@pytest.mark.slow
def test_benchmark_prints_no_noise():
    assert noise_of("-m", "benchmarks.nao", "--help") == []
