"""Sweeps of Hydra and W&B, and their report from files."""

import json
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args, load_sweep_config

from experiments.reporting.figures import save_figure
from experiments.reporting.sweep_report import filter_runs, main, plot_sweep, read_sweep, sweep_table
from experiments.runtime.setup import setup
from tests.commands import composed, forked
from tests.experiments.inversion.test_task import ONE


@pytest.mark.slow
def test_multirun_is_reported_from_its_files(tmp_path, monkeypatch):
    finished = forked(
        "-m", "experiment=lam", "lam=0,0.5", f"run_dir={tmp_path}", "task.images=2", "trainer.accelerator=cpu",
        f"task.settings=[{ONE}]",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    table = read_sweep(tmp_path, ["lam"])
    assert sorted(table["lam"].unique()) == [0, 0.5]
    second = table[(table["method"] == "rnri") & (table["nfe"] == 2)]
    assert second["latent_mse"].nunique() == 2  # the prior's weight changes the seeds
    monkeypatch.setattr(sys, "argv", ["sweep_report", str(tmp_path), "--keys", "lam"])
    main()
    assert (tmp_path / "sweep.png").stat().st_size > 0
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in (tmp_path / "sweep.md").read_text().splitlines()
    ]
    assert {line[0] for line in lines[2:]} == {"0", "0.5", "–"}  # the bound of the VAE is one row
    assert sum("vae" in line for line in lines) == 1
    with pytest.raises(ValueError, match="no key 'lamda'"):
        read_sweep(tmp_path, ["lamda"])


def write_sweep(folder: Path) -> Path:
    """Files of a sweep over two keys, with two methods and two buckets."""
    for rate, weight in product((0.1, 0.2), (1, 10)):
        run = folder / f"{rate}_{weight}"
        run.mkdir()
        (run / "config.yaml").write_text(f"select: {{lr: {rate}, weight: {weight}}}\n")
        rows = [
            {"method": method, "bucket": bucket, "accuracy": rate * weight}
            for method, bucket in product(("plain", "ours"), ("tail", "total"))
        ]
        (run / "results.json").write_text(json.dumps({"rows": rows}))
    return folder


def test_second_key_has_a_curve_per_value(tmp_path):
    keys = ["select.lr", "select.weight"]
    table = filter_runs(read_sweep(write_sweep(tmp_path), keys), "bucket == 'tail' and method == 'ours'")
    lines = plot_sweep(table, keys, ["accuracy"]).axes[0].lines
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}
    assert drawn == {"weight 1": ([0.1, 0.2], [0.1, 0.2]), "weight 10": ([0.1, 0.2], [1.0, 2.0])}


def write_bounded_sweep(folder: Path) -> pd.DataFrame:
    """Sweep of ``lam`` with intervals and a bound that is equal in all runs."""
    for k, lam in enumerate((0, 0.1, 1, 10)):
        run = folder / str(k)
        run.mkdir()
        (run / "config.yaml").write_text(f"lam: {lam}\n")
        rows = [
            {"method": "vae", "steps": None, "psnr": 30.0, "psnr_low": 29.0, "psnr_high": 31.0},
            {"method": "rnri", "steps": 4, "psnr": 20.0 + k, "psnr_low": 19.0 + k, "psnr_high": 22.0 + k},
        ]
        (run / "results.json").write_text(json.dumps({"rows": rows, "bounds": ["vae"]}))
    return read_sweep(folder, ["lam"])


def test_table_has_intervals_and_one_row_per_bound(tmp_path):
    table = sweep_table(write_bounded_sweep(tmp_path), ["lam"], ["psnr"])
    assert table.heads == ["lam", "method", "psnr"]  # the method names the bound's row
    assert table.cells == [
        ["0", "rnri", "20 (19–22)"],
        ["0.1", "rnri", "21 (20–23)"],
        ["1", "rnri", "22 (21–24)"],
        ["10", "rnri", "23 (22–25)"],
        ["–", "vae", "30 (29–31)"],
    ]


def test_bound_that_differs_between_runs_has_a_row_per_value(tmp_path):
    write_bounded_sweep(tmp_path)
    path = tmp_path / "3" / "results.json"
    path.write_text(path.read_text().replace("30.0", "28.0"))
    table = sweep_table(read_sweep(tmp_path, ["lam"]), ["lam"], ["psnr"])
    assert [cells[0] for cells in table.cells[4:]] == ["–", "10"]


def test_figure_has_error_bars_a_line_for_the_bound_and_a_tick_per_value(tmp_path):
    figure = plot_sweep(write_bounded_sweep(tmp_path), ["lam"], ["psnr"])
    (axis,) = figure.axes
    segments = axis.collections[0].get_segments()
    assert [segment[:, 1].tolist() for segment in segments] == [[19, 22], [20, 23], [21, 24], [22, 25]]
    assert [line.get_linestyle() for line in axis.lines if set(line.get_ydata()) == {30.0}] == ["--"]
    save_figure(figure, tmp_path / "sweep.png")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "0.1", "1", "10"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("bucket = 3", "columns are"),
        ("color == 1", "columns are"),
        ("accuracy > 9", "none of the 16"),
        ("1+1", "'1\\+1': must be a condition on the columns"),
        ("1 == 1", "must be a condition"),
        ("accuracy", "must be a condition"),
        ("bucket < 3", "columns are"),
        ("", "columns are"),
    ],
)
def test_invalid_and_unfulfilled_conditions_are_rejected(tmp_path, where, message):
    with pytest.raises(ValueError, match=message):
        filter_runs(read_sweep(write_sweep(tmp_path), ["select.lr"]), where)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.json", "", "cannot be read as JSON"),
        ("results.json", '{"rows": [{"method"', "cannot be read as JSON"),
        ("results.json", "\x80", "cannot be read as JSON"),
        ("results.json", "[]", "no rows"),
        ("results.json", '{"rows": []}', "no rows"),
        ("results.json", '{"rows": [1]}', "no rows"),
        ("results.json", "{}", "no rows"),
        ("config.yaml", "a: [", "cannot be read"),
        ("config.yaml", "", "no keys"),
        ("config.yaml", "[1]", "no keys"),
        ("config.yaml", None, "cannot be read"),
    ],
)
def test_damaged_run_is_left_out_with_a_message(tmp_path, capsys, file, content, message):
    damaged = write_sweep(tmp_path) / "0.1_1" / file
    damaged.unlink()
    if content is not None:
        damaged.write_bytes(content.encode("latin-1"))
    table = read_sweep(tmp_path, ["select.lr", "select.weight"])
    errors = capsys.readouterr().err
    assert len(table) == 12 and errors.count("\n") == 1 and str(damaged) in errors and message in errors


def test_sweep_of_only_damaged_runs_is_rejected(tmp_path):
    for file in write_sweep(tmp_path).rglob("results.json"):
        file.write_text("")
    with pytest.raises(ValueError, match=r"none of the 4 files results\.json"):
        read_sweep(tmp_path, ["select.lr"])


def test_key_may_be_a_number_in_one_run_and_a_text_in_another(tmp_path):
    for name, rate in (("a", "auto"), ("b", 0.5), ("c", 3), ("d", "none"), ("e", True)):
        run = tmp_path / name
        run.mkdir()
        (run / "config.yaml").write_text(f"lr: {json.dumps(rate)}\n")
        (run / "results.json").write_text(json.dumps({"rows": [{"method": "ours", "accuracy": 0.5}]}))
    table = read_sweep(tmp_path, ["lr"])
    assert list(table["lr"]) == [0.5, True, 3, "auto", "none"]
    (line,) = plot_sweep(table, ["lr"], ["accuracy"]).axes[0].lines
    assert list(line.get_xdata()) == ["0.5", "True", "3", "auto", "none"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--values", "accuracy", "--where", "1+1"], "--where '1+1': must be a condition"),
        (["--values", "bucket"], "--values: the column 'bucket' must contain numbers, got 'tail'"),
        (["--values", "psnr"], "no column 'psnr'"),
        (["--values", "accuracy"], "sweep.md cannot be written"),
    ],
)
def test_command_exits_with_one_sentence(tmp_path, monkeypatch, capsys, options, message):
    (write_sweep(tmp_path) / "sweep.md").mkdir()  # cannot be written, as in a read-only folder
    monkeypatch.setattr(sys, "argv", ["sweep_report", str(tmp_path), "--keys", "select.lr", *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert message in end.value.code and end.value.code.startswith("error: ") and "\n" not in end.value.code


def test_key_of_a_config_group_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"'select' has several subkeys in .*; append one of lr, weight to the key"):
        read_sweep(write_sweep(tmp_path), ["select"])


def test_folder_without_runs_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"contains no results\.json"):
        read_sweep(tmp_path, ["lam"])


SMALL = {
    "lam": ["task.images=1"],
    "rare_concepts": ["data.concepts=1", "task.steps=4", "task.samples=1", "select.iterations=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(Path("configs/sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_wandb_sweep_logs_its_metric_during_the_run(path, tmp_path):
    sweep = load_sweep_config(str(path))  # the loader of `wandb sweep FILE`
    assert sweep["program"] == "train.py"
    fixed = [word for word in sweep["command"] if not word.startswith("${")]
    names = list(sweep["parameters"])
    for values in product(*(spec["values"] for spec in sweep["parameters"].values())):
        parameters = {name: {"value": value} for name, value in zip(names, values, strict=True)}
        overrides = create_sweep_command_args({"args": parameters})["args_no_hyphens"]  # as the agent writes them
        config = composed(*fixed, *overrides)
        assert config.logger.wandb and len(overrides) == len(names)
    small = [*SMALL[config.name], f"run_dir={tmp_path}", "logger=csv", "trainer.accelerator=cpu"]
    config = composed(*fixed, *overrides, *small)
    task, trainer = setup(config)
    (task.run if config.name == "lam" else task.compute)(trainer)  # without the report, which needs real images
    logged = pd.read_csv(tmp_path / "metrics.csv")
    assert logged["step"].is_monotonic_increasing
    history = logged[sweep["metric"]["name"]].dropna()
    assert len(history) == (2 if config.name == "lam" else 1)  # after the one unit, and with the table
    assert history.nunique() == 1
