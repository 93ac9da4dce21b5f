"""The guide *Add a metric*: its code blocks are executed, and the metric appears in the results of a run."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from experiments.evaluation.registry import INVERSION
from experiments.inversion.jobs import Setting
from experiments.inversion.task import InversionExperiment
from rnri import FixedPoint, ImplicitInverter
from tests.experiments.tiny_configs import Squares, clip, run_to_end, tiny, tiny_classifier

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "add_a_metric.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run after the page's code was executed."""
    namespace: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL):
        exec(block, namespace)
    folder = tmp_path_factory.mktemp("metric")
    try:
        run_to_end(
            InversionExperiment(
                source=Squares(), concepts="all", buckets=["tail"], model=tiny, clip=clip, seed=0,
                classifier=tiny_classifier(folder / "classifier"), run_dir=str(folder / "run"),
                methods={"ddim": ImplicitInverter(FixedPoint(1))}, settings=[Setting(2)], images=3, batch_size=2,
                figures=[], paper=[],
            )
        )  # fmt: skip
    finally:
        INVERSION.unregister("max_error")
    return folder / "run"


def test_metric_has_a_column_before_the_perceptual_distance(run):
    heads = [head.strip() for head in (run / "table.md").read_text().splitlines()[0].split("|")]
    assert heads.index("max error ↓") + 1 == heads.index("perceptual distance ↓")
    assert "max_error_low" in (run / "table.csv").read_text().splitlines()[0].split(",")


def test_metric_is_aggregated_with_an_interval(run):
    values = pd.read_parquet(run / "samples.parquet").query("method == 'ddim'")["max_error"]
    rows = json.loads((run / "results.json").read_text())["rows"]
    row = next(row for row in rows if row["method"] == "ddim")
    assert row["max_error"] == pytest.approx(values.mean())
    assert row["max_error_low"] <= row["max_error"] <= row["max_error_high"]
