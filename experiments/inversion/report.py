"""Table, samples and pictures of an inversion study."""

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

from experiments.evaluation.metrics import bootstrap_interval, roc_auc
from experiments.inversion.figures import FIGURES, is_vae_bound, is_edited, pictures
from experiments.inversion.jobs import VAE_BOUND, InversionJob, Setting
from experiments.reporting import tables

Found = tuple[InversionJob, Mapping[str, Tensor], Mapping[str, Any]]
"""A finished unit: its job, its tensors and its record."""

IDENTITY = ("method", "steps", "guidance", "nfe", "prompts", "generated")
"""What tells the rows of the table apart."""

LOST = 0.1
"""A residual above this, a tenth of a latent's standard deviation, at any step counts as diverged."""
AVERAGED = (
    "psnr", "vae_gap", "ssim", "perceptual", "st_lpips", "clip_score", "latent_mse", "residual", "residual_mean",
    "solved", "converged", "diverged", "nfe_per_step", "backward_per_step", "seconds", "stored_bytes",
    "latent_shift", "distance_encoded", "distance_adjusted", "distance_reconstructed",
)  # fmt: skip
SO_FAR = ("psnr", "ssim", "perceptual", "clip_score", "latent_mse", "residual", "converged", "diverged")
"""Of these, what is logged after every unit."""
COLUMNS = {
    "method": "method", "start": "start", "steps": "steps", "guidance": "guidance", "images": "images",
    "prompts": "prompts", "nfe_per_step": "evaluations a step", "backward_per_step": "backward a step",
    "psnr": "PSNR, dB", "vae_gap": "below the VAE, dB", "ssim": "SSIM", "perceptual": "perceptual",
    "st_lpips": "ST-LPIPS",
    "latent_mse": "latent MSE", "latent_mse_median": "median", "latent_mse_p95": "95 %",
    "latent_mse_largest": "largest", "residual": "residual", "solved": "steps solved", "converged": "converged",
    "converged_low": "from", "converged_high": "to",
    "diverged": "diverged", "norm": "norm of the seed", "seconds_per_image": "s an image", "n": "n",
}  # fmt: skip
EDITED = {
    "method": "method", "steps": "steps", "guidance": "guidance", "prompts": "edit",
    "nfe_per_step": "evaluations a step", "clip_score": "CLIP score", "clip_score_low": "from",
    "clip_score_high": "to", "perceptual": "perceptual distance to the image", "n": "n",
}  # fmt: skip
"""Of edited images (Fig. 6): the VAE's row is the image itself, unedited."""
DISTANCES = {
    "method": "method", "steps": "steps", "guidance": "guidance", "distance_encoded": "encoded",
    "distance_adjusted": "adjusted", "distance_reconstructed": "reconstructed", "n": "n",
}  # fmt: skip
"""Of generated images: how far the encoder's latent, the one inverted and the reconstruction lie from the true one."""


def write_report(
    run_dir: Path,
    found: Sequence[Found],
    figures: Sequence[str],
    paper: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    loggers: Sequence[Logger],
    seed: int,
    judge: str = "judge",
    left_out: Mapping[str, str] | None = None,
) -> list[dict]:
    """Writes the whole results contract into ``run_dir`` and the loggers; returns the rows.

    ``judge`` is the network whose features make the perceptual distance; ``left_out`` says why methods have no row.
    """
    samples = with_vae_gaps([row for job, _, record in found for row in sample_rows(job, record["rows"])])
    rows = [summary(group, seed) for group in groups(samples).values()]
    extra = {"detection": detection(samples)} if {"right", "wrong"} <= {row["prompts"] for row in rows} else {}
    shown = [
        ([*(row for row in rows if not is_edited(row)), *paper], COLUMNS),
        ([row for row in rows if is_edited(row)], EDITED),
        ([row for row in rows if row["generated"] and not is_edited(row)], DISTANCES),
        (extra.get("detection", []), DETECTION),
    ]
    agreement = rank_agreement(samples)
    extra |= {"perceptual": {"features": judge, **agreement}}
    table = "\n".join([*(tables.markdown_table(*each) for each in shown if each[0]), told(judge, agreement)])
    drawn = {f"figures/{name}": partial(FIGURES[name], rows, samples) for name in figures}
    drawn |= {f"images/{name}": make for name, make in pictures(found).items()}
    tables.write_report(
        run_dir, rows, {**settings, **extra}, samples=samples, table=table, pictures=drawn, loggers=loggers,
        identity=IDENTITY, step=len(found), left_out=left_out or {},
    )  # fmt: skip
    return rows


def sample_rows(job: InversionJob, records: Sequence[Mapping[str, float]]) -> list[dict]:
    """One row an image: what it was, under what, and what was measured."""
    setting = job.setting
    shared = {
        "method": _method(job), "start": job.inverter.initial_guess if job.inverter else None, "steps": setting.steps if job.inverter else None,
        "guidance": setting.guidance if job.inverter else None, "nfe": setting.nfe,
        "prompts": setting.prompts, "generated": setting.generated,
        "images": _images(setting),
    }  # fmt: skip
    rows = []
    for image, record in zip(job.images, records, strict=True):
        residual = record.get("residual", math.nan)
        lost = not math.isnan(residual) and not residual <= LOST
        known = {} if job.inverter is None else {"diverged": float(lost or not math.isfinite(record["latent_mse"]))}
        rows.append({**shared, "sample": image.name, "prompt": setting.target(image.prompt), **record, **known})
    return rows


def with_vae_gaps(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``samples`` with how many dB each lies below what the VAE makes of the same image, which is listed once."""
    ceilings = {_image(sample): sample for sample in samples if is_vae_bound(sample)}
    rest = [sample for sample in samples if not is_vae_bound(sample)]
    below = [{**sample, "vae_gap": ceilings[_image(sample)]["psnr"] - sample["psnr"]} for sample in rest]
    return [*map(dict, ceilings.values()), *below]


def _image(sample: Mapping[str, Any]) -> tuple:
    return sample["images"], sample["prompts"], sample["sample"]


def _images(setting: Setting) -> str:
    """Where the images of a setting, and their latents, come from."""
    source = f"generated, {setting.steps} steps, guidance {setting.guidance:g}" if setting.generated else "real"
    return f"{source}, decoder inversion" if setting.decoder_iterations else source


def _method(job: InversionJob) -> str:
    if job.setting.decoder_iterations:
        return f"{job.method}, decoder inversion"
    return job.method


def groups(samples: Sequence[Mapping[str, Any]]) -> dict[tuple, list[Mapping[str, Any]]]:
    """Samples of one row of the table, by what tells rows apart."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for sample in samples:
        key = tuple(sample[name] for name in IDENTITY)
        found.setdefault(key, []).append(sample)
    return found


def summary(samples: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """A row of the table: means over images, with 95 % intervals of PSNR and CLIP score, and how latent MSE spreads."""
    first = samples[0]
    row = {name: first[name] for name in ("start", "images", *IDENTITY)}
    row |= {name: float(np.mean([s[name] for s in samples])) for name in AVERAGED if name in first}
    row |= spread([s["latent_mse"] for s in samples], "latent_mse")
    if "norm" in first:  # of the seed over sqrt(d), 1 for noise; a median, which a lost sample does not move
        row["norm"] = float(np.median(np.nan_to_num([s["norm"] for s in samples], nan=np.inf, posinf=np.inf)))
    row["not_finite"] = int(sum(s.get("not_finite", 0) for s in samples))
    if "seconds" in row:
        row["seconds_per_image"] = row.pop("seconds")
    for name in (name for name in ("psnr", "clip_score", "converged") if name in first):
        values = [s[name] for s in samples]
        finite = all(math.isfinite(value) for value in values)
        interval = bootstrap_interval(values, seed=seed) if finite else (math.nan, math.nan)
        row[f"{name}_low"], row[f"{name}_high"] = interval
    return row | {"n": len(samples)}


def spread(values: Sequence[float], name: str) -> dict[str, float]:
    """Median, 95th percentile and largest of ``values``: a mean alone may be that of a few images that were lost.

    The percentile is the least value that 95 % do not exceed. A value that is not a number counts as infinite.
    """
    known = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=np.inf, posinf=np.inf)
    tail = float(np.percentile(known, 95, method="inverted_cdf"))
    return {f"{name}_median": float(np.median(known)), f"{name}_p95": tail, f"{name}_largest": float(known.max())}


def rank_agreement(samples: Sequence[Mapping[str, Any]]) -> dict[str, float | int]:
    """Spearman's rank correlation of the judge's perceptual distance and ST-LPIPS over all images that have both, and
    over the rows' means. Empty without ST-LPIPS, or where there are too few."""
    known = [s for s in samples if math.isfinite(s["perceptual"]) and math.isfinite(s.get("st_lpips", math.nan))]
    means = [[np.mean([s[name] for s in own]) for name in ("perceptual", "st_lpips")] for own in groups(known).values()]
    if len(means) < 3:
        return {}
    images = spearmanr([s["perceptual"] for s in known], [s["st_lpips"] for s in known])
    return {
        "spearman_images": float(images.statistic), "images": len(known),
        "spearman_rows": float(spearmanr(*zip(*means, strict=True)).statistic), "rows": len(means),
    }  # fmt: skip


def told(judge: str, agreement: Mapping[str, float | int]) -> str:
    """What stands below the table of its perceptual distances."""
    line = f"Perceptual: the features of {judge}, without learned weights."
    if agreement:
        line += (
            f" Rank correlation with ST-LPIPS: {agreement['spearman_images']:.2f} over {agreement['images']} images, "
            f"{agreement['spearman_rows']:.2f} over {agreement['rows']} rows."
        )
    return line + "\n"


DETECTION = {"method": "method", "score": "score", "auc": "ROC AUC", "n": "images a class"}


def detection(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How well a score tells images with a wrong prompt from those with their own, as ROC AUC.

    Scores: a method's largest and mean residual, its latent MSE, and, needing no inversion, the CLIP score.
    """
    found = []
    for key, group in groups(samples).items():
        if key[4] != "right":
            continue
        wrong = groups(samples).get((*key[:4], "wrong", key[5]), [])
        scores = ["residual", "residual_mean", "latent_mse"] if group[0]["method"] != VAE_BOUND else ["clip_score"]
        for score in scores:
            sign = -1 if score == "clip_score" else 1
            values = [[sign * sample.get(score, math.nan) for sample in side] for side in (wrong, group)]
            if wrong and not np.isnan(values[0] + values[1]).any():
                label = group[0]["method"] if key[3] is None else f"{group[0]['method']} ({key[3]} evaluations)"
                found.append({"method": label, "score": score, "auc": roc_auc(*values), "n": len(group)})
    return found
