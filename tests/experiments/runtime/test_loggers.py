"""Results in TensorBoard, and loggers whose packages that are not installed."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from omegaconf import OmegaConf
from PIL import Image

from experiments.reporting.results import log_media, log_metrics
from experiments.runtime import loggers
from tests.commands import composed


def test_tensorboard_has_metrics_tables_and_figures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    Image.new("RGB", (6, 4), "red").save(tmp_path / "figure.png")
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    rows = [{"method": "ddim", "steps": 4, "psnr": 20.5}]
    log_metrics([logger], rows, ("method", "steps"), step=3)
    log_media([logger], {"results": rows}, {"figures/nfe": tmp_path / "figure.png"})
    logger.finalize("success")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (scalar,) = events.Scalars("ddim/steps_4/psnr")
    assert (scalar.step, scalar.value) == (3, 20.5)
    assert [(image.width, image.height) for image in events.Images("figures/nfe")] == [(6, 4)]
    assert "results/text_summary" in events.Tags()["tensors"]


def test_mlflow_has_settings_metrics_tables_and_figures(tmp_path, monkeypatch):
    """The results are in the database and in the folder of the config ``logger=mlflow``."""
    tracking = pytest.importorskip("mlflow.tracking")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Image.new("RGB", (6, 4), "red").save(tmp_path / "figure.png")
    config = composed("logger=mlflow", f"run_dir={tmp_path}")
    logger = instantiate(config.logger.mlflow)
    loggers.log_config([logger], config)
    rows = [{"method": "ddim", "steps": 4, "psnr": 20.5}]
    log_metrics([logger], rows, ("method", "steps"), step=3)
    log_media([logger], {"results": rows}, {"figures/nfe": tmp_path / "figure.png"})
    logger.finalize("success")
    client = tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'seed-exploration'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (config.name, "FINISHED")
    assert run.data.params["seed"] == str(config.seed)
    (metric,) = client.get_metric_history(run.info.run_id, "ddim/steps_4/psnr")
    assert (metric.step, metric.value) == (3, 20.5)
    table = Path(client.download_artifacts(run.info.run_id, "results.csv", str(tmp_path)))
    assert table.read_text() == "method,steps,psnr\nddim,4,20.5\n"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "figures")] == ["figures/figure.png"]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_missing_package_is_reported_with_the_command_that_installs_it(name, monkeypatch):
    config = composed(f"logger={name}").logger
    assert list(config) == ["csv", name]
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=rf"logger={name} requires the extra {name}: run pip install -e"):
        loggers.check_packages(config)
    monkeypatch.setattr(loggers, "find_spec", lambda package: object())
    loggers.check_packages(config)
    loggers.check_packages(OmegaConf.create({}))


def test_wandb_gets_no_option_without_effect(tmp_path):
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    loggers.omit_anonymous_option([logger])
    assert "anonymous" not in logger._wandb_init
