"""The editing experiment with two tiny models and a small benchmark: results, resumption and metrics."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from diffusers.utils import logging
from torchmetrics.functional.image import lpips
from torchvision.models import squeezenet1_1
from transformers import ViTConfig, ViTModel

from experiments.editing import make_benchmark
from experiments.editing.benchmark import KINDS, MAPPING, read_benchmark
from experiments.editing.jobs import (
    GROUND_TRUTH,
    NONE,
    SOURCE_IMAGE,
    EditJob,
    checkpoint_name,
    select_edits,
    steps_for,
)
from experiments.editing.report import paired_differences, success_note, with_speedups
from experiments.editing.task import EditingExperiment
from experiments.evaluation.classifier import Classifier, Preprocessing, load_classifier
from experiments.evaluation.editing_metrics import EditingNetworks, edits_applied
from experiments.evaluation.editing_networks import (
    classifier_perceptual,
    classifier_structure,
    dino_input,
    dino_structure,
    pie_bench_input,
    squeeze_lpips,
    structure_distance,
)
from experiments.evaluation.registry import EDITING
from rnri import FixedPoint, ImplicitInverter, LatentDiffusion
from rnri.editing import FlowEdit, Injection, PromptToPrompt, PseudoGuidance
from rnri.methods import DirectInversion, SDEdit
from rnri.validation import ConfigError
from tests.experiments.tiny_configs import clip, trainer
from tests.pipelines import tiny_sd3, tiny_stable_diffusion

pytestmark = pytest.mark.slow

SMALL = {"concept": 3, "background": 2, "style": 1, "added": 1, "removed": 1}
OBJECT, BACKGROUND = "change object", "change background"
EDIT_METHODS = {"first": ["prompt_swap", "p2p"], "second": ["prompt_swap", "injection"]}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_benchmark, "COUNTS", SMALL)
        path = tmp_path_factory.mktemp("benchmark") / "ours"
        make_benchmark.write(path, "assets/emoji")
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, benchmark):
    """The folder of an untrained classifier of the benchmark's concepts."""
    folder = tmp_path_factory.mktemp("classifier")
    labels = sorted({edit.concept for edit in read_benchmark(benchmark)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("resnet10t", num_classes=len(labels))
    Classifier(network, labels, Preprocessing(64, [0.5] * 3, [0.5] * 3)).save(folder, "resnet10t")
    return folder


def model(make, device="cpu", path=""):
    return LatentDiffusion(make())


def editing_experiment(folder, benchmark, classifier, **options):
    arguments = {
        "model": {"first": partial(model, tiny_stable_diffusion), "second": partial(model, tiny_sd3)},
        "steps": {"first": 3, "second": 2},
        "guidance": 1.0,
        "methods": {"ddim": ImplicitInverter(FixedPoint(1)), "direct": DirectInversion()},
        "extra_methods": {"flow_edit": FlowEdit(), "pseudo_guidance": PseudoGuidance(), "sdedit": SDEdit()},
        "prompt_to_prompt": PromptToPrompt(),
        "injection": Injection(),
        "benchmark": str(benchmark),
        "corpus": "assets/emoji",
        "kinds": [OBJECT, BACKGROUND],
        "count": 3,
        "batch_size": 2,
        "clip": clip,
        "classifier": str(classifier),
        "dino": None,
        "lpips": None,
        "min_psnr": 20.0,
        "baseline": "ddim",
        "seed": 0,
        "run_dir": str(folder),
    }
    return EditingExperiment(**arguments | options)


def run_task(task):
    logging.set_verbosity_error()
    single_device = trainer()
    task.prepare(single_device)
    task.run(single_device)
    return task


@pytest.fixture(scope="module")
def run(tmp_path_factory, benchmark, classifier):
    folder = tmp_path_factory.mktemp("run")
    return run_task(editing_experiment(folder, benchmark, classifier)), folder


def rows(folder):
    return json.loads((folder / "results.json").read_text())["rows"]


def test_every_method_has_a_row_per_model_and_edit_method(run):
    _, folder = run
    expected = {(SOURCE_IMAGE, "none", "none"), (GROUND_TRUTH, "none", "none")}
    for name, edit_methods in EDIT_METHODS.items():
        expected |= {(method, edit, name) for method in ("ddim", "direct") for edit in edit_methods}
        expected |= {(method, "native", name) for method in ("pseudo_guidance", "sdedit")}
    expected.add(("flow_edit", "native", "second"))
    table = rows(folder)
    assert {(row["method"], row["edit"], row["model"]) for row in table} == expected
    columns = {"method", "edit", "model", "clip_score", "lpips", "background_psnr", "success", "n"}
    assert all(columns <= set(row) and row["n"] == 3 for row in table)
    assert all("seconds" in row for row in table if row["model"] != NONE)


def test_plan_counts_the_units_of_the_run(run):
    task, _ = run
    stages = task.plan(trainer())
    assert sum(stage.units for stage in stages) == sum(stage.done for stage in stages) == len(task.jobs)
    assert all(stage.cost.nfe == 0 and stage.size > 0 for stage in stages)


def test_unsupported_methods_are_listed_with_reasons(run):
    results = json.loads((run[1] / "results.json").read_text())
    assert [(each["model"], each["method"]) for each in results["skipped"]] == [("first", "flow_edit")]
    assert "flow-matching" in results["skipped"][0]["reason"]


def test_source_image_fails_and_ground_truth_succeeds(run):
    by_method = {row["method"]: row for row in rows(run[1])}
    source = by_method[SOURCE_IMAGE]
    ground_truth = by_method[GROUND_TRUTH]
    assert source["lpips"] == source["structure"] == source["success"] == 0 and source["background_preserved"] == 1
    assert ground_truth["background_preserved"] == 1 and ground_truth["lpips"] > 0
    samples = pd.read_parquet(run[1] / "samples.parquet")
    backgrounds = samples[(samples["method"] == GROUND_TRUTH) & (samples["kind"] == BACKGROUND)]
    assert len(backgrounds) and (backgrounds["success"] == 1).all()


def test_latent_mse_of_an_exact_inversion_is_zero(run):
    by_row = {(row["method"], row["edit"], row["model"]): row for row in rows(run[1])}
    for name, (_, edit) in EDIT_METHODS.items():
        assert by_row["direct", edit, name]["latent_mse"] < 1e-8 < by_row["ddim", edit, name]["latent_mse"]


def test_time_includes_the_time_of_the_networks(run):
    for row in rows(run[1]):
        if row["model"] != "none":
            assert row["overhead"] >= 1 and row["seconds"] >= row["seconds_networks"] > 0


def test_table_rows_are_means_of_samples(run):
    _, folder = run
    samples = pd.read_parquet(folder / "samples.parquet")
    table = rows(folder)
    assert len(samples) == 3 * len(table)
    for row in table:
        group = samples[(samples["method"] == row["method"]) & (samples["edit"] == row["edit"])]
        group = group[group["model"] == row["model"]]
        assert row["clip_score"] == pytest.approx(group["clip_score"].mean())


def test_results_contain_networks_and_paired_differences(run):
    _, folder = run
    results = json.loads((folder / "results.json").read_text())
    assert set(results["networks"]) == {"first", "second", "clip", "classifier", "lpips", "structure"}
    assert all(len(each["sha256"]) == 64 and each["name"] for each in results["networks"].values())
    one = next(p for p in results["pairs"] if (p["method"], p["edit"], p["model"]) == ("direct", "p2p", "first"))
    by_key = {(row["method"], row["edit"], row["model"]): row for row in rows(folder)}
    difference = by_key["direct", "p2p", "first"]["clip_score"] - by_key["ddim", "p2p", "first"]["clip_score"]
    assert one["score"] == "clip_score" and one["difference"] == pytest.approx(difference)


def test_figures_are_written(run):
    _, folder = run
    assert (folder / "figures/fig6.png").stat().st_size and (folder / "images/fig7_first_p2p.png").stat().st_size


def test_second_run_reuses_all_units(run, benchmark, classifier, capsys):
    before = rows(run[1])
    run_task(editing_experiment(run[1], benchmark, classifier))
    assert "Nothing to compute" in capsys.readouterr().out
    assert rows(run[1]) == before


def test_single_model_is_named_after_its_path(tmp_path, benchmark, classifier):
    single = partial(model, tiny_stable_diffusion, path="checkpoints/mine")
    options = {"methods": {}, "extra_methods": {"sdedit": SDEdit()}, "count": 1}
    with pytest.raises(ValueError, match=r"task.steps has no entry for the model 'mine': add an entry"):
        editing_experiment(tmp_path, benchmark, classifier, model=single, **options).prepare(trainer())
    run_task(editing_experiment(tmp_path, benchmark, classifier, model=single, steps=2, **options))
    assert {row["model"] for row in rows(tmp_path)} == {"none", "mine"}


def test_checkpoint_name_and_steps():
    assert checkpoint_name(partial(dict, path="a/emoji", lora="b/emoji_lcm/")) == "emoji_lcm"
    with pytest.raises(ValueError, match=r"task.model: the model has no name, because task.model.path is not set"):
        checkpoint_name(dict)
    assert steps_for("x", 7) == 7 and steps_for("x", {"x": 3}) == 3


def test_edits_are_selected_from_each_kind_in_turn(benchmark):
    edits = read_benchmark(benchmark)
    selected = select_edits(edits, [OBJECT, BACKGROUND], 4)
    assert [KINDS[edit.kind] for edit in selected] == [OBJECT, BACKGROUND] * 2
    assert len(select_edits(edits, [OBJECT, BACKGROUND], None)) == 5
    with pytest.raises(ConfigError, match=r"task.kinds: the benchmark contains no edit of kind delete object"):
        select_edits(edits, ["delete object"], None)
    with pytest.raises(ValueError, match=r"task.count=6: the benchmark has only 5 edits .*; set task.count to"):
        select_edits(edits, [OBJECT, BACKGROUND], 6)


@pytest.fixture(scope="module")
def networks(classifier):
    network = load_classifier(classifier)
    return EditingNetworks(
        clip(device="cpu"), network, classifier_perceptual(network, ""), classifier_structure(network, "")
    )


def edit_batch(images, originals, edits, networks):
    job = EditJob("method", None, (), None, edits)
    return job.batch(images, originals, networks, min_psnr=20.0)


def test_non_finite_edits_fail_and_unverifiable_edits_are_nan(benchmark, networks):
    by_kind = {KINDS[edit.kind]: edit for edit in read_benchmark(benchmark)}
    edits = [by_kind[OBJECT], by_kind[BACKGROUND], by_kind["change style"]]
    originals = torch.stack([edit.load_image((64, 64)) for edit in edits])
    metrics = EDITING.compute(edit_batch(torch.full_like(originals, torch.nan), originals, edits, networks))
    assert metrics["success"].nan_to_num(-1).tolist() == [0, 0, -1] and metrics["clip_score"].isnan().all()
    assert metrics["background_preserved"].tolist() == [0, 0, 0]
    targets = torch.stack([edit.load_image((64, 64), target=True) for edit in edits])
    applied = edits_applied(edit_batch(targets, originals, edits, networks))
    prediction = networks.classifier.labels[networks.classifier(targets[:1]).argmax().item()]
    assert applied[0] == (prediction == edits[0].concept) and applied[1] == 1 and applied[2].isnan()


def test_region_clip_score_ignores_the_background(benchmark, networks):
    edit = read_benchmark(benchmark)[0]
    original = edit.load_image((64, 64))[None]
    brighter = original + 0.5 * (~edit.resized_mask((64, 64))) * (1 - original)
    first = EDITING.compute(edit_batch(original, original, [edit], networks))
    second = EDITING.compute(edit_batch(brighter, original, [edit], networks))
    assert first["clip_score"] != second["clip_score"]
    torch.testing.assert_close(first["clip_score_region"], second["clip_score_region"])  # CPUs differ in the last bits


def test_metrics_of_an_empty_region_are_nan(benchmark, networks):
    edits = read_benchmark(benchmark)[:1]
    original = edits[0].load_image((64, 64))[None]
    batch = edit_batch(original * 0.9, original, edits, networks)
    for masks, empty, other in (
        (torch.ones(1, 64, 64, dtype=torch.bool), "background", "region"),
        (torch.zeros(1, 64, 64, dtype=torch.bool), "region", "background"),
    ):
        metrics = EDITING.compute(dataclasses.replace(batch, masks=masks))
        for name in ("psnr", "mse", "ssim", "lpips", "structure"):
            assert metrics[f"{empty}_{name}"].isnan().all() and metrics[f"{other}_{name}"].isfinite().all()
        assert metrics["clip_score_region"].isnan().all() == (empty == "region")
        assert metrics[f"{other}_lpips"] == metrics["lpips"] and metrics[f"{other}_structure"] == metrics["structure"]
    samples = [{"background_lpips": 0.2}, {"background_lpips": float("nan")}]  # PIE-Bench leaves out full masks
    assert EDITING.summarize(samples, 0, skip_nan=True)["background_lpips"] == 0.2


def test_clip_score_of_the_source_image(benchmark, networks):
    edits = read_benchmark(benchmark)[:2]
    originals = torch.stack([edit.load_image((64, 64)) for edit in edits])
    metrics = EDITING.compute(edit_batch(originals.flip(0), originals, edits, networks))
    features = networks.clip.text([edit.source for edit in edits]) * networks.clip(originals)
    torch.testing.assert_close(metrics["clip_score_source"], features.sum(1))


def test_pie_bench_gives_the_network_pixels_up_to_255():
    gray = torch.full((1, 3, 224, 224), 128 / 255)
    expected = torch.tensor([(128 - 0.485) / 0.229, (128 - 0.456) / 0.224, (128 - 0.406) / 0.225])
    torch.testing.assert_close(pie_bench_input(gray)[0, :, 5, 7], expected)
    corrected = torch.tensor([(128 / 255 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225])
    torch.testing.assert_close(dino_input(gray)[0, :, 5, 7], corrected)
    ramp = torch.linspace(0, 1, 112).expand(1, 3, 112, 112)
    upsampled = torch.nn.functional.interpolate(255 * ramp, (224, 224), mode="bilinear")
    torch.testing.assert_close(pie_bench_input(ramp)[0, 0], (upsampled[0, 0] - 0.485) / 0.229)
    assert pie_bench_input(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 224, 336)  # the shorter side becomes 224


def test_structure_distance_by_hand():
    a, b = torch.eye(2)[None], torch.tensor([[[1.0, 0], [3, 4]]])
    assert structure_distance(a, b).item() == pytest.approx(2 * 0.6**2 / 4)
    assert structure_distance(3 * b, b).item() == pytest.approx(0)


def test_dino_structure_uses_keys_of_the_last_layer(tmp_path, benchmark, networks):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=224, patch_size=32
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    distance = dino_structure(str(tmp_path), "cpu")
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for function, pixels in ((distance, images), (distance.original, 255 * images)):
        with torch.no_grad():
            hidden = network(pixel_values=(pixels - mean) / std, output_hidden_states=True).hidden_states[-2]
            layer = dict(network.named_modules())
            keys_name = [name for name in layer if name.rpartition(".")[2] in ("key", "k_proj")][-1]
            before = next(m for name, m in reversed(layer.items()) if name.endswith("layernorm_before"))
            keys = layer[keys_name](before(hidden))
        expected = structure_distance(keys[:1], keys[1:])
        torch.testing.assert_close(function(images[:1], images[1:]), expected)
    batch = edit_batch(
        images[:1], images[1:], read_benchmark(benchmark)[:1], dataclasses.replace(networks, structure=distance)
    )
    metrics = EDITING.compute(batch)
    assert metrics["structure"] != metrics["original_structure"] == distance.original(images[:1], images[1:])
    assert {"original_background_structure", "original_region_structure"} <= set(metrics)
    with pytest.raises(ValueError, match=r"task.dino: cannot load a DINO ViT from"):
        dino_structure(str(tmp_path / "none"), "cpu")


def test_squeeze_lpips_matches_torchvision_features(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = squeezenet1_1(weights=None)
    torch.save(backbone.state_dict(), tmp_path / "squeeze.pth")
    distance = squeeze_lpips(str(tmp_path / "squeeze.pth"), "cpu")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert distance(images, images).tolist() == [0, 0]
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    with torch.no_grad():
        first = [backbone.features[:2](((2 * x - 1) - shift[:, None, None]) / scale[:, None, None]) for x in images]
        unit = [torch.nn.functional.normalize(x[None] if x.ndim == 3 else x) for x in first]
        path = Path(lpips.__file__).parent / "lpips_models/squeeze.pth"
        heads = torch.load(path, map_location="cpu", weights_only=True)
        layer = ((unit[0] - unit[1]).square() * heads["lin0.model.1.weight"]).sum(1).mean()
    assert 0 < layer <= distance(images[:1], images[1:]) + 1e-6
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"weights of SqueezeNet 1.1: features.0.weight is missing or has another shape"
    ):
        squeeze_lpips(str(tmp_path / "other.pth"), "cpu")
    with pytest.raises(ValueError, match=r"task.lpips: .* cannot be read"):
        squeeze_lpips(str(tmp_path / "none.pth"), "cpu")


def test_paired_differences_compare_the_same_edits():
    def sample(method, key, score, edit="p2p"):
        scores = dict.fromkeys(("clip_score", "lpips", "background_psnr", "success"), score)
        return {"method": method, "edit": edit, "model": "m", "sample": key, **scores}

    samples = [sample("a", 1, 0.1), sample("a", 2, 0.5), sample("b", 2, 0.6), sample("b", 1, 0.4)]
    pairs = paired_differences(samples, "a", 0)
    assert {pair["method"] for pair in pairs} == {"b"} and len(pairs) == 4
    assert pairs[0]["difference"] == pytest.approx(0.2) and pairs[0]["n"] == 2
    assert pairs[0]["difference_low"] == pytest.approx(0.1) and pairs[0]["difference_high"] == pytest.approx(0.3)
    samples += [sample("a", 1, 0.0, "prompt_swap"), sample("c", 1, 1.0, "native")]
    native = [pair["difference"] for pair in paired_differences(samples, "a", 0) if pair["method"] == "c"]
    assert native == [1.0] * 4


def test_speedup_is_relative_to_the_model_with_most_steps():
    conditions = [("p2p", 50, 8.0), ("injection", 4, 1.0), ("prompt_swap", 4, 1.0)]
    table = with_speedups([{"method": "a", "edit": e, "steps": s, "seconds": t} for e, s, t in conditions])
    assert [row["speedup"] for row in table][:2] == [1.0, 8.0] and np.isnan(table[2]["speedup"])


def test_methods_must_be_inverters_or_editors(tmp_path, benchmark, classifier):
    with pytest.raises(ValueError, match=r"task.methods and task.extra_methods are both empty"):
        editing_experiment(tmp_path, benchmark, classifier, methods={}, extra_methods={})
    with pytest.raises(ValueError, match=r"extra_methods\.x: must be an inverter or an editor, got object"):
        editing_experiment(tmp_path, benchmark, classifier, extra_methods={"x": object()})


def test_a_benchmark_in_the_form_of_pie_bench_is_run(tmp_path, benchmark, classifier):
    """PIE-Bench has neither ground-truth images nor names of concepts, and words for some edits only."""
    shutil.copytree(benchmark, tmp_path / "pie")
    mapping = json.loads((tmp_path / "pie" / MAPPING).read_text())
    for k, edit in enumerate(mapping.values()):
        del edit["target_image_path"], edit["target_concept"]
        edit["editing_type_id"] = str(k % len(KINDS))
        edit["blended_word"] = edit["blended_word"] if k % 2 else ""
    (tmp_path / "pie" / MAPPING).write_text(json.dumps(mapping))
    options = {
        "model": {"first": partial(model, tiny_stable_diffusion)}, "steps": 2, "extra_methods": {},
        "methods": {"ddim": ImplicitInverter(FixedPoint(1))}, "kinds": KINDS, "count": None, "batch_size": 8,
    }  # fmt: skip
    run_task(editing_experiment(tmp_path / "run", tmp_path / "pie", classifier, **options))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["method"] for row in results["rows"]] == [SOURCE_IMAGE, "ddim", "ddim"]
    assert all(row["n"] == len(mapping) and row["n_success"] == 0 for row in results["rows"])
    assert [(each["method"], each["reason"]) for each in results["skipped"]] == [
        (GROUND_TRUTH, "The benchmark does not have the correct image of every edit.")
    ]
    assert (tmp_path / "run" / "images" / "fig7_first_p2p.png").is_file()


def test_a_damaged_image_of_the_benchmark_is_an_error_before_the_run(tmp_path, benchmark, classifier):
    shutil.copytree(benchmark, tmp_path / "pie")
    edit = read_benchmark(tmp_path / "pie")[0]
    edit.image.write_bytes(edit.image.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{edit.image.name} cannot be read as an image"):
        editing_experiment(tmp_path / "run", tmp_path / "pie", classifier, count=None).prepare(trainer())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": {"first": 3, "second": 5000}}, r"task\.steps: the model second: steps=5000: .* from 1 to 1000"),
        (
            {"model": {"first": partial(model, tiny_stable_diffusion)}, "methods": {},
             "extra_methods": {"flow_edit": FlowEdit()}},
            r"task\.methods: no method supports any model; flow_edit on first: .*flow-matching",
        ),
    ],
)  # fmt: skip
def test_an_experiment_without_a_method_that_runs_is_an_error(tmp_path, benchmark, classifier, options, message):
    with pytest.raises(ValueError, match=message):
        editing_experiment(tmp_path, benchmark, classifier, **options).prepare(trainer())


@pytest.mark.parametrize(
    ("measured", "note"), [(3, ""), (0, "Success is measured for 0 of 3 edits"), (2, "for 2 of 3 edits")]
)
def test_note_says_for_how_many_edits_success_is_measured(measured, note):
    text = success_note([{"n": 3, "n_success": measured}, {"n": 3, "n_success": 0}])
    assert note in text and bool(text) == bool(note)
