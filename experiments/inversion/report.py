"""Tables, samples and figures of an inversion experiment."""

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
"""A job, the tensors and the record of its unit."""

IDENTITY = ("method", "steps", "guidance", "nfe", "prompts", "generated")
"""Columns that tell the rows of the table apart."""

MAX_RESIDUAL = 0.1
"""An inversion diverged if the residual of any step exceeds this (in standard deviations of a latent)."""

SETTING = {"method": "method", "steps": "steps", "guidance": "guidance"}
COUNT = {"n": "n"}
DETECTION = {"method": "method", "score": "score", "auc": "ROC AUC ↑", "n": "images per class"}


def main_columns() -> dict[str, str]:
    """Columns of the table of reconstructions."""
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
    """Write all results into ``run_dir`` and the loggers; returns the rows of the table.

    Args:
        figures: names in ``FIGURES``.
        paper: rows of published results, printed below ours.
        classifier: name of the network whose features define the perceptual distance.
        skipped: reasons why methods have no row, by method.
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
    """One row per image: its conditions and its metrics."""
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
    """``samples`` with ``vae_gap``: by how many dB each PSNR is below the VAE bound of the same image.

    The VAE's samples come first, once per image.
    """
    bounds = {_image_key(sample): sample for sample in samples if is_vae_bound(sample)}
    others = [sample for sample in samples if not is_vae_bound(sample)]
    with_gap = [{**sample, "vae_gap": bounds[_image_key(sample)]["psnr"] - sample["psnr"]} for sample in others]
    return [*map(dict, bounds.values()), *with_gap]


def _image_key(sample: Mapping[str, Any]) -> tuple:
    return sample["images"], sample["prompts"], sample["sample"]


def _image_source(setting: Setting) -> str:
    """Where a setting's images and latents come from, for the column ``images``."""
    source = f"generated, {setting.steps} steps, guidance {setting.guidance:g}" if setting.generated else "real"
    return f"{source}, decoder inversion" if setting.decoder_iterations else source


def _method_name(job: InversionJob) -> str:
    return f"{job.method}, decoder inversion" if job.setting.decoder_iterations else job.method


def groups(samples: Rows) -> dict[tuple, list[Mapping[str, Any]]]:
    """Samples by table row, that is by their values of ``IDENTITY``."""
    rows: dict[tuple, list[Mapping[str, Any]]] = {}
    for sample in samples:
        rows.setdefault(tuple(sample[name] for name in IDENTITY), []).append(sample)
    return rows


def summary(samples: Rows, seed: int) -> dict[str, Any]:
    """A row of the table: the metrics aggregated over images (:data:`~experiments.evaluation.registry.INVERSION`)."""
    first = samples[0]
    row = {name: first[name] for name in ("initial_guess", "images", *IDENTITY)}
    return row | INVERSION.summarize(samples, seed) | {"n": len(samples)}


def rank_agreement(samples: Rows) -> dict[str, float | int]:
    """Spearman's rank correlation of the perceptual distance and ST-LPIPS, over images and over means of table rows.

    Empty without ST-LPIPS or with fewer than three rows.
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
    """The note below the table on its perceptual distances."""
    line = f"Perceptual distance: features of {classifier}, without learned weights."
    if agreement:
        line += (
            f" Rank correlation with ST-LPIPS: {agreement['spearman_images']:.2f} over {agreement['images']} images, "
            f"{agreement['spearman_rows']:.2f} over {agreement['rows']} rows."
        )
    return line + "\n"


def detection(samples: Rows) -> list[dict[str, Any]]:
    """ROC AUC of scores that distinguish images with a wrong prompt from images with their own prompt.

    The scores are a method's maximum residual, mean residual and latent MSE; for the VAE, the CLIP score.
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
