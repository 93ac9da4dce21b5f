"""Report of an inversion experiment: tables, figures and one row of metrics per image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from scipy.stats import spearmanr
from torch import Tensor

from experiments.evaluation.metrics import roc_auc
from experiments.evaluation.registry import EDITED, INVERSION, LATENTS
from experiments.inversion.figures import FIGURES, image_figures, is_edited, is_vae_bound
from experiments.inversion.jobs import VAE_BOUND, InversionJob, Setting
from experiments.reporting.results import Report
from experiments.reporting.tables import markdown_table

Rows = Sequence[Mapping[str, Any]]
FinishedUnit = tuple[InversionJob, Mapping[str, Tensor], Mapping[str, Any]]
"""A job, and the tensors and the record of its finished unit."""

IDENTITY = ("method", "steps", "guidance", "nfe", "prompts", "generated")
"""Columns whose values together identify a row of the table."""

MAX_RESIDUAL = 0.1
"""An inversion diverged if the residual of any step exceeds this value, in standard deviations of a latent."""

SETTING = {"method": "method", "steps": "steps", "guidance": "guidance"}
COUNT = {"n": "n"}
DETECTION = {"method": "method", "score": "score", "auc": "ROC AUC ↑", "n": "images per class"}


def main_columns() -> dict[str, str]:
    """Return the keys and headings of the columns in the table of reconstructions."""
    first = {"method": "method", "initial_guess": "initial guess", "steps": "steps", "guidance": "guidance"}
    return first | {"images": "images", "prompts": "prompts"} | INVERSION.columns() | COUNT


def write_report(
    run_dir: Path,
    units: Sequence[FinishedUnit],
    figures: Sequence[str],
    paper: Rows,
    *,
    settings: Mapping[str, Any],
    loggers: Sequence[Logger],
    seed: int,
    classifier: str = "classifier",
    skipped: Mapping[str, str] | None = None,
) -> list[dict]:
    """Write all results to ``run_dir`` and the loggers; return the rows of the results.

    Args:
        figures: names of the figures to draw, which are keys of ``FIGURES``.
        paper: rows of published results, which are printed below the rows of this experiment.
        settings: the settings that the results depend on.
        seed: random seed of the bootstrap.
        classifier: name of the network whose features define the perceptual distance.
        skipped: methods that were not run, each with the reason.
    """
    samples = with_vae_gaps([row for job, _, record in units for row in sample_rows(job, record["rows"])])
    rows = [summary(group, seed) for group in groups(samples).values()]
    has_wrong_prompts = {"right", "wrong"} <= {row["prompts"] for row in rows}
    extra = {"detection": detection(samples)} if has_wrong_prompts else {}
    latents = [row for row in rows if row["generated"] and not is_edited(row)]
    tables = [
        ([*(row for row in rows if not is_edited(row)), *paper], main_columns()),
        ([row for row in rows if is_edited(row)], SETTING | {"prompts": "edit"} | INVERSION.columns(EDITED) | COUNT),
        (latents, SETTING | INVERSION.columns(LATENTS) | COUNT),
        (extra.get("detection", []), DETECTION),
    ]
    agreement = rank_agreement(samples)
    extra |= {"perceptual": {"features": classifier, **agreement}}
    texts = [markdown_table(table_rows, columns) for table_rows, columns in tables if table_rows]
    plots = {f"figures/{name}": partial(FIGURES[name], rows, samples) for name in figures}
    plots |= {f"images/{name}": draw for name, draw in image_figures(units).items()}
    report = Report(
        rows=rows,
        settings={**settings, **extra},
        samples=samples,
        table="\n".join([*texts, format_agreement(classifier, agreement)]),
        figures=plots,
        identity=IDENTITY,
        extra_sections={"skipped": skipped or {}},
    )
    report.write(run_dir, loggers, step=len(units))
    return rows


def sample_rows(job: InversionJob, records: Sequence[Mapping[str, float]]) -> list[dict]:
    """Return one row per image of a job, with method, setting, prompt and metrics of the image."""
    setting = job.setting
    conditions = {
        "method": _method_name(job),
        "initial_guess": job.inverter.initial_guess if job.inverter else None,
        "steps": setting.steps if job.inverter else None,
        "guidance": setting.guidance if job.inverter else None,
        "nfe": setting.nfe,
        "prompts": setting.prompts,
        "generated": setting.generated,
        "images": _image_source(setting),
    }
    rows = []
    for image, record in zip(job.images, records, strict=True):
        row = {**conditions, "sample": image.name, "prompt": setting.target(image.prompt), **record}
        if job.inverter is not None:
            row["diverged"] = float(_diverged(record))
        rows.append(row)
    return rows


def _diverged(record: Mapping[str, float]) -> bool:
    residual = record.get("residual", math.nan)
    too_large = not math.isnan(residual) and not residual <= MAX_RESIDUAL
    return too_large or not math.isfinite(record["latent_mse"])


def with_vae_gaps(samples: Rows) -> list[dict[str, Any]]:
    """Add ``vae_gap`` to the rows: the PSNR of the VAE's reconstruction of the image minus the PSNR of the row, in dB.

    The rows of the VAE itself come first, one per image.
    """
    bounds = {_image_key(sample): sample for sample in samples if is_vae_bound(sample)}
    others = [sample for sample in samples if not is_vae_bound(sample)]
    with_gap = [{**sample, "vae_gap": bounds[_image_key(sample)]["psnr"] - sample["psnr"]} for sample in others]
    return [*map(dict, bounds.values()), *with_gap]


def _image_key(sample: Mapping[str, Any]) -> tuple:
    return sample["images"], sample["prompts"], sample["sample"]


def _image_source(setting: Setting) -> str:
    """Return the value of the column ``images``: whether the images of a setting are real or generated."""
    source = f"generated, {setting.steps} steps, guidance {setting.guidance:g}" if setting.generated else "real"
    return f"{source}, decoder inversion" if setting.decoder_iterations else source


def _method_name(job: InversionJob) -> str:
    return f"{job.method}, decoder inversion" if job.setting.decoder_iterations else job.method


def groups(samples: Rows) -> dict[tuple, list[Mapping[str, Any]]]:
    """Group the rows of images by table row. The keys are tuples of the values of the ``IDENTITY`` columns."""
    rows: dict[tuple, list[Mapping[str, Any]]] = {}
    for sample in samples:
        rows.setdefault(tuple(sample[name] for name in IDENTITY), []).append(sample)
    return rows


def summary(samples: Rows, seed: int) -> dict[str, Any]:
    """Aggregate the metrics of images to a table row (:data:`~experiments.evaluation.registry.INVERSION`)."""
    first = samples[0]
    row = {name: first[name] for name in ("initial_guess", "images", *IDENTITY)}
    return row | INVERSION.summarize(samples, seed) | {"n": len(samples)}


def rank_agreement(samples: Rows) -> dict[str, float | int]:
    """Compute Spearman's rank correlation between the perceptual distance and ST-LPIPS.

    It is computed over all images, and over the means of the table rows. The result is empty if there is no ST-LPIPS or
    the table has fewer than three rows.
    """
    names = ("perceptual", "st_lpips")
    finite = [s for s in samples if math.isfinite(s["perceptual"]) and math.isfinite(s.get("st_lpips", math.nan))]
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
    """Return the note below the table that describes the perceptual distance and its agreement with ST-LPIPS."""
    line = f"Perceptual distance: features of {classifier}, without learned weights."
    if agreement:
        line += (
            f" Rank correlation with ST-LPIPS: {agreement['spearman_images']:.2f} over {agreement['images']} images, "
            f"{agreement['spearman_rows']:.2f} over {agreement['rows']} rows."
        )
    return line + "\n"


def detection(samples: Rows) -> list[dict[str, Any]]:
    """Compute the ROC AUC of scores for the detection of images that were inverted with a wrong prompt.

    The scores are the maximum residual, the mean residual and the latent MSE of each method. The baseline is the CLIP
    score of the VAE's reconstructions.
    """
    by_row = groups(samples)
    rows = []
    for (method, steps, guidance, nfe, prompts, generated), group in by_row.items():
        wrong = by_row.get((method, steps, guidance, nfe, "wrong", generated), [])
        if prompts != "right" or not wrong:
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
