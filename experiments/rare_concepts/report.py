"""Report of the rare-concepts experiment: table, figures and one row per sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from torch import Tensor

from experiments.evaluation.copy_detector import DISTANCES, ImageScore
from experiments.evaluation.registry import RARE_CONCEPTS
from experiments.rare_concepts.arms_experiment import REAL
from experiments.rare_concepts.scoring import (
    ClassifiedImages,
    accuracy_rows,
    aggregate_metrics,
    lost_samples,
    paired_differences,
)
from experiments.reporting import figures as plots
from experiments.reporting import tables
from experiments.reporting.html_report import MAX_THUMBNAILS, Thumbnails
from experiments.reporting.results import Report
from experiments.reporting.tables import Column, Table

PAPER = (  # Table 3 of arXiv 2312.12540: ImageNet-1k, Stable Diffusion 2.1, concepts grouped by counts in LAION-2B
    {"method": "paper: NAO + SeedSelect, DDIM", "head": 0.985, "medium": 0.969, "tail": 0.851, "total": 0.943},
    {"method": "paper: NAO + SeedSelect, AIDI", "head": 0.985, "medium": 0.970, "tail": 0.853, "total": 0.944},
    {"method": "paper: NAO + SeedSelect, RNRI", "head": 0.986, "medium": 0.979, "tail": 0.891, "total": 0.958},
)  # fmt: skip
RIGHT_NEW = Column("right_new", "right & new, %", "higher", scale=100)
ACCURACY = Column("accuracy", "accuracy, %", "higher", scale=100)
SECOND_ACCURACY = Column("accuracy_second", "second network, %", "higher", scale=100)
SECOND_RIGHT_NEW = Column("right_new_second", "right & new, second network, %", "higher", scale=100)
METHOD = Column("method", "method")
CONCEPT_COLUMNS = (
    METHOD, Column("concept", "concept"), Column("bucket", "bucket"), Column("frequency", "captions"), RIGHT_NEW,
    Column("copies", "copies, %", "lower", scale=100), ACCURACY,
)  # fmt: skip
COUNT = Column("n", "n")
HEADLINE_NOTE = (
    "Right & new: the classifier names the concept, and the image is not a copy of a reference image. The row 'real' "
    "has the scores of the reference images. Rows that start with 'paper:' are results that the paper reports for its "
    "own model and data."
)
PAIRS_TITLE = "Differences of total accuracy in percentage points (95 % interval, paired by concept):"
MAX_CONCEPTS = 10  # maximum number of concepts whose images one figure shows


@dataclass(frozen=True)
class RealScores:
    """The real images that generated images are compared with.

    Attributes:
        references: the reference images, classified and scored as if they were generated images.
        features: features of N real images for FID and KID, ``float64 [N, D]``.
    """

    references: ClassifiedImages
    features: Tensor

    def rows(self, method: str, images: ClassifiedImages, seed: int) -> list[dict[str, Any]]:
        """Return the results of a method: one row per bucket (group of concepts), and one row for all images.

        Only the row for all images, which is the last row, contains all metrics.
        """
        rows = accuracy_rows(method, images, seed, self.references)
        rows[-1] |= aggregate_metrics(images, self.features, self.references)
        return rows

    def total(self, seed: int) -> dict[str, Any]:
        """Return the row ``real`` of the results, which contains the metrics of all reference images."""
        return self.rows(REAL, self.references, seed)[-1]


def write_report(
    run_dir: Path,
    arms: Mapping[str, ClassifiedImages],
    real: RealScores,
    settings: Mapping[str, Any],
    *,
    loggers: Sequence[Logger],
    seed: int,
    step: int = 0,
) -> list[dict]:
    """Write results, table, sample rows and figures to ``run_dir`` and the loggers; return the rows of the results.

    Args:
        run_dir: folder of the run.
        arms: dict from the name of each arm (pipeline) to its classified images.
        real: the real images that generated images are compared with.
        settings: the settings on which the results depend.
        loggers: loggers of the run.
        seed: random seed of the bootstrap.
        step: step number under which the loggers record the results.
    """
    arm_rows = [row for name, images in arms.items() for row in real.rows(name, images, seed)]
    real_rows = real.rows(REAL, real.references, seed)
    rows = arm_rows + real_rows
    pairs = paired_differences(arms, seed)
    concepts = concept_rows(arms)
    report = Report(
        rows=rows,
        settings=settings,
        samples=[row for name, images in arms.items() for row in sample_rows(name, images)],
        tables=[headline_table(arm_rows, real_rows), accuracy_table(arm_rows, real_rows), *pair_tables(pairs)],
        figures={"figures/accuracy": partial(plots.accuracy_figure, arm_rows), **image_figures(arms)},
        notes=[HEADLINE_NOTE, real_note(real_rows), counts_note(arm_rows), lost_samples(arms)],
        values=[RIGHT_NEW, ACCURACY, *second_columns(rows), *RARE_CONCEPTS.columns()],
        bounds=[REAL],
        extra_sections={"pairs": pairs},
        extra_tables={"concepts": concepts, "pairs": pairs},
        details=[*second_tables(arm_rows, real_rows), concept_table(concepts)],
        thumbnails=partial(thumbnails, arms),
    )
    report.write(run_dir, loggers, step)
    return rows


def headline_table(arm_rows: Sequence[Mapping], real_rows: Sequence[Mapping]) -> Table:
    """Return the table of the results over all images, with the results of the real images as the last row."""
    columns = [METHOD, RIGHT_NEW, ACCURACY, *second_columns(arm_rows), *RARE_CONCEPTS.columns()]
    totals, real = ([row for row in rows if row["bucket"] == "total"] for rows in (arm_rows, real_rows))
    return Table(totals, columns, references=real)


def second_columns(rows: Sequence[Mapping]) -> list[Column]:
    """Return the column for the accuracy of the second classifier, or no column if there is no second classifier."""
    return [SECOND_ACCURACY] if any("accuracy_second" in row for row in rows) else []


def second_tables(arm_rows: Sequence[Mapping], real_rows: Sequence[Mapping]) -> list[Table]:
    """Return a table of the results by the second classifier, or no table if there is no second classifier."""
    if not second_columns(arm_rows):
        return []
    buckets = dict.fromkeys(row["bucket"] for row in arm_rows)
    rows, real = (pivoted(group, ("method",), "accuracy_second") for group in (arm_rows, real_rows))
    columns = [METHOD, SECOND_RIGHT_NEW, *map(bucket_column, buckets)]
    return [Table(rows, columns, "Second network: right & new, and accuracy per group of concepts:", references=real)]


def concept_table(concepts: Sequence[Mapping]) -> Table:
    """Return the table with one row per method and concept (:func:`concept_rows`)."""
    return Table(concepts, [*CONCEPT_COLUMNS, *second_columns(concepts), COUNT], "Concepts", within=["concept"])


def accuracy_table(arm_rows: Sequence[Mapping], real_rows: Sequence[Mapping]) -> Table:
    """Return the table of the accuracy in each bucket (group of concepts of similar frequency)."""
    buckets = dict.fromkeys(row["bucket"] for row in arm_rows)
    columns = [METHOD, *map(bucket_column, buckets)]
    references = [*pivoted(real_rows, ("method",)), *PAPER]
    return Table(pivoted(arm_rows, ("method",)), columns, "Accuracy per group of concepts:", references=references)


def bucket_column(bucket: str) -> Column:
    """Return the table column for the accuracy in a bucket (group of concepts); ``total`` means all concepts."""
    return Column(bucket, f"{bucket}, %", "higher", scale=100)


def pivoted(rows: Sequence[Mapping], identity: Sequence[str], value: str = "accuracy") -> list[dict[str, Any]]:
    """Join the rows of each method, one per bucket (group of concepts), into one row per method.

    The joined row has the values of the row ``total``, and the accuracy of each bucket in the column ``BUCKET``, where
    BUCKET is the name of the bucket. The columns ``BUCKET_low`` and ``BUCKET_high`` contain the ends of the 95 %
    confidence interval of the accuracy.

    Args:
        rows: rows with the columns ``bucket``, ``VALUE``, ``VALUE_low`` and ``VALUE_high``, where VALUE is ``value``.
        identity: columns that identify a method.
        value: name of the column of the accuracy; ``accuracy_second`` is the accuracy of the second classifier.
    """
    lines: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(tuple(row[name] for name in identity), {})
        line |= {f"{row['bucket']}{end}": row[f"{value}{end}"] for end in ("", "_low", "_high")}
        if row["bucket"] == "total":
            line |= row
    return list(lines.values())


def counts_note(rows: Sequence[Mapping]) -> str:
    """Return a note on the numbers of images, the accuracy on reference images and the features of FID and KID."""
    total = next(row for row in rows if row.get("bucket", "total") == "total")
    return (
        f"Per method: {total['n']} images of {total['concepts']} concepts; the classifier labels "
        f"{100 * total['ceiling']:.1f} % of the reference images correctly. FID and KID (in table.csv) use features of "
        f"{total['extractor']}, and {total['n_real']} real images."
    )


def real_note(real_rows: Sequence[Mapping]) -> str:
    """Return a note on the share of real images that are falsely detected as copies, if copies are detected."""
    total = next(row for row in real_rows if row.get("bucket", "total") == "total")
    if total.get("copies") is None:
        return "Copies are not detected, because there are too few real images."
    if not total["copies"]:
        return f"None of the {total['n']} real images counts as a copy of another real image."
    return (
        f"{100 * total['copies']:.1f} % of the {total['n']} real images count as copies of other real images, although "
        "they are not."
    )


def pair_tables(pairs: Sequence[Mapping]) -> list[Table]:
    """Return the table of the differences in accuracy, or no table if there is only one method."""
    return [pair_table(pairs)] if pairs else []


def pair_table(pairs: Sequence[Mapping]) -> Table:
    """Return a table of the differences in accuracy over all concepts, with one row per method.

    The table has one column per baseline, which contains the accuracy of the row's method minus the accuracy of the
    baseline. Baselines beyond the maximum number of columns are omitted.
    """
    lines: dict[str, dict] = {}
    for pair in pairs:
        if pair["bucket"] == "total":
            line = lines.setdefault(pair["method"], {"method": pair["method"]})
            line |= {f"{pair['baseline']}{end}": pair[f"difference{end}"] for end in ("", "_low", "_high")}
    baselines = list(dict.fromkeys(pair["baseline"] for pair in pairs))[: tables.MAX_COLUMNS - 1]
    columns = [Column(baseline, f"minus {baseline}", scale=100, signed=True) for baseline in baselines]
    return Table(list(lines.values()), [METHOD, *columns], PAIRS_TITLE)


def thumbnails(arms: Mapping[str, ClassifiedImages]) -> list[Thumbnails]:
    """Return the images of the HTML report, grouped by method and result.

    The results are: right and new, right but a copy, and wrong. An image counts as new if it is not known whether it is
    a copy. A group contains images of as many concepts as possible, beginning with the least frequent concepts.
    """
    groups = []
    for name, images in arms.items():
        members: dict[str, list[int]] = {"right and new": [], "right, but a copy": [], "wrong": []}
        for k, (correct, copy) in enumerate(zip(images.correct, images.copies, strict=True)):
            heading = "wrong" if not correct else "right, but a copy" if copy else "right and new"
            members[heading].append(k)
        for heading, indices in members.items():
            chosen = _spread_over_concepts(images, indices)
            if chosen:
                title = f"{name}: {len(chosen)} of {len(indices)} images that are {heading}"
                groups.append(Thumbnails(title, [_thumbnail(images, k) for k in chosen]))
    return groups


def _spread_over_concepts(images: ClassifiedImages, indices: Sequence[int]) -> list[int]:
    """Select at most ``MAX_THUMBNAILS`` samples of as many concepts as possible; return their indices.

    Samples with NaN or infinite pixels are not selected.
    """
    seen: Counter[str] = Counter()
    candidates = []
    for k in indices:
        concept = images.concepts[k]
        if images.records[k]["finite"]:
            candidates.append((seen[concept.name], concept.frequency, k))
            seen[concept.name] += 1
    return [k for _, _, k in sorted(candidates)[:MAX_THUMBNAILS]]


def _thumbnail(images: ClassifiedImages, k: int) -> tuple[list[Any], str]:
    """Return the image of sample ``k`` and a caption: concept, label if the label is wrong, and "(copy)" for a copy."""
    concept = images.concepts[k]
    sample = k % (len(images.concepts) // len(images.t_init))
    caption = concept.name if images.correct[k] else f"{concept.name}, predicted {images.predictions[k]}"
    return [images.images(concept)[sample]], f"{caption} (copy)" if images.copies[k] else caption


def concept_rows(arms: Mapping[str, ClassifiedImages]) -> list[dict]:
    """Return one row of results per method and concept."""
    rows = []
    for method, images in arms.items():
        samples = len(images.concepts) // len(images.t_init)
        for k, concept in enumerate(images.concepts[::samples]):
            part = slice(k * samples, (k + 1) * samples)
            copies = [copy for copy in images.copies[part] if copy is not None]
            right_new = [value for value in images.right_new[part] if value is not None]
            rows.append(
                {"method": method, "concept": concept.name, "bucket": concept.bucket, "frequency": concept.frequency,
                 "right_new": sum(right_new) / len(right_new) if right_new else None,
                 "accuracy": sum(images.correct[part]) / samples,
                 **_second_accuracy(images, part),
                 "copies": sum(copies) / len(copies) if copies else None,
                 "n": samples, "t_init": images.t_init[k], "t_opt": images.t_opt[k]}
            )  # fmt: skip
    return rows


def sample_rows(method: str, images: ClassifiedImages) -> list[dict]:
    """Return one row per generated image (sample) of a method, with the predicted label and durations in seconds."""
    samples = len(images.concepts) // len(images.t_init)
    return [
        {
            "method": method, "sample": f"{concept.name}/{k % samples}", "concept": concept.name,
            "prompt": concept.prompt, "bucket": concept.bucket, "frequency": concept.frequency,
            "prediction": images.predictions[k], "correct": images.correct[k], "copy": images.copies[k],
            "right_new": images.right_new[k], **_second_prediction(images, k), **_scores(images, k),
            "t_init": images.t_init[k // samples], "t_opt": images.t_opt[k // samples],
            **images.records[k],
        }
        for k, concept in enumerate(images.concepts)
    ]  # fmt: skip


def _second_accuracy(images: ClassifiedImages, part: slice) -> dict[str, Any]:
    """Return a dict with the accuracy of the second classifier on the samples in the slice ``part``.

    The dict is empty if there is no second classifier.
    """
    if images.second_correct is None:
        return {}
    correct = images.second_correct[part]
    return {"accuracy_second": sum(correct) / len(correct)}


def _second_prediction(images: ClassifiedImages, k: int) -> dict[str, Any]:
    """Return a dict with the prediction of the second classifier for sample ``k``, and whether it is correct.

    The dict is empty if there is no second classifier.
    """
    if images.second_predictions is None or images.second_correct is None:
        return {}
    return {"prediction_second": images.second_predictions[k], "correct_second": images.second_correct[k]}


def _scores(images: ClassifiedImages, k: int) -> dict[str, Any]:
    """Return table columns with the scores that compare sample ``k`` with real images.

    The columns also contain the thresholds of the distances below which the sample counts as a copy.
    """
    score = images.scores[k] or ImageScore()
    unknown = (None,) * len(DISTANCES)
    distances = zip(DISTANCES, score.distances or unknown, images.thresholds[k] or unknown, strict=True)
    columns: dict[str, Any] = {"authentic": score.authentic, "m_cp": score.m_cp}
    for name, distance, threshold in distances:
        columns |= {f"distance_{name}": distance, f"threshold_{name}": threshold}
    return columns


def image_figures(arms: Mapping[str, ClassifiedImages]) -> dict[str, Callable[[], Figure]]:
    """Return a dict from figure path to a function that draws the images of one bucket (group of concepts).

    :func:`side_by_side` draws the figure.
    """
    buckets = dict.fromkeys(concept.bucket for images in arms.values() for concept in images.concepts)
    return {f"images/{bucket}": partial(side_by_side, arms, bucket) for bucket in buckets}


def side_by_side(arms: Mapping[str, ClassifiedImages], bucket: str) -> Figure:
    """Draw a reference image and the first sample of every arm (pipeline) for each concept in ``bucket``.

    A bucket is a group of concepts of similar frequency. At most ``MAX_CONCEPTS`` concepts are drawn. The caption of a
    sample contains the classifier's prediction.
    """
    concepts = {concept.name: concept for concept in next(iter(arms.values())).concepts if concept.bucket == bucket}
    rows = []
    captions = []
    for name, concept in list(concepts.items())[:MAX_CONCEPTS]:
        samples = [images.images(concept)[0] for images in arms.values()]
        rows.append((f"{name}\n({concept.frequency} captions)", [concept.references[0], *samples]))
        captions.append(["", *(_caption(images, name) for images in arms.values())])
    title = f"{bucket}: a reference and the first sample of each method"
    return plots.image_grid(rows, ["reference", *arms], title, captions)


def _caption(images: ClassifiedImages, name: str) -> str:
    """Return the predicted label of the first sample of concept ``name``, and whether the sample is a copy."""
    k = next(k for k, concept in enumerate(images.concepts) if concept.name == name)
    label = "right" if images.correct[k] else images.predictions[k] or ""
    return f"{label}, a copy" if images.copies[k] else label
