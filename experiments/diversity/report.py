"""Report of the experiment on seed diversity: metrics of the images of each concept, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from torch import Tensor

from experiments.data.concepts import Concept
from experiments.evaluation.classifier import Classifier, classify_images
from experiments.evaluation.diversity import perceptual_vectors, vendi_score
from experiments.evaluation.metrics import bootstrap_interval
from experiments.rare_concepts.context import RunContext
from experiments.reporting import figures as plots
from experiments.reporting.html_report import MAX_THUMBNAILS, Thumbnails
from experiments.reporting.results import Report
from experiments.reporting.tables import Column, Table

METHOD = Column("method", "method")
VALUES = (
    Column("accuracy", "accuracy, %", "higher", scale=100),
    Column("distance", "pairwise distance", "higher"),
    Column("vendi", "Vendi score", "higher"),
    Column("distinct", "distinct correct images", "higher"),
)
COLUMNS = (METHOD, Column("nfe", "NFE", "lower"), *VALUES, Column("n", "images"))
CONCEPT_COLUMNS = (METHOD, Column("concept", "concept"), *VALUES, Column("n", "images"))
PAIR_COLUMNS = [Column(column.key, column.label, scale=column.scale, signed=True) for column in VALUES]
NOTE = (
    "NFE: network evaluations per image; a backward pass counts as two evaluations. Pairwise distance: mean perceptual "
    "distance of two images of a concept. Vendi score: effective number of different images of a concept. Distinct "
    "correct images: Vendi score of the images that the evaluation classifier recognizes, 0 if there are none."
)
MAX_FIGURES = 4  # maximum number of concepts whose images are drawn as figures


@dataclass(frozen=True)
class ImageGroup:
    """The n images of one concept that one arm (compared pipeline) generated, and the metrics of these images.

    Attributes:
        concept: the concept of the prompt.
        images: the m <= n images without NaN and infinite pixels, ``uint8 [m, 3, H, W]``.
        predictions: label that the evaluation classifier predicts for each of the n images; None if the image has NaN
            or infinite pixels.
        records: one dict per image with stored values, such as the number of network evaluations.
        distance: mean perceptual distance between two of the images; None if there are fewer than two images.
        vendi: Vendi score (effective number of different images) of the images; None if there are no images.
        distinct: Vendi score of the images whose predicted label is the concept; 0 if no image has this label.
    """

    concept: Concept
    images: Tensor
    predictions: Sequence[str | None]
    records: Sequence[Mapping[str, Any]]
    distance: float | None
    vendi: float | None
    distinct: float

    @property
    def correct(self) -> list[bool]:
        """For each image, whether the predicted label is the name of the concept."""
        return [prediction == self.concept.name for prediction in self.predictions]

    def row(self) -> dict[str, Any]:
        """Return the row of ``concepts.csv`` for this concept, without the name of the pipeline (arm)."""
        return {
            "concept": self.concept.name,
            "bucket": self.concept.bucket,
            "nfe": sum(record.get("nfe", 0.0) for record in self.records) / len(self.records),
            "accuracy": sum(self.correct) / len(self.correct),
            "distance": self.distance,
            "vendi": self.vendi,
            "distinct": self.distinct,
            "n": len(self.records),
        }


def evaluate_arm(context: RunContext, arm: str, classifier: Classifier) -> list[ImageGroup]:
    """Return the images and metrics of all concepts for the pipeline ``arm``."""
    units = context.units(arm)
    return [evaluate_group(concept, *units.read(concept.key), classifier) for concept in context.concepts]


def evaluate_group(
    concept: Concept, tensors: Mapping[str, Tensor], record: Mapping[str, Any], classifier: Classifier
) -> ImageGroup:
    """Compute the metrics of the images of one concept from the stored ``tensors`` and ``record`` of a pipeline."""
    images = tensors["images"]
    features, labels = classify_images(classifier, images)
    remaining = iter(labels)
    is_correct = torch.tensor([label == concept.name for label in labels], dtype=torch.bool)
    vectors = perceptual_vectors(classifier, images).double() if len(images) > 1 else None
    return ImageGroup(
        concept=concept,
        images=images,
        predictions=[next(remaining) if sample["finite"] else None for sample in record["samples"]],
        records=record["samples"],
        distance=None if vectors is None else torch.pdist(vectors).square().mean().item(),
        vendi=vendi_score(features) if len(images) else None,
        distinct=vendi_score(features[is_correct]) if is_correct.any() else 0.0,
    )


def write_report(
    run_dir: Path,
    groups: Mapping[str, Sequence[ImageGroup]],
    settings: Mapping[str, Any],
    *,
    loggers: Sequence[Logger],
    seed: int,
    step: int = 0,
) -> list[dict[str, Any]]:
    """Write tables and figures to ``run_dir`` and to the loggers; return one row of metrics per pipeline (arm).

    Args:
        groups: dict from the name of each pipeline (arm) to its images and metrics, one entry per concept. The order of
            the concepts is the same for all pipelines.
        settings: all settings on which the results depend, which are stored with the results.
        seed: random seed of the bootstrap confidence intervals.
        step: step number with which the loggers record the results.
    """
    concepts = [{"method": name} | group.row() for name, arm in groups.items() for group in arm]
    rows = [arm_row(name, [group.row() for group in arm], seed) for name, arm in groups.items()]
    pairs = pair_rows(groups, seed)
    first = next(iter(groups))
    shown = [pair for pair in pairs if pair["baseline"] == first]
    title = f"Differences (method minus {first}, 95 % interval, paired by concept):"
    report = Report(
        rows=rows,
        settings=settings,
        samples=[row for name, arm in groups.items() for group in arm for row in sample_rows(name, group)],
        tables=[Table(rows, COLUMNS), *([Table(shown, [METHOD, *PAIR_COLUMNS], title)] if shown else [])],
        figures={"figures/diversity": partial(diversity_figure, rows), **image_figures(groups)},
        notes=[NOTE],
        identity=("method",),
        values=VALUES,
        extra_sections={"pairs": pairs},
        extra_tables={"concepts": concepts, "pairs": pairs},
        details=[Table(concepts, CONCEPT_COLUMNS, "Concepts", within=["concept"])],
        thumbnails=partial(thumbnails, groups),
    )
    report.write(run_dir, loggers, step)
    return rows


def arm_row(method: str, concepts: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Return the mean over ``concepts`` of each metric, with a 95 % confidence interval.

    The confidence interval is computed by a bootstrap that resamples concepts.
    """
    row: dict[str, Any] = {"method": method, "nfe": sum(each["nfe"] for each in concepts) / len(concepts)}
    for column in VALUES:
        row |= _with_interval(column.key, [each[column.key] for each in concepts], seed)
    return row | {"n": sum(each["n"] for each in concepts), "concepts": len(concepts)}


def pair_rows(groups: Mapping[str, Sequence[ImageGroup]], seed: int) -> list[dict[str, Any]]:
    """Return the mean difference of each metric for each pair of pipelines (arms), with 95 % confidence intervals.

    A difference is the value of the pipeline ``method`` minus the value of the pipeline ``baseline``. The bootstrap of
    a confidence interval resamples the same concepts for both pipelines.
    """
    by_arm = {name: [group.row() for group in arm] for name, arm in groups.items()}
    pairs = []
    for (baseline, reference), (method, concepts) in combinations(by_arm.items(), 2):
        pair: dict[str, Any] = {"method": method, "baseline": baseline}
        for column in VALUES:
            both = [(a[column.key], b[column.key]) for a, b in zip(concepts, reference, strict=True)]
            pair |= _with_interval(column.key, [None if None in each else each[0] - each[1] for each in both], seed)
        pairs.append(pair)
    return pairs


def _with_interval(name: str, values: Sequence[float | None], seed: int) -> dict[str, float | None]:
    """Return the mean of the ``values`` that are not None and its confidence interval.

    The keys of the returned dict are ``NAME``, ``NAME_low`` and ``NAME_high``, where NAME is the argument ``name``.
    """
    available = [value for value in values if value is not None]
    if not available:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = bootstrap_interval(available, seed=seed)
    return {name: sum(available) / len(available), f"{name}_low": low, f"{name}_high": high}


def sample_rows(method: str, group: ImageGroup) -> list[dict[str, Any]]:
    """Return one row per image with the predicted label and the stored values of the image."""
    return [
        {
            "method": method,
            "sample": f"{group.concept.name}/{k}",
            "concept": group.concept.name,
            "prompt": group.concept.prompt,
            "bucket": group.concept.bucket,
            "prediction": prediction,
            "correct": correct,
            **record,
        }
        for k, (prediction, correct, record) in enumerate(
            zip(group.predictions, group.correct, group.records, strict=True)
        )
    ]


def diversity_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot accuracy against pairwise distance, and accuracy against Vendi score, with one point per pipeline (arm)."""
    figure, axes = plots.panels(2)
    styles = plots.method_styles([row["method"] for row in rows])
    for axis, column in zip(axes[0], ("distance", "vendi"), strict=True):
        for row in rows:
            if row[column] is None:
                continue
            y = 100 * row["accuracy"]
            x_error, y_error = (plots.error_bars([row], key, scale) for key, scale in ((column, 1), ("accuracy", 100)))
            style = styles[row["method"]]
            axis.errorbar(row[column], y, y_error, x_error, elinewidth=0.6, capsize=0, linestyle="none",
                          label=f"{row['method']} ({row['nfe']:.3g} NFE)", **style)  # fmt: skip
        label = next(each.label for each in VALUES if each.key == column)
        axis.set(xlabel=f"{label} (more variety: right)", ylabel="accuracy, %")
    plots.shared_legend(figure, axes[0])
    return figure


def image_figures(groups: Mapping[str, Sequence[ImageGroup]]) -> dict[str, Any]:
    """Return a dict from figure path to a function that draws the images of one concept for all pipelines (arms)."""
    concepts = [group.concept for group in next(iter(groups.values()))][:MAX_FIGURES]
    return {f"images/{concept.name}": partial(concept_figure, groups, k) for k, concept in enumerate(concepts)}


def concept_figure(groups: Mapping[str, Sequence[ImageGroup]], index: int) -> Figure:
    """Draw the images of the concept ``index``, with one row per pipeline (arm).

    The caption of an image is its predicted label if the label is wrong.
    """
    rows = []
    captions = []
    for name, arm in groups.items():
        group = arm[index]
        images = iter(group.images)
        rows.append((name, [None if label is None else next(images) for label in group.predictions]))
        captions.append(
            ["" if right else label or "" for label, right in zip(group.predictions, group.correct, strict=True)]
        )
    heads = [str(k + 1) for k in range(len(rows[0][1]))]
    return plots.image_grid(rows, heads, f"{groups[name][index].concept.name}: the images of each method", captions)


def thumbnails(groups: Mapping[str, Sequence[ImageGroup]]) -> list[Thumbnails]:
    """Return the images of each pipeline (arm) for the HTML report, ordered by concept, with wrong predicted labels."""
    shown = []
    for name, arm in groups.items():
        images = []
        for group in arm:
            labels = [label for label in group.predictions if label is not None]
            for image, label in zip(group.images, labels, strict=True):
                wrong = "" if label == group.concept.name else f", predicted {label}"
                images.append(([image], f"{group.concept.name}{wrong}"))
        shown.append(Thumbnails(f"{name}: images", images[:MAX_THUMBNAILS]))
    return shown
