"""Experiments with the interpolation and the centroids of seeds (Table 2 of the RNRI paper).

The experiments combine every inversion method with every operation on seeds, such as linear interpolation. For each
combination:

1. The reference images of a concept are inverted to seeds (initial latents) with the concept's prompt.
2. The operation computes new seeds from the inverted seeds. An interpolation returns the inner points of a path between
   the first two seeds; a centroid is a kind of average of all seeds.
3. An image is sampled from each new seed, with the prompt, schedule and guidance scale of the inversion.
4. The evaluation classifier labels the sampled images, and FID and KID compare all sampled images with real images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import MinLen
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from torch import Tensor

from experiments.data.concepts import Concept
from experiments.evaluation.registry import GEOMETRY, RARE_CONCEPTS
from experiments.rare_concepts.arm import Arm
from experiments.rare_concepts.arms_experiment import REAL, ArmsExperiment, ExperimentStage
from experiments.rare_concepts.image_stage import ImageStage
from experiments.rare_concepts.report import (
    ACCURACY,
    HEADLINE_NOTE,
    METHOD,
    RIGHT_NEW,
    RealScores,
    bucket_column,
    concept_rows,
    concept_table,
    counts_note,
    pivoted,
    real_note,
    sample_rows,
    second_columns,
    thumbnails,
)
from experiments.rare_concepts.scoring import ClassifiedImages, lost_samples
from experiments.reporting import figures as plots
from experiments.reporting.results import Report
from experiments.reporting.tables import Column, Table
from nao import typical_norm
from rnri import Inverter
from rnri.validation import ConfigError, GuidanceScale, dataclass

IDENTITY = ("inversion", "method", "bucket")
"""Names of the columns whose values together identify a row of the results table."""
MAX_FIGURES = 3  # maximum number of concepts whose images are drawn, each in its own figure
MAX_FILE_NAME = 100  # maximum length of a figure's file name, in characters


def cell_key(cells: Mapping[str, tuple[str, str]], arm: str, bucket: str) -> dict[str, Any]:
    """Return the columns that identify the table row of an arm (pipeline) and a bucket (group of concepts).

    Args:
        cells: dict from the name of each arm to its inversion method and its operation on seeds.
        arm: name of the arm.
        bucket: name of the bucket.
    """
    inversion, operation = cells[arm]
    return {"inversion": inversion, "method": operation, "bucket": bucket}


@dataclass(kw_only=True)
class SeedGeometryExperiment(ArmsExperiment):
    """The task of ``experiment=interpolation`` and ``experiment=centroids``.

    Args:
        inversions: dict from names to the compared inversion methods.
        operations: dict from names to functions that compute new seeds from the inverted seeds of a concept
            (:mod:`nao.seeds`).
        guidance: guidance scale of inversion and sampling.
        paper: rows of Table 2 of the RNRI paper, which the report shows below the rows of this experiment.
    """

    arms: Mapping[str, Arm] = field(init=False)
    inversions: Annotated[Mapping[str, Inverter], MinLen(1)]
    operations: Annotated[Mapping[str, Callable[[Tensor, int], Tensor]], MinLen(1)]
    guidance: GuidanceScale
    paper: Sequence[Mapping[str, Any]]

    def __post_init__(self) -> None:
        self.arms = {name: self._arm(*cell) for name, cell in self._cells().items()}

    def _cells(self) -> dict[str, tuple[str, str]]:
        """Return a dict from the name of each arm (pipeline) to its inversion method and its operation on seeds."""
        return {
            f"{inversion}, {name}": (inversion, name) for inversion, name in product(self.inversions, self.operations)
        }

    def _arm(self, inversion: str, operation: str) -> Arm:
        try:
            return Arm(self.guidance, self.inversions[inversion], self.operations[operation])
        except ConfigError as error:
            raise ConfigError(f"inversions.{inversion}", error.message) from None

    def stages(self) -> list[ExperimentStage]:
        return [ImageStage(self.context, partial(cell_key, self._cells()), IDENTITY)]

    def report(self, loggers: Sequence[Logger]) -> float:
        """Write the results; return the accuracy of the last combination of inversion method and operation."""
        arms = self.evaluator.arms()
        norms = {name: self._norms(name) for name in arms}
        evaluator = self.evaluator
        real = RealScores(evaluator.real_row, evaluator.real_features())
        rows = self._rows(arms, norms, real)
        real_row = real.total(self.seed) | {"inversion": "", "method": REAL}
        paper = [{**row, "total": row["total"] / 100} for row in self.paper]
        first = [Column("inversion", "inversion"), METHOD, bucket_column("total")]
        norm = Column("norm", "norm / typical norm")
        table = Table(
            pivoted(rows, ("inversion", "method")),
            [*first, RIGHT_NEW, *second_columns(rows), *RARE_CONCEPTS.columns(GEOMETRY), norm],
            references=[real_row | {"total": real_row["accuracy"]}, *paper],
        )
        figures = {"figures/norms": partial(norm_figure, norms)}
        for concept in self.context.concepts[:MAX_FIGURES]:
            file_name = re.sub(r"[^\w.]+", "_", concept.name)[:MAX_FILE_NAME]
            figures[f"images/{file_name}"] = partial(self._image_figure, arms, concept)
        report = Report(
            rows=[*rows, real_row],
            settings=self.context.settings() | {"guidance": self.guidance},
            samples=[row for name, images in arms.items() for row in sample_rows(name, images)],
            tables=[table],
            figures=figures,
            notes=[HEADLINE_NOTE, real_note([real_row]), counts_note(rows), lost_samples(arms)],
            identity=IDENTITY,
            bounds=[REAL],
            values=[RIGHT_NEW, ACCURACY, *second_columns(rows), *RARE_CONCEPTS.columns(GEOMETRY), norm],
            extra_tables={"concepts": concept_rows(arms)},
            details=[concept_table(concept_rows(arms))],
            thumbnails=partial(thumbnails, arms),
        )
        report.write(self.run_dir, loggers, step=self.num_units)
        return rows[-1]["accuracy"]

    def _rows(self, arms: Mapping[str, ClassifiedImages], norms: Mapping[str, Tensor], real: RealScores) -> list[dict]:
        """Return the results, one row per inversion method, operation on seeds, and bucket (group of concepts)."""
        rows = []
        for name, (inversion, operation) in self._cells().items():
            cell = {"inversion": inversion, "method": operation}
            buckets = [row | cell for row in real.rows(name, arms[name], self.seed)]
            buckets[-1] |= {"norm": norms[name].nanmean().item()}
            rows += buckets
        return rows

    def _norms(self, arm: str) -> Tensor:
        """Return the norm of each seed, divided by the typical norm of Gaussian noise, ``float64 [concepts, samples]``.

        The value of a sample with NaN or infinite pixels is NaN.
        """
        units = self.context.units(arm)
        seeds = torch.stack([units.read(concept.key)[0]["seeds"] for concept in self.context.concepts]).double()
        return seeds.flatten(2).norm(dim=2) / typical_norm(seeds[0, 0].numel())

    def _image_figure(self, arms: Mapping[str, ClassifiedImages], concept: Concept) -> Figure:
        """Draw the images of a concept.

        In the experiment on interpolation, a row of the figure shows the images of one path between two seeds. In the
        experiment on centroids, a row shows the images of one inversion method.
        """
        references = list(concept.references[: self.references])
        samples = {name: images.images(concept) for name, images in arms.items()}
        if self.samples > 1:
            rows = [(name, [*references[:1], *path, *references[1:2]]) for name, path in samples.items()]
            return plots.image_grid(rows, ["reference", *[""] * self.samples, "reference"], concept.prompt)
        rows = [
            (inversion, references + [samples[f"{inversion}, {operation}"][0] for operation in self.operations])
            for inversion in self.inversions
        ]
        columns = ["reference", *[""] * (len(references) - 1), *self.operations]
        return plots.image_grid(rows, columns, concept.prompt)


def norm_figure(norms: Mapping[str, Tensor]) -> Figure:
    """Plot the mean, 5th and 95th percentile of the norms of the seeds of each arm (pipeline).

    The norms are divided by the typical norm of Gaussian noise.
    """
    figure, axis = plots.panel(6.4, 3.4)
    for k, (name, all_norms) in enumerate(norms.items()):
        values = all_norms[all_norms.isfinite().all(1)]
        if not len(values):
            continue
        mean = values.mean(0).numpy()
        low, high = np.percentile(values.numpy(), [5, 95], axis=0)
        below = mean - np.minimum(low, mean)  # the minimum is necessary, because outliers can move the mean below `low`
        above = np.maximum(high, mean) - mean
        offset = (k / len(norms) - 0.5) * 0.5
        points = np.arange(1, values.shape[1] + 1) + offset
        axis.errorbar(points, mean, [below, above], marker="o", markersize=3, linewidth=1, capsize=0, label=name)
    axis.axhline(1, color="black", linestyle="--", linewidth=1)
    axis.set(xlabel="point of the path", ylabel="norm / typical norm")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
