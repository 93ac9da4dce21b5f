"""Interpolation and centroids of seeds, Table 2 of the paper: inversion methods times ways through seed space.

The protocol, the same for every cell of the table: the references of a concept are inverted under its prompt; for
interpolation the inner points of the path between the first two, for centroids the one average of all; each seed is
sampled under the same prompt, schedule and guidance as the inversion; a classifier names the image, and all images of
a cell are compared with the real ones by FID and KID.
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
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from experiments.data.concepts import Concept
from experiments.rare_concepts.report import sample_rows, percent_cells
from experiments.rare_concepts.scoring import ClassifiedImages, accuracy_rows, aggregate_metrics, lost_samples
from experiments.rare_concepts.task import Arm, RareConceptsExperiment
from experiments.reporting import tables
from nao import typical_norm
from rnri import Inverter
from rnri.validation import ConfigError, GuidanceScale, dataclass

COLUMNS = {
    "inversion": "inversion", "method": "method", "head": "head, %", "medium": "medium, %", "tail": "tail, %",
    "total": "total, %", "ceiling": "ceiling, %", "fid": "FID", "kid": "KID", "copies": "copies, %", "norm": "norm",
    "n": "n", "n_real": "real images", "extractor": "features",
}  # fmt: skip
PICTURED = 3  # concepts whose images are shown


@dataclass(kw_only=True)
class SeedGeometryExperiment(RareConceptsExperiment):
    """The task behind ``experiment=interpolation`` and ``experiment=centroids``.

    Args:
        inversions: inversion methods, by name.
        ways: makes the seeds to sample of a concept's inverted ones, by name (:mod:`nao.seeds`).
        guidance: of inversion and sampling alike.
        paper: rows of the paper's table, shown below ours.
    """

    arms: Mapping[str, Arm] = field(init=False)
    inversions: Annotated[Mapping[str, Inverter], MinLen(1)]
    operations: Annotated[Mapping[str, Callable[[Tensor, int], Tensor]], MinLen(1)]
    guidance: GuidanceScale
    paper: Sequence[Mapping[str, Any]]
    identity = ("inversion", "method", "bucket")

    def __post_init__(self) -> None:
        self.arms = {
            f"{inversion}, {operation}": self._arm(inversion, operation) for inversion, operation in product(self.inversions, self.operations)
        }

    def _arm(self, inversion: str, operation: str) -> Arm:
        try:
            return Arm(self.guidance, self.inversions[inversion], self.operations[operation])
        except ConfigError as error:
            raise ConfigError(f"inversions.{inversion}", error.message) from None

    def row_of(self, arm: str, bucket: str) -> dict[str, Any] | None:
        inversion, operation = dict(zip(self.arms, product(self.inversions, self.operations), strict=True))[arm]
        return {"inversion": inversion, "method": operation, "bucket": bucket}

    def report(self, loggers: Sequence[Logger]) -> float:
        """Judges every image and writes the results; returns the last cell's accuracy."""
        judged = {name: self._judge(name, arm) for name, arm in self.arms.items()}
        norms = {name: self._norms(name, arm) for name, arm in self.arms.items()}
        rows, buckets = self._rows(judged, norms, self._judge_real())
        table = tables.markdown_table([*buckets, *self.paper], COLUMNS)
        if lost := lost_samples(judged):
            table += f"\n{lost}"
        pictures = {"figures/norms": partial(norm_figure, norms)}
        for concept in self.chosen[:PICTURED]:
            file = re.sub(r"[^\w.]+", "_", concept.name)[:100]
            pictures[f"images/{file}"] = partial(self._pictures, judged, concept)
        tables.write_report(
            self.run_dir, rows, self.dependencies() | {"guidance": self.guidance}, table=table, pictures=pictures,
            loggers=loggers, identity=self.identity, step=self.all_units,
            samples=[row for name, images in judged.items() for row in sample_rows(name, images)],
        )  # fmt: skip
        return rows[-1]["accuracy"]

    def _rows(
        self, judged: Mapping[str, ClassifiedImages], norms: Mapping[str, Tensor], real: Tensor
    ) -> tuple[list[dict], list[dict]]:
        """The results' rows, one a cell and bucket, and the table's, one a cell."""
        rows, lines, ceiling = [], [], self.ceilings()
        for (name, images), (inversion, operation) in zip(judged.items(), product(self.inversions, self.operations), strict=True):
            found = accuracy_rows(name, images, self.seed, ceiling)
            own = [row | {"inversion": inversion, "method": operation} for row in found]
            aggregate_metrics(own[-1], images, real)
            own[-1]["norm"] = norms[name].nanmean().item()
            rows += own
            shown = {row["bucket"]: tables.percent(row, "accuracy") for row in own}
            lines.append(own[-1] | percent_cells(own[-1]) | shown)
        return rows, lines

    def _norms(self, name: str, arm: Arm) -> Tensor:
        """Norms of the sampled seeds ``float64 [concepts, samples]``, relative to the typical one; NaN of lost ones."""
        units = self.units(name, arm)
        seeds = torch.stack([units.read(concept.key)[0]["seeds"] for concept in self.chosen]).double()
        return seeds.flatten(2).norm(dim=2) / typical_norm(seeds[0, 0].numel())

    def _pictures(self, judged: Mapping[str, ClassifiedImages], concept: Concept) -> Figure:
        """A concept's images: along each path, between its ends; of averages a line for each inversion method."""
        references = list(concept.references[: self.references])
        made = {name: images.images(concept) for name, images in judged.items()}
        if self.samples > 1:
            rows = [(name, [*references[:1], *path, *references[1:2]]) for name, path in made.items()]
            return tables.image_table(rows, ["reference", *[""] * self.samples, "reference"], concept.prompt)
        rows = [(i, references + [made[f"{i}, {operation}"][0] for operation in self.operations]) for i in self.inversions]
        return tables.image_table(rows, ["reference", *[""] * (len(references) - 1), *self.operations], concept.prompt)


def norm_figure(norms: Mapping[str, Tensor]) -> Figure:
    """The norm along the path, or of the average: the mean over concepts and the middle nine tenths."""
    figure, axis = plt.subplots(figsize=(6.4, 3.4))
    for place, (name, all_norms) in enumerate(norms.items()):
        values = all_norms[all_norms.isfinite().all(1)]
        if not len(values):
            continue
        mean, (low, high) = values.mean(0).numpy(), np.percentile(values.numpy(), [5, 95], axis=0)
        low, high = np.minimum(low, mean), np.maximum(high, mean)  # a few far seeds can take the mean outside
        where = np.arange(1, values.shape[1] + 1) + (place / len(norms) - 0.5) * 0.5
        axis.errorbar(where, mean, [mean - low, high - mean], marker="o", markersize=3, linewidth=1, label=name)
    axis.axhline(1, color="black", linestyle="--", linewidth=1)
    axis.set(xlabel="point of the path", ylabel="norm / typical norm")
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
