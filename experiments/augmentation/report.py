"""Table, figures and samples of the augmentation experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from experiments.data.concepts import Concept
from experiments.evaluation.metrics import bootstrap_interval
from experiments.rare_concepts.report import side_by_side
from experiments.rare_concepts.scoring import ClassifiedImages, lost_samples, mean
from experiments.reporting import tables

COLUMNS = {
    "method": "method", "k": "real a class", "generated": "generated a class", "shown": "accuracy, %",
    "shown_gain": "gain, points", "judged": "generated images the judge names, %", "n": "held-out images",
    "trainings": "trainings", "t_train": "T_train, s",
}  # fmt: skip


@dataclass(frozen=True)
class Predictions:
    """What a method's classifiers say of the held-out images.

    Attributes:
        predictions: ``int64 [T, N]``, indices of concepts, one row a training.
        truth: ``int64 [N]``.
        concepts: by index.
        seconds: one a training.
    """

    predictions: Tensor
    truth: Tensor
    concepts: Sequence[Concept]
    seconds: Sequence[float]

    @property
    def hits(self) -> Tensor:
        """``bool [T, N]``."""
        return self.predictions == self.truth

    @property
    def accuracy_by_image(self) -> Tensor:
        """Share of the trainings that name each image: ``float64 [N]``."""
        return self.hits.double().mean(0)


def write_report(
    run_dir: Path,
    predictions: Mapping[str, Predictions],
    judged: Mapping[str, ClassifiedImages],
    settings: Mapping,
    loggers: Sequence[Logger],
    *,
    k: int,
    seed: int,
    step: int = 0,
) -> list[dict]:
    """Writes the whole results contract; the first of ``predictions`` is what gains are measured from."""
    rows = accuracy_rows(predictions, judged, k, seed)
    table = tables.markdown_table([_shown(row) for row in rows], COLUMNS)
    if lost := lost_samples(judged):
        table += f"\n{lost}"
    pictures: dict[str, Callable[[], Figure]] = {"figures/accuracy": partial(accuracy_figure, rows)}
    for bucket in dict.fromkeys(concept.bucket for own in judged.values() for concept in own.concepts):
        pictures[f"images/{bucket}"] = partial(side_by_side, judged, bucket)
    tables.write_report(
        run_dir, rows, settings, table=table, pictures=pictures, loggers=loggers, identity=("method",), step=step,
        samples=[row for name, own in predictions.items() for row in sample_rows(name, own)],
    )  # fmt: skip
    return rows


def accuracy_rows(
    predictions: Mapping[str, Predictions], judged: Mapping[str, ClassifiedImages], k: int, seed: int
) -> list[dict]:
    """Accuracy a method and its gain over the first one, with 95 % intervals from a bootstrap over concepts.

    An image counts by the share of the trainings that name it. The gain's interval draws the same concepts for both
    methods, so what makes a concept easy or hard for both does not widen it.
    """
    first = next(iter(predictions.values()))
    rows = []
    for name, own in predictions.items():
        groups, accuracy_by_image, gains = own.truth.tolist(), own.accuracy_by_image, own.accuracy_by_image - first.accuracy_by_image
        low, high = bootstrap_interval(accuracy_by_image.tolist(), groups, seed=seed)
        gain_low, gain_high = bootstrap_interval(gains.tolist(), groups, seed=seed)
        made = judged.get(name)
        row = {
            "method": name, "k": k, "generated": len(made.predictions) // len(own.concepts) if made else 0,
            "accuracy": accuracy_by_image.mean().item(), "accuracy_low": low, "accuracy_high": high,
            "gain": gains.mean().item(), "gain_low": gain_low, "gain_high": gain_high,
            "n": len(accuracy_by_image), "concepts": len(own.concepts), "trainings": len(own.hits), "t_train": mean(own.seconds),
            "accuracy_spread": own.hits.double().mean(1).std(unbiased=False).item(),
        }  # fmt: skip
        rows.append(row | ({"generated_accuracy": mean(map(float, made.hits))} if made else {}))
    return rows


def _shown(row: Mapping) -> dict:
    """The row with percents that carry their intervals."""
    return {
        **row,
        "shown": tables.percent(row, "accuracy"),
        "shown_gain": tables.points(row, "gain") if row["generated"] else "–",
        "judged": f"{100 * row['generated_accuracy']:.1f}" if "generated_accuracy" in row else "–",
    }


def sample_rows(method: str, predictions: Predictions) -> list[dict]:
    """One row a held-out image and training."""
    return [
        {
            "method": method, "training": training, "image": k, "concept": concept.name, "bucket": concept.bucket,
            "frequency": concept.frequency, "prediction": predictions.concepts[prediction].name,
            "hit": prediction == index,
        }
        for training, predictions in enumerate(predictions.predictions.tolist())
        for k, (prediction, index) in enumerate(zip(predictions, predictions.truth.tolist(), strict=True))
        for concept in [predictions.concepts[index]]
    ]  # fmt: skip


def accuracy_figure(rows: Sequence[Mapping]) -> Figure:
    """Accuracy a method with its interval; the dashed line is that of the references alone."""
    figure, axis = plt.subplots(figsize=(6, 0.45 * len(rows) + 0.9))
    values = [100 * row["accuracy"] for row in rows]
    spread = np.array([tables.whiskers(row, "accuracy", 100) for row in rows]).T
    axis.barh(range(len(rows)), values, xerr=spread, capsize=3, color="tab:blue")
    axis.axvline(values[0], color="black", linestyle="--", linewidth=1)
    axis.set(yticks=range(len(rows)), yticklabels=[row["method"] for row in rows], xlim=(0, 100),
             xlabel="accuracy on held-out images, %")  # fmt: skip
    axis.invert_yaxis()
    return figure
