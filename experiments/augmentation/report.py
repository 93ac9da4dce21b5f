"""Table, figures and samples of the augmentation experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from torch import Tensor

from experiments.data.concepts import Concept
from experiments.evaluation.metrics import bootstrap_interval
from experiments.rare_concepts.report import image_figures
from experiments.rare_concepts.scoring import ClassifiedImages, lost_samples, mean
from experiments.reporting import figures as plots
from experiments.reporting import tables
from experiments.reporting.results import Report

COLUMNS = {
    "method": "method", "k": "real images per class", "generated": "generated images per class",
    "accuracy_%": "accuracy, %", "gain_points": "gain, points",
    "generated_%": "generated images classified correctly, %", "n": "held-out images",
    "trainings": "trainings", "t_train": "T_train, s",
}  # fmt: skip


@dataclass(frozen=True)
class Predictions:
    """The predictions of a method's classifiers for the N held-out images.

    Attributes:
        predictions: ``int64 [T, N]``, indices of concepts, one row per training.
        truth: ``int64 [N]``.
        concepts: by index.
        seconds: one per training.
    """

    predictions: Tensor
    truth: Tensor
    concepts: Sequence[Concept]
    seconds: Sequence[float]

    @property
    def correct(self) -> Tensor:
        """``bool [T, N]``."""
        return self.predictions == self.truth

    @property
    def accuracy_by_image(self) -> Tensor:
        """Fraction of the trainings that classify each image correctly, ``float64 [N]``."""
        return self.correct.double().mean(0)


def write_report(
    run_dir: Path,
    predictions: Mapping[str, Predictions],
    images: Mapping[str, ClassifiedImages],
    settings: Mapping[str, Any],
    *,
    loggers: Sequence[Logger],
    references: int,
    seed: int,
    step: int = 0,
) -> list[dict]:
    """Write results, table, samples and figures to ``run_dir`` and the loggers; return the rows of the table.

    Args:
        predictions: of each method's classifiers. Gains are relative to the first method.
        images: classified generated images of each method that has any.
        settings: the settings that the results depend on.
        references: real training images per class.
        seed: of the bootstrap.
        step: step of the loggers: the number of units.
    """
    rows = accuracy_rows(predictions, images, references, seed)
    table = tables.markdown_table([_table_line(row) for row in rows], COLUMNS)
    if lost := lost_samples(images):
        table += f"\n{lost}"
    report = Report(
        rows=rows,
        settings=settings,
        samples=[row for method, values in predictions.items() for row in sample_rows(method, values)],
        table=table,
        figures={"figures/accuracy": partial(accuracy_figure, rows), **image_figures(images)},
        identity=("method",),
    )
    report.write(run_dir, loggers, step)
    return rows


def accuracy_rows(
    predictions: Mapping[str, Predictions], images: Mapping[str, ClassifiedImages], references: int, seed: int
) -> list[dict]:
    """Return one row per method with its accuracy and its gain over the first method, with 95 % intervals.

    An image counts by the fraction of the trainings that classify it correctly. The bootstrap resamples concepts, the
    same ones for both methods of a gain, so that a concept's difficulty does not widen the interval.
    """
    baseline = next(iter(predictions.values())).accuracy_by_image
    rows = []
    for name, method in predictions.items():
        concepts = method.truth.tolist()
        accuracy = method.accuracy_by_image
        gain = accuracy - baseline
        low, high = bootstrap_interval(accuracy.tolist(), concepts, seed=seed)
        gain_low, gain_high = bootstrap_interval(gain.tolist(), concepts, seed=seed)
        row = {
            "method": name, "k": references, "generated": 0,
            "accuracy": accuracy.mean().item(), "accuracy_low": low, "accuracy_high": high,
            "gain": gain.mean().item(), "gain_low": gain_low, "gain_high": gain_high,
            "n": len(accuracy), "concepts": len(method.concepts), "trainings": len(method.correct),
            "t_train": mean(method.seconds),
            "accuracy_spread": method.correct.double().mean(1).std(unbiased=False).item(),
        }  # fmt: skip
        if generated := images.get(name):
            row["generated"] = len(generated.predictions) // len(method.concepts)
            row["generated_accuracy"] = mean(map(float, generated.correct))
        rows.append(row)
    return rows


def _table_line(row: Mapping) -> dict:
    """Return the row with its percentages and intervals formatted."""
    has_images = "generated_accuracy" in row
    return {
        **row,
        "accuracy_%": tables.percent(row, "accuracy"),
        "gain_points": tables.percentage_points(row, "gain") if row["generated"] else tables.DASH,
        "generated_%": f"{100 * row['generated_accuracy']:.1f}" if has_images else tables.DASH,
    }


def sample_rows(method: str, predictions: Predictions) -> list[dict]:
    """Return one row per held-out image and training."""
    rows = []
    truth = predictions.truth.tolist()
    for training, labels in enumerate(predictions.predictions.tolist()):
        for k, (label, index) in enumerate(zip(labels, truth, strict=True)):
            concept = predictions.concepts[index]
            rows.append(
                {
                    "method": method, "training": training, "image": k, "concept": concept.name,
                    "bucket": concept.bucket, "frequency": concept.frequency,
                    "prediction": predictions.concepts[label].name, "correct": label == index,
                }
            )  # fmt: skip
    return rows


def accuracy_figure(rows: Sequence[Mapping]) -> Figure:
    """Plot each method's accuracy with its interval; the dashed line is the accuracy with the references alone."""
    figure, axis = plots.panel(6, 0.45 * len(rows) + 0.9)
    values = [100 * row["accuracy"] for row in rows]
    axis.barh(range(len(rows)), values, xerr=plots.error_bars(rows, "accuracy", 100), color="tab:blue")
    axis.axvline(values[0], color="black", linestyle="--", linewidth=1)
    axis.set(
        yticks=range(len(rows)),
        yticklabels=[row["method"] for row in rows],
        xlim=(0, 100),
        xlabel="accuracy on held-out images, %",
    )
    axis.invert_yaxis()
    return figure
