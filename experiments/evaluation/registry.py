"""The registries of metrics, one for each type of experiment.

The order of the metrics in a registry is the order of the table columns. A
:class:`~experiments.evaluation.metric.Metric` in a registry defines how a metric is computed, aggregated and logged,
and which tables in ``table.md`` show the metric. The file ``table.csv`` has a column for every metric.
`docs/guides/add_a_metric.md` shows how to add a metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from experiments.evaluation.generation_metrics import mean_available, mean_or_none
from experiments.evaluation.metric import MAIN, Metric, MetricRegister, mean
from experiments.evaluation.metrics import psnr, ssim

EDITED = "edited"
"""Name of the table with the metrics of images that were sampled with an edited prompt."""
LATENTS = "latents"
"""Name of the table with the distances between recovered latents and the true latents of generated images."""
BUDGET = "budget"
NOISE = "noise"
UPDATES = "updates"
"""``BUDGET``, ``NOISE`` and ``UPDATES`` are names of tables that compare methods at several values of one quantity.

The quantity is the number of network evaluations in ``BUDGET``, the weight of the added noise in ``NOISE``, and the
number of updates of the seeds in ``UPDATES``.
"""
GEOMETRY = "seed_geometry"
"""Name of the table of the experiments on paths and centroids of seeds."""


def _nan_as_infinite(values: Sequence[float]) -> np.ndarray:
    return np.nan_to_num(np.asarray(values, dtype=np.float64), nan=np.inf, posinf=np.inf)


def median(values: Sequence[float]) -> float:
    """Return the median of ``values``.

    A NaN value counts as infinity, so that a few diverged samples hardly affect the median.
    """
    return float(np.median(_nan_as_infinite(values)))


def percentile_95(values: Sequence[float]) -> float:
    """Return the 95th percentile of ``values``: the smallest value that at least 95 % of the values do not exceed.

    A NaN value counts as infinity.
    """
    return float(np.percentile(_nan_as_infinite(values), 95, method="inverted_cdf"))


def maximum(values: Sequence[float]) -> float:
    """Return the largest of ``values``, where a NaN value counts as infinity."""
    return float(_nan_as_infinite(values).max())


def mean_of_areas(values: Sequence[float]) -> float:
    """Return the mean of the ``values`` that are not NaN, or NaN if all values are NaN.

    The values are errors of images in plain areas or in textured areas. The error of an image without such an area is
    NaN.
    """
    present = [value for value in values if not math.isnan(value)]
    return mean(present) if present else math.nan


def count(values: Sequence[float]) -> int:
    """Return the number of samples whose value is 1. All ``values`` must be 0 or 1."""
    return int(sum(values))


SPREAD = {"median": median, "p95": percentile_95, "largest": maximum}
"""Additional columns that describe the distribution of a metric: dict from the suffix of the name to the function."""

INVERSION = MetricRegister(
    Metric("nfe_per_step", "NFE per step", better="lower", tables=(MAIN, EDITED)),
    Metric("backward_per_step", "backward passes per step", better="lower"),
    Metric("nfe_total", "NFE of inversion and reconstruction", better="lower"),
    Metric("psnr", "PSNR", lambda b: psnr(b.images, b.originals), unit="dB", better="higher", interval=True, live=True,
           tables=(MAIN,)),
    Metric("vae_gap", "below the VAE bound", unit="dB", better="lower"),
    Metric("ssim", "SSIM", lambda b: ssim(b.images, b.originals), better="higher", live=True),
    Metric("clip_score", "CLIP score", lambda b: b.clip_score(), better="higher", interval=True, live=True,
           tables=(EDITED,), optional=True),
    Metric("perceptual", "perceptual distance", lambda b: b.perceptual_distance(), better="lower",
           interval=True, live=True, tables=(MAIN, EDITED), optional=True),
    Metric("st_lpips", "ST-LPIPS", lambda b: b.st_lpips and b.st_lpips(b.images.clamp(0, 1), b.originals),
           better="lower", optional=True),
    Metric("latent_mse", "latent MSE", better="lower", statistics=SPREAD, interval=True, live=True, tables=(MAIN,)),
    Metric("latent_mse_plain", "latent MSE, plain areas", better="lower", aggregate=mean_of_areas),
    Metric("latent_mse_textured", "latent MSE, textured areas", better="lower", aggregate=mean_of_areas),
    Metric("residual", "max residual", better="lower", live=True, tables=(MAIN,)),
    Metric("residual_mean", "mean residual", better="lower"),
    Metric("solved", "solved steps", better="higher"),
    Metric("residual_converged", "residual <= tolerance", better="higher", interval=True, live=True),
    Metric("diverged", "diverged", better="lower", live=True),
    Metric("norm", "norm of the seed / sqrt(d)", aggregate=median),
    Metric("normality", "normality of the seed, p", aggregate=median),
    Metric("normality_rejected", "seeds not N(0, 1)", unit="%", scale=100),
    Metric("patch_correlation", "correlation in patches", aggregate=median),
    Metric("straightness", "straightness (0: straight)", better="lower", aggregate=median),
    Metric("seconds", "time per image", unit="s", better="lower"),
    Metric("stored_bytes", "stored bytes per image", better="lower"),
    Metric("latent_shift", "shift of the latents", better="lower"),
    Metric("distance_encoded", "encoded", better="lower", tables=(LATENTS,)),
    Metric("distance_adjusted", "adjusted", better="lower", tables=(LATENTS,)),
    Metric("distance_reconstructed", "reconstructed", better="lower", tables=(LATENTS,)),
    Metric("not_finite", "non-finite images", better="lower", aggregate=count),
)  # fmt: skip
"""Metrics of inversion methods.

A metric with a function is computed from a :class:`~experiments.evaluation.reconstruction_metrics.ReconstructionBatch`.
The values of a metric without a function are recorded by the inversion experiment.
"""

EDITING = MetricRegister(
    Metric("clip_score", "CLIP score", lambda b: b.clip_score, better="higher", interval=True, live=True,
           tables=(MAIN,)),
    Metric("clip_score_region", "CLIP score, region", lambda b: b.clip_score_region, better="higher"),
    Metric("clip_score_source", "CLIP score, source", lambda b: b.clip_score_source),
    Metric("lpips", "LPIPS", lambda b: b.networks.lpips(b.images, b.originals), better="lower", interval=True,
           live=True, tables=(MAIN,)),
    Metric("structure", "structure distance", lambda b: b.networks.structure(b.images, b.originals), better="lower"),
    Metric("original_structure", "PIE-Bench structure distance",
           lambda b: b.networks.structure.original and b.networks.structure.original(b.images, b.originals),
           better="lower", optional=True),
    Metric("background_psnr", "background PSNR", lambda b: b.background.psnr, unit="dB", better="higher",
           interval=True, live=True, tables=(MAIN,)),
    Metric("background_mse", "background MSE", lambda b: b.background.mse, better="lower"),
    Metric("background_ssim", "background SSIM", lambda b: b.background.ssim, better="higher"),
    Metric("background_lpips", "background LPIPS", lambda b: b.background_distance(b.networks.lpips), better="lower"),
    Metric("background_structure", "background structure distance",
           lambda b: b.background_distance(b.networks.structure), better="lower"),
    Metric("original_background_structure", "PIE-Bench background structure distance",
           lambda b: b.background_distance(b.networks.structure.original), better="lower", optional=True),
    Metric("original_psnr", "PIE-Bench PSNR", lambda b: b.background.original_psnr, unit="dB", better="higher"),
    Metric("original_mse", "PIE-Bench MSE", lambda b: b.background.original_mse, better="lower"),
    Metric("original_ssim", "PIE-Bench SSIM", lambda b: b.background.original_ssim, better="higher"),
    Metric("region_psnr", "region PSNR", lambda b: b.edited_region.psnr, unit="dB"),
    Metric("region_mse", "region MSE", lambda b: b.edited_region.mse),
    Metric("region_ssim", "region SSIM", lambda b: b.edited_region.ssim),
    Metric("region_lpips", "region LPIPS", lambda b: b.region_distance(b.networks.lpips)),
    Metric("region_structure", "region structure distance", lambda b: b.region_distance(b.networks.structure)),
    Metric("original_region_psnr", "PIE-Bench region PSNR", lambda b: b.edited_region.original_psnr, unit="dB"),
    Metric("original_region_mse", "PIE-Bench region MSE", lambda b: b.edited_region.original_mse),
    Metric("original_region_ssim", "PIE-Bench region SSIM", lambda b: b.edited_region.original_ssim),
    Metric("original_region_structure", "PIE-Bench region structure distance",
           lambda b: b.region_distance(b.networks.structure.original), optional=True),
    Metric("edit_applied", "edit applied", lambda b: b.edit_applied, better="higher"),
    Metric("background_preserved", "background preserved", lambda b: b.background_preserved, better="higher"),
    Metric("success", "success", lambda b: b.success, unit="%", scale=100, better="higher", interval=True, live=True,
           tables=(MAIN,)),
    Metric("latent_mse", "latent MSE of the inversion", better="lower"),
    Metric("seconds", "time per edit", unit="s", better="lower"),
    Metric("seconds_networks", "network time per edit", unit="s", better="lower"),
    Metric("not_finite", "non-finite images", better="lower", aggregate=count),
)  # fmt: skip
"""Metrics of editing methods.

A metric with a function is computed from an :class:`~experiments.evaluation.editing_metrics.EditBatch`. The values of a
metric without a function are recorded by the editing experiment.
"""

RARE_CONCEPTS = MetricRegister(
    Metric("fid", "FID", lambda s: s.feature_distances["fid"], better="lower",
           tables=(GEOMETRY,)),
    Metric("kid", "KID", lambda s: s.feature_distances["kid"], better="lower", tables=(BUDGET, NOISE)),
    Metric("copies", "copies", lambda s: mean_or_none(s.copies), unit="%", scale=100, better="lower",
           tables=(MAIN,)),
    Metric("m_cp", "M_CP", lambda s: mean_or_none(s.m_cp), better="lower", tables=(MAIN,)),
    Metric("authentic", "AuthPct", lambda s: mean_or_none(s.authentic), unit="%", scale=100, better="higher"),
    Metric("c_t", "C_T", lambda s: s.c_t),
    Metric("sscd", "SSCD similarity", lambda s: mean_or_none(s.similarities), better="lower", optional=True),
    Metric("sscd_copies", "copies by SSCD", lambda s: mean_or_none(s.sscd_copies), unit="%", scale=100, better="lower",
           optional=True),
    Metric("copies_concept", "copies by the concept's own pairs", lambda s: mean_or_none(s.concept_copies), unit="%",
           scale=100, better="lower"),
    Metric("nearest", "distance to the nearest reference", lambda s: mean_or_none(s.nearest_distances)),
    Metric("pairwise", "distance within a concept", lambda s: mean_or_none(s.pairwise_distances), better="higher"),
    Metric("vendi", "Vendi score", lambda s: mean_or_none(s.vendi_scores), better="higher"),
    Metric("precision", "precision", lambda s: s.coverage["precision"], better="higher"),
    Metric("recall", "recall", lambda s: s.coverage["recall"], better="higher"),
    Metric("density", "density", lambda s: s.coverage["density"], better="higher"),
    Metric("coverage", "coverage", lambda s: s.coverage["coverage"], better="higher"),
    Metric("nfe", "NFE", lambda s: mean_available(record.get("nfe") for record in s.records), better="lower",
           tables=(MAIN, BUDGET, NOISE, UPDATES)),
    Metric("not_finite", "non-finite images", lambda s: s.num_not_finite, better="lower"),
    Metric("semantic_loss", "semantic loss", lambda s: mean_or_none(s.recorded("semantic_loss")), better="lower",
           tables=(UPDATES,), optional=True),
    Metric("appearance_loss", "appearance loss", lambda s: mean_or_none(s.recorded("appearance_loss")),
           better="lower", optional=True),
    Metric("t_init", "T_init", lambda s: mean_available(s.t_init), unit="s", better="lower"),
    Metric("t_opt", "T_opt", lambda s: mean_available(s.t_opt), unit="s", better="lower"),
    Metric("iterations", "iterations", lambda s: mean_or_none(s.recorded("iterations")), better="lower",
           optional=True),
    Metric("converged", "loss converged", lambda s: mean_or_none(s.recorded("converged")), better="higher",
           optional=True),
)  # fmt: skip
"""Metrics of generated images of concepts.

All metrics in this registry are computed from a :class:`~experiments.evaluation.generation_metrics.GeneratedSet`.
"""

__all__ = ["EDITING", "INVERSION", "MAIN", "RARE_CONCEPTS", "Metric", "MetricRegister", "mean"]
