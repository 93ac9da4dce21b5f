"""What a run leaves behind, the judge, and descriptions of settings."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from matplotlib import pyplot as plt

from experiments.cache.key import describe
from experiments.evaluation.classifier import Classifier, Preprocessing, load_classifier
from experiments.reporting import tables
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


def report(folder, pictures, rows=None, table="| a |\n"):
    rows = rows or [{"method": "plain", "bucket": "tail", "accuracy": 0.5}]
    tables.write_report(
        folder, rows, {}, samples=[{"sample": "a/0"}], table=table, pictures=pictures, loggers=[], pairs=[]
    )


def fine():
    return tables.image_table([("camel", [np.zeros((3, 8, 8), np.uint8), None])], ["x", "y"], "title")


def test_a_picture_that_fails_costs_neither_results_nor_the_other_pictures(tmp_path, capsys):
    def broken():
        raise RuntimeError("no such font")

    with pytest.warns(UserWarning, match=r"figures/first could not be drawn \(RuntimeError: no such font\)"):
        report(tmp_path, {"figures/first": broken, "images/second": fine})
    for name in ("results.json", "samples.parquet", "table.md", "images/second.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert not (tmp_path / "figures").exists() and "| a |" in capsys.readouterr().out


def test_pictures_are_the_last_thing_that_is_written(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report(tmp_path, {"figures/first": interrupted})
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "samples.parquet", "table.md"}


def test_results_need_neither_git_nor_every_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tables, "PACKAGES", ("torch", "no-such-package"))
    found = tables.versions()
    assert found["commit"] == found["no-such-package"] == "unknown" and found["torch"] != "unknown"


def test_scalars_of_numpy_and_torch_are_json(tmp_path):
    rows = [{"n": np.int64(3), "hit": np.bool_(True), "mse": torch.tensor(float("inf")), "names": ("a", np.float32(2))}]
    tables.write_results(tmp_path, rows, {})
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == [
        {"n": 3, "hit": True, "mse": None, "names": ["a", 2.0]}
    ]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_what_cannot_be_had_is_a_dash(value):
    row = {"fid": value, "accuracy": value, "accuracy_low": value, "accuracy_high": value}
    assert tables.markdown_table([row], {"fid": "FID"}).splitlines()[-1] == "| – |"
    assert tables.percent(row, "accuracy") == tables.points(row, "accuracy") == tables.percent({}, "accuracy") == "–"


def test_names_are_text_whatever_signs_they_hold(tmp_path):
    figure = tables.image_table([("$1 bill, $x^", [np.zeros((3, 8, 8), np.uint8)])], ["a_$b"], "100 % $\\frac$")
    assert tables.save_figure(figure, tmp_path / "a.png").stat().st_size > 0
    assert tables.markdown_table([{"method": "a|b"}], {"method": "method"}).splitlines()[-1] == r"| a\|b |"


def test_logarithmic_axes_are_labeled_in_plain_numbers(tmp_path):
    for scale in ({"value": "log"}, {"value": "symlog", "linthresh": 1e-4}):
        figure, axis = plt.subplots()
        axis.plot([1e-3, 1e-1, 20], [1e-3, 1, 1e3])
        axis.set_yscale(**scale)
        tables.save_figure(figure, tmp_path / "a.png")
        labels = [label.get_text() for label in axis.get_yticklabels()]
        assert (
            any(labels)
            and "$" not in "".join(labels)
            and {float(text.replace("−", "-")) for text in labels if text} >= {0.1, 10.0}
        )


def test_captions_stand_below_their_pictures():
    picture = np.zeros((3, 2, 2), dtype=np.uint8)
    figure = tables.image_table([("a", [picture, None])], ["x", "y"], "title", [["right", "wrong, a copy"]])
    assert [axis.get_xlabel() for axis in figure.axes] == ["right", "wrong, a copy"]
    plt.close(figure)


def test_an_interval_that_rounding_takes_past_its_value_is_drawn(tmp_path):
    row = {"method": "a", "bucket": "tail", "accuracy": 0.1 + 0.2, "accuracy_low": 0.3 + 1e-15, "accuracy_high": 0.3}
    assert tables.save_figure(tables.accuracy_figure([row]), tmp_path / "a.png").stat().st_size > 0


def test_classifier_is_saved_and_loaded(tmp_path):
    network = timm.create_model("resnet10t", num_classes=5)
    classifier = Classifier(network, list("abcde"), Preprocessing(32, (0.5,) * 3, (0.25,) * 3)).eval()
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
    assert describe(partial(describe, args=1)) != describe(partial(describe, 1))
    assert describe(FixedPoint(1).has_budget) != describe(FixedPoint(2).has_budget)
    for nameless in (lambda x: x, fine.__call__):
        with pytest.raises(TypeError, match="cache key"):
            describe(nameless)
    with pytest.raises(TypeError, match="cache key"):
        describe(object())
