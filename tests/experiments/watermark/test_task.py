"""The watermark experiment runs on a tiny model, resumes, and writes no key."""

import base64
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra.errors import HydraException

from experiments.config.errors import one_line
from experiments.runtime.setup import setup
from experiments.watermark.attacks import BrightnessAttack, JpegAttack
from experiments.watermark.jobs import (
    SCHEMES,
    ForgerySetting,
    NamedPrompt,
    ReadingSetting,
    WatermarkSettings,
    numbered,
    reading_jobs,
)
from experiments.watermark.module import forge
from experiments.watermark.report import ALL_ATTACKS, IDENTITY, differences, with_detections
from experiments.watermark.task import WatermarkExperiment
from rnri import METHODS, FixedPoint, ImplicitInverter
from rnri.methods.common import ddim
from rnri.validation import ConfigError
from rnri.watermark import GaussianShading
from tests.commands import composed
from tests.experiments.tiny_configs import Squares, run_to_end, tiny, trainer

pytestmark = pytest.mark.slow

SEED = 7
WATERMARKS = WatermarkSettings(message_bytes=2, ring_radius=0.3, other_keys=10)


def experiment(folder: Path, **changes: object) -> WatermarkExperiment:
    """Return an experiment with prompts of colored squares; its results are in ``folder / "run"``."""
    options = {
        "source": Squares(), "concepts": "all", "buckets": ["tail"], "model": tiny,
        "methods": {"ddim": ddim(), "accelerated": METHODS["accelerated"]()},
        "settings": [
            ReadingSetting(2, methods=["ddim"]),
            ReadingSetting(2, nfe=[1, 2], methods=["accelerated"]),
            ReadingSetting(2, sampler="EulerDiscreteScheduler", methods=["ddim"], attacks=[]),
            ReadingSetting(2, read_steps=4, methods=["ddim"], images=2),
        ],
        "attacks": {"jpeg": JpegAttack(), "brightness": BrightnessAttack()}, "watermarks": WATERMARKS,
        "forgery": ForgerySetting(2, [1, 3], 2), "forgery_method": ddim(), "images": 3, "batch_size": 2, "seed": SEED,
        "run_dir": str(folder / "run"),
    }  # fmt: skip
    return WatermarkExperiment(**options | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a finished run, and its task."""
    folder = tmp_path_factory.mktemp("watermark")
    task = run_to_end(experiment(folder))
    return folder / "run", task


@pytest.fixture(scope="module")
def results(run):
    return json.loads((run[0] / "results.json").read_text())


def test_rows_have_all_columns(results):
    columns = {
        "method", "scheme", "attack", "bit_accuracy", "bit_accuracy_low", "bit_accuracy_high", "tpr", "tpr_low",
        "tpr_high", "nfe", "n",
    }  # fmt: skip
    for row in results["rows"]:
        assert columns <= set(row)
        assert 0 <= row["tpr_low"] <= row["tpr"] <= row["tpr_high"] <= 1
        if row["scheme"] == "gaussian_shading":
            assert row["bit_accuracy_low"] <= row["bit_accuracy"] <= row["bit_accuracy_high"]
        else:
            assert row["bit_accuracy"] is None
    assert {row["attack"] for row in results["rows"]} == {"none", "jpeg", "brightness", ALL_ATTACKS}


def test_nfe_is_the_number_of_evaluations_per_image(results):
    nfe = {(row["method"], row["read_steps"], row["nfe_per_step"]): row["nfe"] for row in results["rows"]}
    assert nfe["ddim", 2, None] == nfe["accelerated", 2, 1] == 2
    assert nfe["accelerated", 2, 2] <= 4
    assert nfe["ddim", 4, None] == 4


def test_samples_have_the_error_of_the_seed_and_its_shift_by_the_attack(run):
    samples = pd.read_parquet(run[0] / "samples.parquet")
    identity = [name for name in (*IDENTITY, "sample") if name != "attack"]
    for _, group in samples.groupby(identity, dropna=False):
        errors = group.set_index("attack")["seed_error"]
        shifts = group.set_index("attack")["seed_shift"]
        assert shifts["none"] == 0 < errors["none"]
        assert (shifts.drop("none") > 0).all()
        assert ((errors - errors["none"]).abs() <= shifts + 1e-9).all()  # triangle inequality


def test_number_of_images(results):
    counts = {(row["read_steps"], row["n"]) for row in results["rows"]}
    assert counts == {(2, 3), (4, 2)}


def test_methods_are_compared_at_equal_evaluations(results):
    pairs = results["pairs"]
    assert {(row["scheme"], row["attack"], row["nfe"]) for row in pairs if row["sampler"] is None} == {
        (scheme, attack, nfe) for scheme in SCHEMES for attack in ("none", "jpeg", "brightness") for nfe in (2, 4)
    }
    for row in pairs:
        assert row["difference"] == pytest.approx(row["accelerated"] - row["ddim"])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]


def test_forgery_has_a_row_per_watermark_and_number_of_images(results):
    assert [(row["scheme"], row["images"], row["n"]) for row in results["forgery"]] == [
        (scheme, images, 2) for scheme in SCHEMES for images in (1, 3)
    ]


def test_run_writes_tables_figures_and_samples(run):
    folder, _ = run
    for name in ("table.md", "table.csv", "pairs.csv", "forgery.csv", "report.html", "figures/forgery.png"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "images" / "attacks.png").stat().st_size > 0
    assert list((folder / "figures").glob("bits_2steps_*.pdf"))
    samples = pd.read_parquet(folder / "samples.parquet")
    assert len(samples) == 2 * 3 * (3 + 3 + 3 + 2) + 2 * 1 * 3
    assert "other_p_values" not in samples


def test_no_file_of_the_run_contains_a_key(run):
    """Raw, hexadecimal and base64 forms of all keys are absent from all files of the run."""
    folder, task = run
    names = {each.name for job in task.jobs for each in job.prompts} | {"forgery\n0", "forgery\n1", "other\n0"}
    marks = [WATERMARKS.mark(scheme, name, SEED) for scheme in SCHEMES for name in names]
    secrets = [mark.key for mark in marks]
    forms = {
        form
        for secret in secrets
        for form in (secret, secret.hex().encode(), base64.b64encode(secret), repr(secret).encode())
    }
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        content = path.read_bytes()
        assert not any(form in content for form in forms), path


def test_second_run_computes_nothing(run, results):
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in folder.glob("units/**/*.safetensors")}
    run_to_end(experiment(folder.parent))
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("units/**/*.safetensors")}
    assert json.loads((folder / "results.json").read_text())["rows"] == results["rows"]


def test_more_images_keep_the_finished_batches(tmp_path):
    task = experiment(tmp_path, images=5)
    small = experiment(tmp_path)
    run_to_end(small)
    before = set((tmp_path / "run").glob("units/**/*.safetensors"))
    run_to_end(task)
    assert before < set((tmp_path / "run").glob("units/**/*.safetensors"))


def test_unattacked_seeds_are_read_completely():
    """The chain of names, keys and messages is the same for embedding and reading."""
    for name in ("cat/0", "owl/1"):
        mark = WATERMARKS.mark("gaussian_shading", name, SEED)
        noise = torch.randn(1, 4, 8, 8)
        assert mark.read(mark.embed(noise)).messages == [mark.message]
        assert mark == WATERMARKS.mark("gaussian_shading", name, SEED)
        assert mark != WATERMARKS.mark("gaussian_shading", name, SEED + 1)


def test_forged_seed_contains_the_watermark_and_has_unit_variance():
    mark = GaussianShading(key=bytes(16), message=b"ab")
    generator = torch.Generator().manual_seed(0)
    seeds = mark.embed(torch.randn(10, 4, 16, 16, generator=generator))
    forged = forge(seeds, torch.randn(4, 16, 16, generator=generator))
    assert float(forged.square().mean()) == pytest.approx(1)
    reading = mark.read(forged)
    assert reading.messages == [b"ab"]
    assert 0.8 < float(reading.sign_accuracy) < 1


def sample(method: str, accuracy: float, nfe_per_step: int | None = None, **changes: object) -> dict:
    row = {
        "method": method, "scheme": "gaussian_shading", "attack": "none", "steps": 4, "guidance": 3.0, "sampler": None,
        "read_steps": 4, "nfe_per_step": nfe_per_step, "sample": "a", "bit_accuracy": accuracy, "p_value": 0.5,
    }  # fmt: skip
    return row | changes


def test_difference_is_paired_and_at_equal_evaluations():
    samples = [sample("ddim", 0.5), sample("ddim", 0.7, sample="b")]
    samples += [sample("accelerated", 0.75, 1), sample("accelerated", 0.95, 1, sample="b")]
    samples += [sample("accelerated", 1.0, 2)]  # twice as many evaluations as ddim: compared with nothing
    (row,) = differences(samples, 0)
    assert (row["nfe"], row["n"]) == (4, 2)
    assert row["difference"] == pytest.approx(0.25)
    assert row["difference_low"] == row["difference_high"] == pytest.approx(0.25)


def test_threshold_has_at_most_one_percent_false_positives():
    others = [k / 1000 for k in range(1000)]
    samples = [sample("ddim", 1.0, p_value=p, other_p_values=others) for p in (0.0, 0.0095, 0.01, 0.5)]
    rows = with_detections(samples)
    assert [row["detected"] for row in rows] == [1, 1, 0, 0]
    assert rows[0]["false_positives"] == pytest.approx(0.011)


def test_numbered_prompts_repeat_with_unique_names():
    prompts = [NamedPrompt("cat", "a cat"), NamedPrompt("owl", "an owl")]
    assert [each.name for each in numbered(prompts, 5)] == ["cat/0", "owl/0", "cat/1", "owl/1", "cat/2"]


def test_jobs_without_attacks_read_the_published_images_only():
    options = {"attacks": ["none", "jpeg"], "batch_size": 4, "default_guidance": 3.0}
    methods = {"a": ImplicitInverter(FixedPoint(2))}
    (job,) = reading_jobs(methods, [ReadingSetting(2, attacks=[])], [NamedPrompt("cat/0", "a cat")], **options)
    assert job.attacks == ["none"]
    assert job.guidance == 3
    with pytest.raises(ConfigError, match="must be some of jpeg, got 'bleach'"):
        reading_jobs(methods, [ReadingSetting(2, attacks=["bleach"])], [NamedPrompt("cat/0", "a cat")], **options)


def test_identity_distinguishes_all_rows(results):
    keys = [tuple(row[name] for name in IDENTITY) for row in results["rows"]]
    assert len(set(keys)) == len(keys)


def test_every_seed_only_method_reads_or_is_skipped(tmp_path):
    task = experiment(tmp_path, settings=[ReadingSetting(2, attacks=[], images=1)], forgery=None, methods={})
    task.prepare(trainer())
    skipped = {name.partition(",")[0] for name in task.skipped}
    assert {job.method for job in task.jobs} | skipped == set(METHODS)
    assert any(name.endswith(", 2 steps") for name in task.skipped)  # TABA needs more steps
    assert "fireflow_seed" in task.skipped
    assert "accelerated" not in task.skipped


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.images=0"], "task.images"),
        (["task.attacks.jpeg.quality=0"], "quality"),
        (["+task.settings.0.sampler=Magic"], "task.settings.0.sampler: must be a scheduler class of diffusers"),
        (["+task.settings.0.sampler=FlowMatchEulerDiscreteScheduler"], "must match the model's DDIMScheduler"),
        (["task.settings.0.methods=[magic]"], "task.settings.0.methods: must be some of"),
        (["+task.settings.0.attacks=[magic]"], "task.settings.0.attacks: must be some of jpeg"),
        (["+task.settings.0.nfe=3"], "task.settings.0.nfe"),
        (["task.watermarks.message_bytes=1000"], "task.watermarks.message_bytes: must have at most 128 bytes"),
        (["task.watermarks.ring_radius=0.6"], "task.watermarks.ring_radius: Input should be less than 0.5"),
        (["task.watermarks.ring_channel=4"], "task.watermarks.ring_channel: must be from -4 to 3"),
        (["task.forgery.images=[5,1]"], "images: must be increasing numbers"),
        (["+method@task.methods.exact=edict"], "task.methods.exact: must be seed-only"),
        (["+task.attacks.none=${task.attacks.jpeg}"], "reserved name 'none'"),
    ],
)
def test_prepare_rejects_bad_input_without_a_run_folder(overrides, message, tmp_path):
    with pytest.raises((ValueError, HydraException)) as error:
        setup(composed("experiment=watermark", f"run_dir={tmp_path}/run", *overrides))
    assert message in one_line(error.value)
    assert not (tmp_path / "run").exists()
