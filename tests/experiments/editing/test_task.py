"""The study of edits on two tiny models and a small benchmark: what it leaves behind, what it takes up again."""

import json
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

from experiments.editing import make_benchmark, read_benchmark
from experiments.editing.benchmark import KINDS
from experiments.editing.jobs import IMAGE, TRUE, checkpoint_name, evenly, steps_of
from experiments.editing.report import paired, with_speeds
from experiments.editing.task import EditingExperiment
from experiments.evaluation import Classifier, load_classifier
from experiments.evaluation.editing_metrics import Networks, edits_made, measures
from experiments.evaluation.editing_networks import (
    dino_structure,
    judge_lpips,
    judge_structure,
    squeeze_lpips,
    structure_distance,
)
from rnri import FixedPoint, ImplicitInverter, LatentDiffusion
from rnri.editing import FlowEdit, Injection, PromptToPrompt, PseudoGuidance
from rnri.methods import DirectInversion, SDEdit
from tests.experiments.tiny_configs import clip, trainer
from tests.pipelines import tiny_sd3, tiny_stable_diffusion

SMALL = {"concept": 3, "background": 2, "style": 1, "added": 1, "removed": 1}
OBJECT, BACKGROUND = "change object", "change background"
WAYS = {"first": ["prompt_swap", "p2p"], "second": ["prompt_swap", "injection"]}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_benchmark, "COUNTS", SMALL)
        path = tmp_path_factory.mktemp("benchmark") / "ours"
        make_benchmark.write(path, "assets/emoji")
    return path


@pytest.fixture(scope="module")
def judge(tmp_path_factory, benchmark):
    """An untrained judge of the benchmark's concepts, in a folder."""
    folder = tmp_path_factory.mktemp("judge")
    labels = sorted({edit.concept for edit in read_benchmark(benchmark)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("resnet10t", num_classes=len(labels))
    Classifier(network, labels, 64, [0.5] * 3, [0.5] * 3).save(folder, "resnet10t")
    return folder


def model(make, device="cpu", path=""):
    return LatentDiffusion(make())


def study(folder, benchmark, judge, **options):
    given = {
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
        "classifier": str(judge),
        "dino": None,
        "lpips": None,
        "min_psnr": 20.0,
        "baseline": "ddim",
        "seed": 0,
        "run_dir": str(folder),
    }
    return EditingExperiment(**given | options)


def carried_out(task):
    logging.set_verbosity_error()
    own = trainer()
    task.prepare(own)
    task.run(own)
    return task


@pytest.fixture(scope="module")
def run(tmp_path_factory, benchmark, judge):
    folder = tmp_path_factory.mktemp("run")
    return carried_out(study(folder, benchmark, judge)), folder


def rows(folder):
    return json.loads((folder / "results.json").read_text())["rows"]


def test_every_method_has_a_row_for_each_model_and_way(run):
    _, folder = run
    expected = {(IMAGE, "none", "none"), (TRUE, "none", "none")}
    for name, ways in WAYS.items():
        expected |= {(method, way, name) for method in ("ddim", "direct") for way in ways}
        expected |= {(method, "own", name) for method in ("pseudo_guidance", "sdedit")}
    expected.add(("flow_edit", "own", "second"))
    found = rows(folder)
    assert {(row["method"], row["edit"], row["model"]) for row in found} == expected
    wanted = {"method", "edit", "model", "clip_score", "lpips", "background_psnr", "success", "seconds", "n"}
    assert all(wanted <= set(row) and row["n"] == 3 for row in found)


def test_what_a_model_cannot_do_is_said(run):
    results = json.loads((run[1] / "results.json").read_text())
    assert [(each["model"], each["method"]) for each in results["left_out"]] == [("first", "flow_edit")]
    assert "flow-matching" in results["left_out"][0]["reason"]


def test_the_image_itself_is_unedited_and_the_true_edit_is_made(run):
    by_method = {row["method"]: row for row in rows(run[1])}
    itself, true = by_method[IMAGE], by_method[TRUE]
    assert itself["lpips"] == itself["structure"] == itself["success"] == 0 and itself["kept"] == 1
    assert true["kept"] == 1 and true["lpips"] > 0
    samples = pd.read_parquet(run[1] / "samples.parquet")
    backgrounds = samples[(samples["method"] == TRUE) & (samples["kind"] == BACKGROUND)]
    assert len(backgrounds) and (backgrounds["success"] == 1).all()


def test_an_exact_inversion_is_known_as_such(run):
    by_row = {(row["method"], row["edit"], row["model"]): row for row in rows(run[1])}
    for name, (_, way) in WAYS.items():
        assert by_row["direct", way, name]["latent_mse"] < 1e-8 < by_row["ddim", way, name]["latent_mse"]


def test_seconds_hold_those_of_the_networks(run):
    for row in rows(run[1]):
        if row["model"] != "none":
            assert row["overhead"] >= 1 and row["seconds"] >= row["seconds_networks"] > 0


def test_samples_pairs_hashes_and_pictures_are_left_behind(run):
    _, folder = run
    samples = pd.read_parquet(folder / "samples.parquet")
    found = rows(folder)
    assert len(samples) == 3 * len(found)
    for row in found:
        own = samples[(samples["method"] == row["method"]) & (samples["edit"] == row["edit"])]
        own = own[own["model"] == row["model"]]
        assert row["clip_score"] == pytest.approx(own["clip_score"].mean())
    results = json.loads((folder / "results.json").read_text())
    assert set(results["networks"]) == {"first", "second", "clip", "judge", "lpips", "structure"}
    assert all(len(each["sha256"]) == 64 and each["name"] for each in results["networks"].values())
    one = next(p for p in results["pairs"] if (p["method"], p["edit"], p["model"]) == ("direct", "p2p", "first"))
    by_key = {(row["method"], row["edit"], row["model"]): row for row in found}
    difference = by_key["direct", "p2p", "first"]["clip_score"] - by_key["ddim", "p2p", "first"]["clip_score"]
    assert one["score"] == "clip_score" and one["difference"] == pytest.approx(difference)
    assert (folder / "figures/fig6.png").stat().st_size and (folder / "images/fig7_first_p2p.png").stat().st_size


def test_a_second_run_computes_nothing_and_says_the_same(run, benchmark, judge, capsys):
    before = rows(run[1])
    carried_out(study(run[1], benchmark, judge))
    assert "Nothing to compute" in capsys.readouterr().out
    assert rows(run[1]) == before


def test_one_model_runs_alone_by_the_name_of_its_path(tmp_path, benchmark, judge):
    alone = partial(model, tiny_stable_diffusion, path="checkpoints/mine")
    options = {"methods": {}, "extra_methods": {"sdedit": SDEdit()}, "count": 1}
    with pytest.raises(ValueError, match=r"task.steps says nothing of the model 'mine': give one number"):
        study(tmp_path, benchmark, judge, model=alone, **options).prepare(trainer())
    carried_out(study(tmp_path, benchmark, judge, model=alone, steps=2, **options))
    assert {row["model"] for row in rows(tmp_path)} == {"none", "mine"}


def test_names_and_steps():
    assert checkpoint_name(partial(dict, path="a/emoji", lora="b/emoji_lcm/")) == "emoji_lcm"
    with pytest.raises(ValueError, match=r"task.model has no path that would name it"):
        checkpoint_name(dict)
    assert steps_of("x", 7) == 7 and steps_of("x", {"x": 3}) == 3


def test_kinds_take_turns(benchmark):
    edits = read_benchmark(benchmark)
    found = evenly(edits, [OBJECT, BACKGROUND], 4)
    assert [KINDS[edit.kind] for edit in found] == [OBJECT, BACKGROUND] * 2
    assert len(evenly(edits, [OBJECT, BACKGROUND], None)) == 5
    with pytest.raises(
        ValueError, match=r"task.count=6: the benchmark has 5 edits of change object, change background"
    ):
        evenly(edits, [OBJECT, BACKGROUND], 6)


@pytest.fixture(scope="module")
def scoring(judge):
    classifier = load_classifier(judge)
    return Networks(clip(device="cpu"), classifier, judge_lpips(classifier, ""),
                    judge_structure(classifier, ""))  # fmt: skip


def test_an_edit_that_is_lost_fails_and_an_unknown_one_has_no_verdict(benchmark, scoring):
    by_kind = {KINDS[edit.kind]: edit for edit in read_benchmark(benchmark)}
    edits = [by_kind[OBJECT], by_kind[BACKGROUND], by_kind["change style"]]
    originals = torch.stack([edit.picture((64, 64)) for edit in edits])
    lost = measures(torch.full_like(originals, torch.nan), originals, edits, scoring, 20.0)
    assert lost["success"].nan_to_num(-1).tolist() == [0, 0, -1] and lost["clip_score"].isnan().all()
    assert lost["kept"].tolist() == [0, 0, 0]
    true = torch.stack([edit.picture((64, 64), target=True) for edit in edits])
    masks = torch.stack([edit.mask_at((64, 64)) for edit in edits])
    made = edits_made(true, originals, masks, edits, scoring.judge)
    named = scoring.judge.labels[scoring.judge(true[:1]).argmax().item()]
    assert made[0] == (named == edits[0].concept) and made[1] == 1 and made[2].isnan()


def test_the_region_alone_is_seen_by_its_clip_score(benchmark, scoring):
    edit = read_benchmark(benchmark)[0]
    original = edit.picture((64, 64))[None]
    outside = original + 0.5 * (~edit.mask_at((64, 64))) * (1 - original)
    first, second = (measures(image, original, [edit], scoring, 20.0) for image in (original, outside))
    assert first["clip_score_region"] == second["clip_score_region"] and first["clip_score"] != second["clip_score"]


def test_structure_is_the_mean_square_of_self_similarities():
    a, b = torch.eye(2)[None], torch.tensor([[[1.0, 0], [3, 4]]])
    assert structure_distance(a, b).item() == pytest.approx(2 * 0.6**2 / 4)
    assert structure_distance(3 * b, b).item() == pytest.approx(0)


def test_dino_s_structure_is_that_of_its_last_keys(tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=224, patch_size=32
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    distance = dino_structure(str(tmp_path), "cpu")
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        pixels = (images - mean) / std
        hidden = network(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        layer = dict(network.named_modules())
        keys_name = [name for name in layer if name.rpartition(".")[2] in ("key", "k_proj")][-1]
        before = next(m for name, m in reversed(layer.items()) if name.endswith("layernorm_before"))
        keys = layer[keys_name](before(hidden))
    expected = structure_distance(keys[:1], keys[1:])
    torch.testing.assert_close(distance(images[:1], images[1:]), expected)
    with pytest.raises(ValueError, match=r"cannot load a DINO ViT from task.dino="):
        dino_structure(str(tmp_path / "none"), "cpu")


def test_lpips_is_squeeze_net_s(tmp_path):
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
        ValueError, match=r"is not SqueezeNet 1.1, for features.0.weight is missing or of another shape"
    ):
        squeeze_lpips(str(tmp_path / "other.pth"), "cpu")
    with pytest.raises(ValueError, match=r"task.lpips=.* cannot be read"):
        squeeze_lpips(str(tmp_path / "none.pth"), "cpu")


def test_pairs_are_of_the_same_edits():
    def sample(method, key, score, edit="p2p"):
        scores = dict.fromkeys(("clip_score", "lpips", "background_psnr", "success"), score)
        return {"method": method, "edit": edit, "model": "m", "sample": key, **scores}

    samples = [sample("a", 1, 0.1), sample("a", 2, 0.5), sample("b", 2, 0.6), sample("b", 1, 0.4)]
    found = paired(samples, "a", 0)
    assert {pair["method"] for pair in found} == {"b"} and len(found) == 4
    assert found[0]["difference"] == pytest.approx(0.2) and found[0]["n"] == 2
    assert found[0]["low"] == pytest.approx(0.1) and found[0]["high"] == pytest.approx(0.3)
    own = paired([*samples, sample("a", 1, 0.0, "prompt_swap"), sample("c", 1, 1.0, "own")], "a", 0)
    assert [p["difference"] for p in own if p["method"] == "c"] == [1.0] * 4


def test_speeds_are_told_against_the_most_steps():
    given = [("p2p", 50, 8.0), ("injection", 4, 1.0), ("prompt_swap", 4, 1.0)]
    found = with_speeds([{"method": "a", "edit": e, "steps": s, "seconds": t} for e, s, t in given])
    assert [row["faster"] for row in found][:2] == [1.0, 8.0] and np.isnan(found[2]["faster"])


def test_a_study_needs_methods_that_edit(tmp_path, benchmark, judge):
    with pytest.raises(ValueError, match=r"task.methods and task.extra_methods are both empty"):
        study(tmp_path, benchmark, judge, methods={}, extra_methods={})
    with pytest.raises(ValueError, match=r"task\.others\.x neither edits nor inverts"):
        study(tmp_path, benchmark, judge, extra_methods={"x": object()})
