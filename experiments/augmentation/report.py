"""Report of the augmentation experiment: tables, figures, and the predicted label of every held-out image."""

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
from experiments.rare_concepts.report import CONCEPT_COLUMNS as GENERATED_CONCEPT_COLUMNS
from experiments.rare_concepts.report import COUNT, image_figures, thumbnails
from experiments.rare_concepts.scoring import ClassifiedImages, lost_samples, mean
from experiments.reporting import figures as plots
from experiments.reporting.results import Report
from experiments.reporting.tables import Column, Table

COLUMNS = (
    Column("method", "method"), Column("accuracy", "accuracy, %", "higher", scale=100),
    Column("gain", "gain, points", "higher", scale=100, signed=True),
    Column("generated_accuracy", "correct generated images, %", "higher", scale=100), Column("n", "held-out images"),
    Column("trainings", "trainings"), Column("t_train", "T_train, s", "lower"),
)  # fmt: skip
CONCEPT_COLUMNS = (*(column for column in GENERATED_CONCEPT_COLUMNS if column.key != "copies"), COUNT)


@dataclass(frozen=True)
class Predictions:
    """The labels that the T classifiers of one method predict for N held-out images.

    Attributes:
        predictions: index of the concept that each of the T classifiers predicts for each image, ``int64 [T, N]``.
        truth: index of the true concept of each image, ``int64 [N]``.
        concepts: the concepts. The indices in ``predictions`` and ``truth`` are positions in this sequence.
        seconds: wall time of the training of each classifier, in seconds.
    """

    predictions: Tensor
    truth: Tensor
    concepts: Sequence[Concept]
    seconds: Sequence[float]

    @property
    def correct(self) -> Tensor:
        """Whether the label that each classifier predicts for each image is correct, ``bool [T, N]``."""
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
    """Write the report to ``run_dir`` and the loggers; return the rows of the results table.

    Args:
        predictions: dict from the name of each method to the predicted labels of its classifiers. The first method is
            the baseline: the gain of a method is its accuracy minus the accuracy of the first method.
        images: dict from the name of each method to its generated images and the labels that the evaluation classifier
            predicts for them.
        settings: settings of the experiment, which the report contains.
        references: number of real training images per class.
        seed: random seed of the bootstrap.
        step: step number with which the loggers record the results.
    """
    rows = accuracy_rows(predictions, images, references, seed)
    lines = [row if row["generated"] else row | {"gain": None} for row in rows]
    images_per_class = ", ".join(f"{row['method']} {row['generated']}" for row in rows)
    report = Report(
        rows=rows,
        settings=settings,
        samples=[row for method, values in predictions.items() for row in sample_rows(method, values)],
        tables=[Table(lines, COLUMNS)],
        figures={"figures/accuracy": partial(accuracy_figure, rows), **image_figures(images)},
        notes=[
            f"Training images per class: {references} real images and generated images ({images_per_class}).",
            lost_samples(images),
        ],
        identity=("method",),
        values=COLUMNS[1:4],
        extra_tables={"concepts": concept_rows(predictions)},
        details=[Table(concept_rows(predictions), CONCEPT_COLUMNS, "Concepts", within=["concept"])],
        thumbnails=partial(thumbnails, images),
    )
    report.write(run_dir, loggers, step)
    return rows


def accuracy_rows(
    predictions: Mapping[str, Predictions], images: Mapping[str, ClassifiedImages], references: int, seed: int
) -> list[dict]:
    """Return one row per method with its accuracy, its gain over the first method, and 95 % confidence intervals.

    The gain is the accuracy of a method minus the accuracy of the first method. The accuracy is averaged over images
    and trained classifiers. The confidence intervals are computed by a bootstrap that resamples concepts. For a gain,
    both methods are resampled with the same concepts, so that the difficulty of a concept does not widen the interval.
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


def concept_rows(predictions: Mapping[str, Predictions]) -> list[dict]:
    """Return one row per method and concept; the accuracy is the mean over held-out images and trained classifiers."""
    rows = []
    for method, values in predictions.items():
        for index, concept in enumerate(values.concepts):
            accuracy = values.accuracy_by_image[values.truth == index]
            if len(accuracy):
                rows.append(
                    {"method": method, "concept": concept.name, "bucket": concept.bucket,
                     "frequency": concept.frequency, "accuracy": accuracy.mean().item(), "n": len(accuracy)}
                )  # fmt: skip
    return rows


def sample_rows(method: str, predictions: Predictions) -> list[dict]:
    """Return one row per held-out image and trained classifier of a method; each row contains the predicted label."""
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
