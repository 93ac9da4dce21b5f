"""Report of an inversion experiment: tables, figures and one row of metrics per image."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from scipy.stats import spearmanr
from torch import Tensor

from experiments.evaluation.metrics import roc_auc
from experiments.evaluation.registry import EDITED, INVERSION, LATENTS, MAIN
from experiments.inversion.figures import FIGURES, image_figures, is_edited, is_vae_bound, load_images
from experiments.inversion.jobs import VAE_BOUND, InversionJob, Setting
from experiments.reporting.html_report import Candidate, Thumbnails, highest_and_lowest
from experiments.reporting.results import Report
from experiments.reporting.tables import MAX_COLUMNS, Column, Rows, Table, varying

FinishedUnit = tuple[InversionJob, Mapping[str, Tensor], Mapping[str, Any]]
"""A finished job, its stored tensors, and its stored dict of measured values."""

IDENTITY = ("method", "steps", "guidance", "nfe", "prompt", "generated")
"""Names of the columns whose values together identify a row of the results table."""

MAX_RESIDUAL = 0.1
"""An inversion counts as diverged if the residual of a step exceeds this value, in standard deviations of a latent."""

METHOD = Column("method", "method")
COUNT = Column("n", "n")
CONDITIONS = {"steps": Column("steps", "steps"), "guidance": Column("guidance", "guidance")}
DETECTION = (METHOD, Column("score", "score"), Column("auc", "ROC AUC", "higher"), Column("n", "images per class"))
TITLES = {"caption": "", "empty": "empty prompt", "wrong": "prompts of other concepts"}


def write_report(
    run_dir: Path,
    units: Sequence[FinishedUnit],
    figures: Sequence[str],
    paper: Rows,
    *,
    settings: Mapping[str, Any],
    loggers: Sequence[Logger],
    seed: int,
    classifier: str | None = "classifier",
    skipped: Mapping[str, str] | None = None,
) -> list[dict]:
    """Write all results to ``run_dir`` and to the loggers; return the rows of the results table.

    Args:
        figures: names of the figures that are drawn, as keys of ``FIGURES``.
        paper: rows with published results, which tables show below the rows of this experiment.
        settings: all settings on which the results depend, which are stored with the results.
        seed: random seed of the bootstrap confidence intervals.
        classifier: name of the network whose features define the perceptual distance; None if the distance is not
            computed.
        skipped: dict from the name of each method that was not run to the reason.
    """
    samples = with_vae_gaps([row for job, _, record in units for row in sample_rows(job, record["rows"])])
    rows = [summary(group, seed) for group in groups(samples).values()]
    has_wrong_prompts = {"caption", "wrong"} <= {row["prompt"] for row in rows}
    extra = {"detection": detection(samples)} if has_wrong_prompts else {}
    tables = reconstruction_tables(rows, paper)
    if has_wrong_prompts:
        tables.append(Table(extra["detection"], DETECTION, "Detection of wrong prompts", within=["score"]))
    agreement = rank_agreement(samples)
    if classifier is not None:
        extra |= {"perceptual": {"features": classifier, **agreement}}
    plots = {f"figures/{name}": partial(FIGURES[name], rows, samples) for name in figures}
    plots |= {f"images/{name}": draw for name, draw in image_figures(units).items()}
    report = Report(
        rows=rows,
        settings={**settings, **extra},
        samples=samples,
        tables=tables,
        figures=plots,
        notes=[compared_within(rows), format_agreement(classifier, agreement) if classifier else ""],
        identity=IDENTITY,
        values=INVERSION.columns(),
        bounds=sorted({row["method"] for row in rows if is_vae_bound(row)}),
        extra_sections={"skipped": skipped or {}},
        extra_tables={"detection": extra["detection"]} if has_wrong_prompts else {},
        thumbnails=partial(thumbnails, units),
    )
    report.write(run_dir, loggers, step=len(units))
    return rows


def reconstruction_tables(rows: Rows, paper: Rows) -> list[Table]:
    """Return the tables that the report writes to ``table.md``.

    A table contains rows with the same images and prompts, and a row for encoding and decoding the images without
    inversion (VAE bound). If the number of steps varies, a table contains rows with the same guidance scale. The first
    table also contains the published results ``paper``.
    """
    conditions = varying([row for row in rows if not is_vae_bound(row)], list(CONDITIONS))
    splitting = ("images", "prompt", *conditions[1:])
    grouped: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        if not is_vae_bound(row):
            grouped.setdefault(tuple(row[name] for name in splitting), []).append(row)
    if not grouped:
        return [Table(rows, [METHOD, *INVERSION.columns(), COUNT])]
    tables = []
    for k, group in enumerate(grouped.values()):
        first = group[0]
        same_images = [row for row in rows if (row["images"], row["prompt"]) == (first["images"], first["prompt"])]
        bound = vae_bounds(same_images, group)
        values = INVERSION.columns(EDITED if is_edited(first) else MAIN)
        label = [CONDITIONS[name] for name in conditions[:1]]
        columns = _at_most_seven([METHOD, *label], values, [*bound, *group])
        title = _title(first, conditions[1:]) if len(grouped) > 1 else ""
        tables.append(Table(group, columns, title, [*bound, *(paper if k == 0 else [])], within=list(CONDITIONS)))
        if first["generated"] and not is_edited(first):
            distances = [METHOD, *label, *INVERSION.columns(LATENTS), COUNT]
            latents_title = ": ".join(filter(None, [title, "distances to the latents of the generated images"]))
            tables.append(Table(group, distances, latents_title, within=list(CONDITIONS)))
    return tables


def vae_bounds(rows: Rows, compared: Rows) -> list[Mapping[str, Any]]:
    """Return the rows with the VAE bound for the table that contains the rows ``compared``.

    The VAE bound is the PSNR of encoding and decoding the images without inversion. Rows of a table can have different
    numbers of images, because some settings use only the first images of the experiment. The table gets one VAE bound
    for each number of images. If ``rows`` has no VAE bound for a number of images, the bound is computed from a row of
    ``compared`` with this number of images: the bound is the PSNR of the row plus its column ``vae_gap`` (VAE bound
    minus PSNR).
    """
    bounds = [row for row in rows if is_vae_bound(row)]
    counts = {row["n"] for row in bounds}
    by_count = {row["n"]: row["psnr"] + row["vae_gap"] for row in compared if _needs_bound(row, counts)}
    return bounds + [{"method": VAE_BOUND, "psnr": psnr, "n": count} for count, psnr in by_count.items()]


def _needs_bound(row: Mapping[str, Any], counts: Collection[int]) -> bool:
    return row["n"] not in counts and not is_edited(row) and math.isfinite(row.get("vae_gap", math.nan))


def compared_within(rows: Rows) -> str:
    """Return the note that explains which rows of a table are compared to find the best value.

    The note is empty if all rows of a table are compared with each other.
    """
    conditions = varying([row for row in rows if not is_vae_bound(row)], list(CONDITIONS))
    return f"Bold: best value among rows with the same {' and '.join(conditions)}." if conditions else ""


def _at_most_seven(first: Sequence[Column], values: Sequence[Column], rows: Rows) -> list[Column]:
    """Return at most seven columns: ``first``, the columns of ``values`` that have values, and the number of images."""
    present = [column for column in values if any(row.get(column.key) is not None for row in rows)]
    return [*first, *present[: MAX_COLUMNS - len(first) - 1], COUNT]


def _title(row: Mapping[str, Any], conditions: Sequence[str]) -> str:
    """Return the title of the table that contains ``row``: kind of images, kind of prompts and ``conditions``."""
    prompt = f"edit {row['prompt']}" if is_edited(row) else TITLES[row["prompt"]]
    values = [f"{name} {row[name]:g}" for name in conditions]
    return ", ".join(filter(None, [f"Images: {row['images']}", prompt, *values]))


def thumbnails(units: Sequence[FinishedUnit]) -> list[Thumbnails]:
    """Return the reconstructions with the highest and the lowest PSNR, each next to the original image.

    The reconstructions are selected from the saved images of all methods that inverted images with their captions.
    """
    candidates = []
    for job, tensors, record in units:
        if job.first and job.inverter is not None and job.setting.prompt_label == "caption":
            settings = f"{_method_name(job)}, {job.setting.steps} steps, guidance {job.setting.guidance:g}"
            pairs = zip(load_images(tensors, "images"), load_images(tensors, "reconstructions"), strict=True)
            for pair, source, values in zip(pairs, job.images, record["rows"], strict=False):
                if all(image is not None for image in pair) and math.isfinite(values["psnr"]):
                    caption = f"{source.name}: {values['psnr']:.1f} dB, {settings}"
                    candidates.append(Candidate(values["psnr"], source.name, pair, caption))
    return highest_and_lowest(candidates, "PSNR", "image and reconstruction")


def sample_rows(job: InversionJob, records: Sequence[Mapping[str, float]]) -> list[dict]:
    """Return one row per image of a job. A row contains the method, the setting, the prompt and the metrics."""
    setting = job.setting
    conditions = {
        "method": _method_name(job),
        "initial_guess": job.inverter.initial_guess if job.inverter else None,
        "steps": setting.steps if job.inverter else None,
        "guidance": setting.guidance if job.inverter else None,
        "nfe": setting.nfe,
        "prompt": setting.prompt_label,
        "generated": setting.generated,
        "images": _image_source(setting),
    }
    rows = []
    for image, record in zip(job.images, records, strict=True):
        row = {**conditions, "sample": image.name, "prompt_text": setting.target(image.prompt), **record}
        if job.inverter is not None:
            row["diverged"] = float(_diverged(record))
        rows.append(row)
    return rows


def _diverged(record: Mapping[str, float]) -> bool:
    residual = record.get("residual", math.nan)
    too_large = not math.isnan(residual) and not residual <= MAX_RESIDUAL
    return too_large or not math.isfinite(record["latent_mse"])


def with_vae_gaps(samples: Rows) -> list[dict[str, Any]]:
    """Add the column ``vae_gap``: PSNR of the VAE's reconstruction without inversion minus PSNR of the row, in dB.

    The returned rows start with the rows of :data:`VAE_BOUND`, which have no column ``vae_gap``.
    """
    bounds = {_image_key(sample): sample for sample in samples if is_vae_bound(sample)}
    others = [sample for sample in samples if not is_vae_bound(sample)]
    with_gap = [{**sample, "vae_gap": bounds[_image_key(sample)]["psnr"] - sample["psnr"]} for sample in others]
    return [*map(dict, bounds.values()), *with_gap]


def _image_key(sample: Mapping[str, Any]) -> tuple:
    return sample["images"], sample["prompt"], sample["sample"]


def _image_source(setting: Setting) -> str:
    """Return the value of the column ``images`` of the results: whether the images are real or generated.

    The value also describes the settings of generated images, and whether latents come from decoder inversion.
    """
    source = f"generated, {setting.steps} steps, guidance {setting.guidance:g}" if setting.generated else "real"
    return f"{source}, decoder inversion" if setting.decoder_iterations else source


def _method_name(job: InversionJob) -> str:
    return f"{job.method}, decoder inversion" if job.setting.decoder_iterations else job.method


def groups(samples: Rows) -> dict[tuple, list[Mapping[str, Any]]]:
    """Group the rows of single images by method and setting.

    The keys of the returned dict are tuples of the values of the ``IDENTITY`` columns. Each group becomes one row of
    the results table.
    """
    rows: dict[tuple, list[Mapping[str, Any]]] = {}
    for sample in samples:
        rows.setdefault(tuple(sample[name] for name in IDENTITY), []).append(sample)
    return rows


def summary(samples: Rows, seed: int) -> dict[str, Any]:
    """Aggregate the metrics of several images into one row of the results table."""
    first = samples[0]
    row = {name: first[name] for name in ("initial_guess", "images", *IDENTITY)}
    return row | INVERSION.summarize(samples, seed) | {"n": len(samples)}


def rank_agreement(samples: Rows) -> dict[str, float | int]:
    """Compute Spearman's rank correlation between the perceptual distance and ST-LPIPS.

    One correlation is computed over all images, and one over the mean values of the table rows. An empty dict is
    returned if ST-LPIPS was not computed or the table has fewer than three rows.
    """
    names = ("perceptual", "st_lpips")
    finite = [s for s in samples if all(math.isfinite(s.get(name, math.nan)) for name in names)]
    means = [[np.mean([sample[name] for sample in group]) for name in names] for group in groups(finite).values()]
    if len(means) < 3:
        return {}
    over_images = spearmanr(*([sample[name] for sample in finite] for name in names))
    over_rows = spearmanr(*zip(*means, strict=True))
    return {
        "spearman_images": float(over_images.statistic),
        "images": len(finite),
        "spearman_rows": float(over_rows.statistic),
        "rows": len(means),
    }


def format_agreement(classifier: str, agreement: Mapping[str, float | int]) -> str:
    """Return a note on how the perceptual distance is computed and how it is correlated with ST-LPIPS."""
    line = f"The perceptual distance is computed from features of {classifier}, without learned weights."
    if agreement:
        line += (
            f" Rank correlation of the perceptual distance with ST-LPIPS: {agreement['spearman_images']:.2f} over "
            f"{agreement['images']} images, {agreement['spearman_rows']:.2f} over {agreement['rows']} rows."
        )
    return line


def detection(samples: Rows) -> list[dict[str, Any]]:
    """Compute the ROC AUC with which several scores detect images that were inverted with a wrong prompt.

    A higher ROC AUC means better detection: 1 is perfect, and 0.5 is chance.

    The scores of an inversion method are the maximum residual, the mean residual and the latent MSE. The baseline needs
    no inversion: its score is the CLIP score of the VAE's reconstruction with the prompt.
    """
    by_row = groups(samples)
    rows = []
    for (method, steps, guidance, nfe, prompt, generated), group in by_row.items():
        wrong = by_row.get((method, steps, guidance, nfe, "wrong", generated), [])
        if prompt != "caption" or not wrong:
            continue
        scores = ["clip_score"] if method == VAE_BOUND else ["residual", "residual_mean", "latent_mse"]
        label = method if nfe is None else f"{method} ({nfe} evaluations)"
        for score in scores:
            sign = -1 if score == "clip_score" else 1
            positives, negatives = ([sign * s.get(score, math.nan) for s in side] for side in (wrong, group))
            if not np.isnan(positives + negatives).any():
                auc = roc_auc(positives, negatives)
                rows.append({"method": label, "score": score, "auc": auc, "n": len(group)})
    return rows
