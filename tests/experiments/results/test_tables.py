"""What a run leaves behind, the judge, and descriptions of settings."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from experiments.judges.classifier import Classifier, load_classifier
from experiments.results import tables
from experiments.results.settings import describe
from rnri import FixedPoint, ImplicitInverter


def test_results_are_strict_json(tmp_path):
    tables.write_results(tmp_path, [{"fid": float("nan"), "n": 3, "low": float("-inf")}], {"steps": 20})
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["rows"] == [{"fid": None, "n": 3, "low": None}]
    assert content["settings"] == {"steps": 20} and "torch" in content["versions"]


def test_table_has_a_dash_for_what_is_missing():
    table = tables.markdown_table([{"a": 1.23456, "b": "x"}, {"a": 2}], {"a": "A", "b": "B"})
    assert table.splitlines() == ["| A | B |", "|---|---|", "| 1.23 | x |", "| 2 | – |"]


def test_samples_come_back(tmp_path):
    tables.write_samples(tmp_path, [{"sample": "a/0", "hit": True}, {"sample": "a/1", "hit": False}])
    assert pd.read_parquet(tmp_path / "samples.parquet")["hit"].tolist() == [True, False]


def test_figures_are_pictures(tmp_path):
    picture = np.zeros((3, 8, 8), np.uint8)
    rows = [{"method": m, "bucket": "tail", "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.7} for m in "ab"]
    for name, figure in (
        ("images/table.png", tables.image_table([("camel", [picture, picture])], ["x", "y"], "title")),
        ("figures/bars.png", tables.accuracy_figure(rows)),
    ):
        assert tables.save_figure(figure, tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_classifier_is_saved_and_loaded(tmp_path):
    network = timm.create_model("resnet10t", num_classes=5)
    classifier = Classifier(network, list("abcde"), 32, (0.5,) * 3, (0.25,) * 3).eval()
    classifier.save(tmp_path, "resnet10t")
    images = torch.rand(2, 3, 32, 32)
    loaded = load_classifier(tmp_path)
    assert loaded.labels == list("abcde")
    torch.testing.assert_close(loaded(images), classifier(images), rtol=0.02, atol=0.02)  # weights are halves
    features, logits = loaded.features_and_logits(images)
    assert features.shape == (2, loaded.num_features)
    torch.testing.assert_close(logits, loaded(images))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        load_classifier(tmp_path)


def test_description_tells_methods_apart():
    one, other = ImplicitInverter(FixedPoint(iterations=1)), ImplicitInverter(FixedPoint(iterations=2))
    assert describe(one) == describe(ImplicitInverter(FixedPoint(iterations=1))) != describe(other)
    assert describe(partial(tables.markdown_table, columns={"a": 1})) != describe(tables.markdown_table)
    assert describe({"a": [1, (2.0, None)]}) == {"a": [1, [2.0, None]]}
    json.dumps(describe(one))
    with pytest.raises(TypeError, match="cache key"):
        describe(object())
