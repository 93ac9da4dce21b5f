"""Report of the augmentation experiment: table, figures and one row per prediction."""

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
        predictions: index of the predicted concept of each image in each of T trainings, ``int64 [T, N]``.
        truth: index of the true concept of each image, ``int64 [N]``.
        concepts: the concepts that the indices refer to.
        seconds: wall time of each training in seconds.
    """

    predictions: Tensor
    truth: Tensor
    concepts: Sequence[Concept]
    seconds: Sequence[float]

    @property
    def correct(self) -> Tensor:
        """Whether each prediction is correct, ``bool [T, N]``."""
        return self.predictions == self.truth

    @property
    def accuracy_by_image(self) -> Tensor:
        """Fraction of the T trained classifiers that classify each image correctly, ``float64 [N]``."""
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
    """Write results, table, sample rows and figures to ``run_dir`` and the loggers; return the rows of the results.

    Args:
        predictions: predictions of the classifiers of each method, by method. A gain is the difference in accuracy to
            the first method.
        images: generated images with the predictions of the evaluation classifier, by method.
        settings: the settings that the results depend on.
        references: number of real training images per class.
        seed: random seed of the bootstrap.
        step: step at which the loggers record the results; it is the number of units.
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
    """Return one row per method with its accuracy and its gain over the first method, with 95 % confidence intervals.

    The accuracy is averaged over images and trainings. The bootstrap resamples whole concepts. For a gain it resamples
    the same concepts for both methods, so that the varying difficulty of the concepts does not widen the interval.
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
    """Return the row with its accuracies in percent and its confidence intervals formatted for the table."""
    has_images = "generated_accuracy" in row
    return {
        **row,
        "accuracy_%": tables.percent(row, "accuracy"),
        "gain_points": tables.percentage_points(row, "gain") if row["generated"] else tables.DASH,
        "generated_%": f"{100 * row['generated_accuracy']:.1f}" if has_images else tables.DASH,
    }


def sample_rows(method: str, predictions: Predictions) -> list[dict]:
    """Return one row per held-out image and training of a method, with the prediction of the trained classifier."""
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
    """Plot the accuracy of each method with its 95 % confidence interval.

    The dashed line is the accuracy of the classifiers that were trained on the reference images only.
    """
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
