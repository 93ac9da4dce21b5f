"""Report of the rare-concepts experiment: table, figures and one row per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from torch import Tensor

from experiments.evaluation.registry import RARE_CONCEPTS
from experiments.rare_concepts.scoring import (
    ClassifiedImages,
    accuracy_rows,
    aggregate_metrics,
    lost_samples,
    paired_differences,
)
from experiments.reporting import figures as plots
from experiments.reporting import tables
from experiments.reporting.results import Report

PAPER = (  # Table 3 of arXiv 2312.12540: ImageNet-1k on Stable Diffusion 2.1, buckets by LAION-2B counts
    {"method": "paper: NAO + SeedSelect, DDIM", "head": 98.5, "medium": 96.9, "tail": 85.1, "total": 94.3, "fid": 6.4,
     "t_init": 25.0, "t_opt": 29.0},
    {"method": "paper: NAO + SeedSelect, AIDI", "head": 98.5, "medium": 97.0, "tail": 85.3, "total": 94.4, "fid": 6.9,
     "t_init": 24.0, "t_opt": 28.0},
    {"method": "paper: NAO + SeedSelect, RNRI", "head": 98.6, "medium": 97.9, "tail": 89.1, "total": 95.8, "fid": 6.3,
     "t_init": 17.0, "t_opt": 25.0},
)  # fmt: skip
ACCURACY_COLUMNS = {
    "head": "head, %", "medium": "medium, %", "tail": "tail, %", "total": "total, %",
    "ceiling": "classifier ceiling, %",
}  # fmt: skip
COUNT_COLUMNS = {"n": "n", "n_real": "real images", "extractor": "features"}
PAIRS_TITLE = "Differences of total accuracy in percentage points (95 % interval, paired by concept):"
MAX_CONCEPTS = 10  # maximum number of concepts in a figure of images


def write_report(
    run_dir: Path,
    arms: Mapping[str, ClassifiedImages],
    real: Tensor,
    settings: Mapping[str, Any],
    *,
    loggers: Sequence[Logger],
    seed: int,
    ceiling: Mapping[str, float] | None = None,
    step: int = 0,
) -> list[dict]:
    """Write results, table, sample rows and figures to ``run_dir`` and the loggers; return the rows of the results.

    Args:
        arms: classified images of each arm, by the name of the arm.
        real: features of N real images for FID and KID, ``float64 [N, D]``.
        settings: the settings on which the results depend.
        seed: random seed of the bootstrap.
        ceiling: accuracy of the classifier on the reference images by bucket
            (:func:`~experiments.rare_concepts.scoring.classifier_ceiling`).
        step: step number with which the loggers record the results, equal to the number of units.
    """
    rows: list[dict] = []
    for name, images in arms.items():
        arm_rows = accuracy_rows(name, images, seed, ceiling)
        arm_rows[-1] |= aggregate_metrics(images, real)
        rows += arm_rows
    pairs = paired_differences(arms, seed)
    table = tables.markdown_table([*_row_per_method(rows), *PAPER], columns())
    if pairs:
        table += f"\n{PAIRS_TITLE}\n\n{pair_table(pairs)}"
    if lost := lost_samples(arms):
        table += f"\n{lost}"
    figures = {"figures/accuracy": partial(plots.accuracy_figure, rows), **image_figures(arms)}
    report = Report(
        rows=rows,
        settings=settings,
        samples=[row for name, images in arms.items() for row in sample_rows(name, images)],
        table=table,
        figures=figures,
        extra_sections={"pairs": pairs},
        extra_tables={"concepts": concept_rows(arms), "pairs": pairs},
    )
    report.write(run_dir, loggers, step)
    return rows


def columns() -> dict[str, str]:
    """Return a dictionary from the key of each table column to the heading of the column."""
    return {"method": "method", **ACCURACY_COLUMNS, **RARE_CONCEPTS.columns(), **COUNT_COLUMNS}


def _row_per_method(rows: Sequence[Mapping]) -> list[dict]:
    """Return one row per method, with the accuracy in percent and its confidence interval for each bucket."""
    lines: dict[str, dict] = {}
    for row in rows:
        line = lines.setdefault(row["method"], {"method": row["method"]})
        line[row["bucket"]] = tables.percent(row, "accuracy")
        line |= {name: row[name] for name in columns() if name in row and name != "method"}
        line |= percent_cells(row)
    return list(lines.values())


def percent_cells(row: Mapping) -> dict[str, float | None]:
    """Return those values of ``row`` that are fractions and that the table shows in percent, converted to percent."""
    ceiling = {} if row.get("ceiling") is None else {"ceiling": 100 * row["ceiling"]}
    return ceiling | RARE_CONCEPTS.scaled(row)


def pair_table(pairs: Sequence[Mapping]) -> str:
    """Return a table of differences in total accuracy, with one line per method and one column per baseline method."""
    lines: dict[str, dict] = {}
    for pair in pairs:
        if pair["bucket"] == "total":
            line = lines.setdefault(pair["method"], {"method": pair["method"]})
            line[pair["baseline"]] = tables.percentage_points(pair, "difference", digits=1)
    columns = {"method": "method"} | {pair["baseline"]: f"minus {pair['baseline']}" for pair in pairs}
    return tables.markdown_table(list(lines.values()), columns)


def concept_rows(arms: Mapping[str, ClassifiedImages]) -> list[dict]:
    """Return one row of results per method and concept, for loggers that can filter tables."""
    rows = []
    for method, images in arms.items():
        samples = len(images.concepts) // len(images.t_init)
        for k, concept in enumerate(images.concepts[::samples]):
            correct = images.correct[k * samples : (k + 1) * samples]
            rows.append(
                {"method": method, "concept": concept.name, "bucket": concept.bucket, "frequency": concept.frequency,
                 "accuracy": sum(correct) / samples, "n": samples, "t_init": images.t_init[k],
                 "t_opt": images.t_opt[k]}
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
            "t_init": images.t_init[k // samples], "t_opt": images.t_opt[k // samples],
            **images.records[k],
        }
        for k, concept in enumerate(images.concepts)
    ]  # fmt: skip


def image_figures(arms: Mapping[str, ClassifiedImages]) -> dict[str, Callable[[], Figure]]:
    """Return, for each bucket, a function that draws the :func:`side_by_side` figure.

    The keys are paths of the figures.
    """
    buckets = dict.fromkeys(concept.bucket for images in arms.values() for concept in images.concepts)
    return {f"images/{bucket}": partial(side_by_side, arms, bucket) for bucket in buckets}


def side_by_side(arms: Mapping[str, ClassifiedImages], bucket: str) -> Figure:
    """Draw a reference image and the first sample of every arm for each concept, with the classifier's prediction."""
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
    """Return a caption: the predicted label of a concept's first sample, and whether the sample copies a reference."""
    k = next(k for k, concept in enumerate(images.concepts) if concept.name == name)
    label = "right" if images.correct[k] else images.predictions[k] or ""
    return f"{label}, a copy" if images.copies[k] else label
