"""Table, figures and samples of the rare-concepts experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from torch import Tensor

from experiments.rare_concepts.scoring import ClassifiedImages, accuracy_rows, aggregate_metrics, lost_samples, paired_differences
from experiments.reporting import tables

PAPER = (  # Table 3 of arXiv 2312.12540: ImageNet-1k on Stable Diffusion 2.1, buckets by LAION-2B counts
    {"method": "paper: NAO + SeedSelect, DDIM", "head": 98.5, "medium": 96.9, "tail": 85.1, "total": 94.3, "fid": 6.4,
     "t_init": 25.0, "t_opt": 29.0},
    {"method": "paper: NAO + SeedSelect, AIDI", "head": 98.5, "medium": 97.0, "tail": 85.3, "total": 94.4, "fid": 6.9,
     "t_init": 24.0, "t_opt": 28.0},
    {"method": "paper: NAO + SeedSelect, RNRI", "head": 98.6, "medium": 97.9, "tail": 89.1, "total": 95.8, "fid": 6.3,
     "t_init": 17.0, "t_opt": 25.0},
)  # fmt: skip
COLUMNS = {
    "method": "method", "head": "head, %", "medium": "medium, %", "tail": "tail, %", "total": "total, %",
    "ceiling": "ceiling, %", "fid": "FID", "kid": "KID", "copies": "copies, %", "vendi": "Vendi",
    "nfe": "nfe", "n": "n", "n_real": "real images", "extractor": "features", "t_init": "T_init, s",
    "t_opt": "T_opt, s", "iterations": "iterations",
}  # fmt: skip
PAIRED = "Differences of total accuracy in points (95 %, the same concepts drawn for both):"
PICTURED = 10  # concepts a figure


def write_report(
    run_dir: Path,
    arms: Mapping[str, ClassifiedImages],
    real: Tensor,
    settings: Mapping,
    loggers: Sequence[Logger],
    seed: int,
    ceiling: Mapping[str, float] | None = None,
    step: int = 0,
) -> list[dict]:
    """Writes the whole results contract into ``run_dir`` and the loggers; returns the rows."""
    rows: list[dict] = []
    for name, judged in arms.items():
        own = accuracy_rows(name, judged, seed, ceiling)
        aggregate_metrics(own[-1], judged, real)
        rows += own
    pairs = paired_differences(arms, seed)
    table = tables.markdown_table([*_by_method(rows), *PAPER], COLUMNS)
    if pairs:
        table += f"\n{PAIRED}\n\n{pair_table(pairs)}"
    if lost := lost_samples(arms):
        table += f"\n{lost}"
    pictures: dict[str, Callable[[], Figure]] = {"figures/accuracy": partial(tables.accuracy_figure, rows)}
    for bucket in dict.fromkeys(row["bucket"] for row in rows if row["bucket"] != "total"):
        pictures[f"images/{bucket}"] = partial(side_by_side, arms, bucket)
    tables.write_report(
        run_dir, rows, settings, pairs=pairs, table=table, pictures=pictures, loggers=loggers,
        logged={"concepts": concept_rows(arms), "pairs": pairs}, step=step,
        samples=[row for name, judged in arms.items() for row in sample_rows(name, judged)],
    )  # fmt: skip
    return rows


def _by_method(rows: Sequence[Mapping]) -> list[dict]:
    """One line a method, accuracies in percent with their intervals."""
    lines: dict[str, dict] = {}
    for row in rows:
        line = lines.setdefault(row["method"], {"method": row["method"]})
        line[row["bucket"]] = tables.percent(row, "accuracy")
        line |= {name: row[name] for name in COLUMNS if name in row and name != "method"}
        line |= percent_cells(row)
    return list(lines.values())


def percent_cells(row: Mapping) -> dict[str, float | None]:
    """Ceiling and copies of a row in percent."""
    return {name: None if row[name] is None else 100 * row[name] for name in ("ceiling", "copies") if name in row}


def pair_table(pairs: Sequence[Mapping]) -> str:
    """Differences over all concepts, the later method's line under the earlier one's column."""
    lines: dict[str, dict] = {}
    for pair in pairs:
        if pair["bucket"] == "total":
            line = lines.setdefault(pair["method"], {"method": pair["method"]})
            line[pair["than"]] = tables.points(pair, "difference", digits=1)
    columns = {"method": "method"} | {pair["than"]: f"less {pair['than']}" for pair in pairs}
    return tables.markdown_table(list(lines.values()), columns)


def concept_rows(arms: Mapping[str, ClassifiedImages]) -> list[dict]:
    """One row a method and concept: what can be filtered by bucket where a table is looked at."""
    rows = []
    for method, judged in arms.items():
        count = len(judged.concepts) // len(judged.t_init)
        for k, concept in enumerate(judged.concepts[::count]):
            own = judged.hits[k * count : (k + 1) * count]
            rows.append(
                {"method": method, "concept": concept.name, "bucket": concept.bucket, "frequency": concept.frequency,
                 "accuracy": sum(own) / count, "n": count, "t_init": judged.t_init[k], "t_opt": judged.t_opt[k]}
            )  # fmt: skip
    return rows


def sample_rows(method: str, judged: ClassifiedImages) -> list[dict]:
    """One row an image."""
    count, copies = len(judged.concepts) // len(judged.t_init), judged.copies
    return [
        {
            "method": method, "sample": f"{concept.name}/{k % count}", "concept": concept.name,
            "prompt": concept.prompt, "bucket": concept.bucket, "frequency": concept.frequency,
            "prediction": judged.predictions[k], "hit": judged.hits[k],
            "copy": copies[k], "t_init": judged.t_init[k // count], "t_opt": judged.t_opt[k // count],
            **judged.records[k],
        }
        for k, concept in enumerate(judged.concepts)
    ]  # fmt: skip


def side_by_side(arms: Mapping[str, ClassifiedImages], bucket: str) -> Figure:
    """Of each concept a reference and the first sample of every arm, with what the judge says of it."""
    concepts = {concept.name: concept for concept in next(iter(arms.values())).concepts if concept.bucket == bucket}
    rows, captions = [], []
    for name, concept in list(concepts.items())[:PICTURED]:
        pictures = [concept.references[0], *(judged.images(concept)[0] for judged in arms.values())]
        rows.append((f"{name}\n({concept.frequency} captions)", pictures))
        captions.append(["", *(_verdict(judged, name) for judged in arms.values())])
    title = f"{bucket}: a reference and the first sample of each method"
    return tables.image_table(rows, ["reference", *arms], title, captions)


def _verdict(judged: ClassifiedImages, name: str) -> str:
    """The judge's name for a concept's first sample, and whether it is a copy."""
    k = next(k for k, concept in enumerate(judged.concepts) if concept.name == name)
    said = "right" if judged.hits[k] else judged.predictions[k] or ""
    return f"{said}, a copy" if judged.copies[k] else said
