"""Report of the watermark experiment: tables, figures and one row per attacked image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import Tensor

from experiments.evaluation.metrics import bootstrap_interval
from experiments.reporting import figures as plots
from experiments.reporting.html_report import Thumbnails
from experiments.reporting.results import Report
from experiments.reporting.tables import Column, Rows, Table
from experiments.watermark.attacks import NO_ATTACK
from experiments.watermark.jobs import SCHEMES, ReadingJob

FinishedUnit = tuple[ReadingJob, Mapping[str, Tensor], Mapping[str, Any]]
"""A finished job, its stored tensors, and its stored dict of measured values."""

CONDITIONS = ("steps", "guidance", "sampler")
"""Names of the columns that describe how images were generated."""

IDENTITY = ("method", "scheme", "attack", *CONDITIONS, "read_steps", "nfe_per_step")
"""Names of the columns whose values together identify a row of the results table."""

RUNNING = ("bit_accuracy",)
"""Names of the columns whose running means are logged during the run."""

ALL_ATTACKS = "all attacks"
"""Value of the column ``attack`` in rows with the mean over all attacks, without the images that were not attacked."""

FALSE_POSITIVE_RATE = 0.01
"""Fraction of images without the watermark in which a watermark may be detected."""
BASELINE, OURS = "ddim", "accelerated"
"""Names of the two inversion methods that the report compares at the same number of network evaluations."""

BITS = Column("bit_accuracy", "bit accuracy, %", "higher", 100)
DETECTED = Column("tpr", "true positives, %", "higher", 100)
COUNT = Column("n", "n")
TITLES = {"gaussian_shading": "Gaussian Shading", "tree_ring": "Tree-Ring"}


def write_report(
    run_dir: Path,
    units: Sequence[FinishedUnit],
    forgeries: Rows,
    *,
    settings: Mapping[str, Any],
    loggers: Sequence[Logger],
    seed: int,
    skipped: Mapping[str, str],
) -> list[dict]:
    """Write all results to ``run_dir`` and to the loggers; return the rows of the results table.

    Args:
        forgeries: one row per forged image.
        settings: all settings on which the results depend, which are stored with the results.
        seed: random seed of the bootstrap confidence intervals.
        skipped: dict from the name of each method that was not run to the reason.
    """
    sampled = [row for job, _, record in units for row in sample_rows(job, record["rows"])]
    # Two settings may contain the same images, attacks and methods. Their common rows are listed only once.
    unique = {(*(row[column] for column in IDENTITY), row["sample"]): row for row in sampled}
    samples = with_detections(list(unique.values()))
    rows = summarize(samples, seed)
    pairs = differences(samples, seed)
    forged = forgery_rows(forgeries, seed)
    tables = [*method_tables(rows), *pair_tables(pairs)]
    if forged:
        tables.append(forgery_table(forged))
    figures: dict[str, Callable[[], Figure]] = {}
    for title, group in by_condition(rows).items():
        figures[f"figures/bits_{_file_name(title)}"] = partial(accuracy_figure, group, title)
    if forged:
        figures["figures/forgery"] = partial(forgery_figure, forged)
    examples = next((tensors["examples"], job.attacks) for job, tensors, _ in units if job.first)
    figures["images/attacks"] = partial(attack_figure, *examples)
    without_lists = [{name: value for name, value in row.items() if name != "other_p_values"} for row in samples]
    report = Report(
        rows=rows,
        settings=settings,
        samples=without_lists,
        tables=tables,
        figures=figures,
        notes=[
            "Bit accuracy of Gaussian Shading: 50 % is the expected value without a watermark. True positives: share "
            "of the images whose p-value is below the p-values of 99 % of the images without the watermark, for the "
            "same method and attack. NFE: network evaluations per inverted image. Seed error: root mean square of the "
            "difference between the inverted seed and the seed of the image. Shift by the attack: root mean square of "
            "the difference between the inverted seeds of the image with and without the attack.",
        ],
        identity=IDENTITY,
        values=[BITS, DETECTED],
        extra_sections={"skipped": skipped, "pairs": pairs, "forgery": forged},
        extra_tables={"pairs": pairs, "forgery": forged},
        details=detail_tables(rows),
        thumbnails=partial(thumbnails, *examples),
    )
    report.write(run_dir, loggers, step=len(units))
    return rows


def sample_rows(job: ReadingJob, records: Rows) -> list[dict[str, Any]]:
    """Return one row per type of watermark, attack and image of a job, with the setting and the measured values."""
    setting = job.setting
    conditions = {
        "method": job.method,
        "steps": setting.steps,
        "guidance": job.guidance,
        "sampler": setting.sampler,
        "read_steps": setting.inversion_steps,
        "nfe_per_step": setting.nfe,
    }
    return [{**conditions, **record} for record in records]


def with_detections(samples: Rows) -> list[dict[str, Any]]:
    """Add the columns ``detected`` and ``false_positives`` to the rows of single images.

    The column ``detected`` is 1 if the p-value of the image is below a threshold, else 0. A separate threshold is
    computed for each row of the results table (:data:`IDENTITY`): at most 1 % of the p-values that wrong keys have in
    the row are below the threshold. The column ``false_positives`` is the fraction of the p-values of wrong keys that
    are at most 0.01. The expected fraction is 0.01 if the p-values are calibrated.
    """
    result = []
    for group in groups(samples).values():
        others = np.sort(np.concatenate([sample["other_p_values"] for sample in group]))
        threshold = others[int(FALSE_POSITIVE_RATE * len(others))]
        rate = float((others <= FALSE_POSITIVE_RATE).mean())
        result += [
            {**sample, "detected": float(sample["p_value"] < threshold), "false_positives": rate} for sample in group
        ]
    return result


def groups(samples: Rows, identity: Sequence[str] = IDENTITY) -> dict[tuple, list[Mapping[str, Any]]]:
    """Group the rows of single images; the keys are tuples of the values of the columns ``identity``."""
    rows: dict[tuple, list[Mapping[str, Any]]] = {}
    for sample in samples:
        rows.setdefault(tuple(sample[name] for name in identity), []).append(sample)
    return rows


def summarize(samples: Rows, seed: int) -> list[dict[str, Any]]:
    """Return the rows of the results table.

    There is one row per method, setting, type of watermark and attack. Additional rows contain the means over all
    attacks.
    """
    rows = [_row(group, group[0]["attack"], seed) for group in groups(samples).values()]
    attacked = [sample for sample in samples if sample["attack"] != NO_ATTACK]
    without_attack = [name for name in IDENTITY if name != "attack"]
    return rows + [_row(group, ALL_ATTACKS, seed) for group in groups(attacked, without_attack).values()]


def _row(group: Rows, attack: str, seed: int) -> dict[str, Any]:
    """Return the row of the results table for the images in ``group``.

    The confidence intervals are computed with a bootstrap over images. The only exception is the interval of the true
    positives of a single attack, which is Wilson's interval.
    """
    names = [sample["sample"] for sample in group]
    row = {name: group[0][name] for name in IDENTITY} | {"attack": attack}
    for name in ("bit_accuracy", "sign_accuracy"):
        values = [sample[name] for sample in group]
        has_bits = values[0] is not None
        row[name] = float(np.mean(values)) if has_bits else None
        row[f"{name}_low"], row[f"{name}_high"] = (
            bootstrap_interval(values, names, seed=seed) if has_bits else (None, None)
        )
    detected = [sample["detected"] for sample in group]
    row["tpr"] = float(np.mean(detected))
    if attack == ALL_ATTACKS:
        row["tpr_low"], row["tpr_high"] = bootstrap_interval(detected, names, seed=seed)
    else:
        interval = binomtest(int(sum(detected)), len(detected)).proportion_ci(method="wilson")
        row["tpr_low"], row["tpr_high"] = float(interval.low), float(interval.high)
    row["false_positives"] = float(np.mean([sample["false_positives"] for sample in group]))
    for name in ("seed_error", "seed_shift", "nfe"):
        row[name] = float(np.mean([sample[name] for sample in group]))
    return row | {"n": len(set(names))}


def differences(samples: Rows, seed: int) -> list[dict[str, Any]]:
    """Compare the methods ``accelerated`` and ``ddim`` at the same planned number of network evaluations per image.

    A difference is the value of ``accelerated`` minus the value of ``ddim``. The two methods read the same images, so
    that the differences are paired. The confidence interval is computed with a bootstrap over images.
    """
    by_budget: dict[tuple, dict[str, dict[tuple, Mapping[str, Any]]]] = {}
    for sample in samples:
        if sample["method"] in (BASELINE, OURS):
            per_step = 1 if sample["method"] == BASELINE else sample["nfe_per_step"]
            if per_step is not None:
                condition = (*(sample[name] for name in CONDITIONS), sample["read_steps"] * per_step)
                values = by_budget.setdefault(condition, {}).setdefault(sample["method"], {})
                values[sample["scheme"], sample["attack"], sample["sample"]] = sample
    rows = []
    for (*condition, budget), methods in by_budget.items():
        if len(methods) < 2:
            continue
        common = [key for key in methods[BASELINE] if key in methods[OURS]]
        for scheme, attack in dict.fromkeys((scheme, attack) for scheme, attack, _ in common):
            keys = [key for key in common if key[:2] == (scheme, attack)]
            column = "bit_accuracy" if methods[BASELINE][keys[0]]["bit_accuracy"] is not None else "detected"
            values = {name: [each[key][column] for key in keys] for name, each in methods.items()}
            gains = np.subtract(values[OURS], values[BASELINE])
            low, high = bootstrap_interval(gains.tolist(), seed=seed)
            rows.append(
                {
                    **dict(zip(CONDITIONS, condition, strict=True)),
                    "scheme": scheme,
                    "attack": attack,
                    "nfe": budget,
                    BASELINE: float(np.mean(values[BASELINE])),
                    OURS: float(np.mean(values[OURS])),
                    "difference": float(gains.mean()),
                    "difference_low": low,
                    "difference_high": high,
                    "n": len(keys),
                }
            )
    return rows


def forgery_rows(samples: Rows, seed: int) -> list[dict[str, Any]]:
    """Return one row per type of watermark and number of averaged images.

    The column ``tpr`` is the fraction of forged images whose p-value is at most 0.01.
    """
    rows = []
    for (scheme, images), group in groups(samples, ("scheme", "images")).items():
        detected = [sample["p_value"] <= FALSE_POSITIVE_RATE for sample in group]
        interval = binomtest(sum(detected), len(detected)).proportion_ci(method="wilson")
        row = {
            "scheme": scheme,
            "images": images,
            "tpr": float(np.mean(detected)),
            "tpr_low": float(interval.low),
            "tpr_high": float(interval.high),
            "bit_accuracy": None,
            "n": len(group),
        }
        if group[0]["bit_accuracy"] is not None:
            values = [sample["bit_accuracy"] for sample in group]
            row["bit_accuracy"] = float(np.mean(values))
            row["bit_accuracy_low"], row["bit_accuracy_high"] = bootstrap_interval(values, seed=seed)
        rows.append(row)
    return rows


def by_condition(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Group rows by steps, guidance scale and sampler; the keys are titles such as ``10 steps, guidance 3``."""
    result: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        sampler = f", {row['sampler']}" if row["sampler"] else ""
        result.setdefault(f"{row['steps']} steps, guidance {row['guidance']:g}{sampler}", []).append(row)
    return result


def _label(row: Mapping[str, Any]) -> str:
    """Return the name of a method.

    The number of inversion steps is added if it differs from the number of sampling steps.
    """
    return row["method"] if row["read_steps"] == row["steps"] else f"{row['method']}, {row['read_steps']} steps"


def method_tables(rows: Rows) -> list[Table]:
    """Return one table for each combination of steps, guidance scale and sampler, with one row per method and NFE."""
    columns = [
        Column("label", "method"),
        Column("nfe", "NFE"),
        Column("clean", "bits without attack, %", "higher", 100),
        Column("attacked", "bits, all attacks, %", "higher", 100),
        Column("gaussian_shading", "found, Gaussian Shading, %", "higher", 100),
        Column("tree_ring", "found, Tree-Ring, %", "higher", 100),
        COUNT,
    ]
    tables = []
    for title, group in by_condition(rows).items():
        attacks = [row["attack"] for row in group if row["attack"] not in (NO_ATTACK, ALL_ATTACKS)]
        merged = []
        for same_method in groups(group, ("method", "read_steps", "nfe_per_step")).values():
            cells = {(row["scheme"], row["attack"]): row for row in same_method}
            line = {"label": _label(same_method[0]), "nfe": same_method[0]["nfe"], "n": same_method[0]["n"]}
            _copy(line, "clean", cells.get(("gaussian_shading", NO_ATTACK)), "bit_accuracy")
            _copy(line, "attacked", cells.get(("gaussian_shading", ALL_ATTACKS)), "bit_accuracy")
            for scheme in SCHEMES:
                _copy(line, scheme, cells.get((scheme, ALL_ATTACKS if attacks else NO_ATTACK)), "tpr")
            merged.append(line)
        names = ", ".join(dict.fromkeys(attacks)) or "no attack"
        tables.append(Table(sorted(merged, key=lambda line: line["nfe"]), columns, f"{title}; attacks: {names}"))
    return tables


def _copy(line: dict[str, Any], name: str, row: Mapping[str, Any] | None, column: str) -> None:
    """Copy the value ``column`` of ``row`` and its confidence interval to ``line``, under the key ``name``.

    If ``row`` is None, nothing is copied.
    """
    for suffix in ("", "_low", "_high") if row is not None else ():
        line[f"{name}{suffix}"] = row[f"{column}{suffix}"]


def pair_tables(pairs: Rows) -> list[Table]:
    """Return the tables that compare ``accelerated`` with ``ddim``, one per setting and type of watermark."""
    tables = []
    for title, group in by_condition(pairs).items():
        for scheme, same_scheme in groups(group, ("scheme",)).items():
            value = "bit accuracy" if scheme[0] == "gaussian_shading" else "true positives"
            columns = [
                Column("attack", "attack"),
                Column("nfe", "NFE"),
                Column(BASELINE, f"{BASELINE}, %", scale=100),
                Column(OURS, f"{OURS}, %", scale=100),
                Column("difference", "difference, points", scale=100, signed=True),
                COUNT,
            ]
            rows = sorted(same_scheme, key=lambda row: row["nfe"])
            tables.append(Table(rows, columns, f"{TITLES[scheme[0]]}, {value} at the same NFE: {title}"))
    return tables


def forgery_table(rows: Rows) -> Table:
    columns = [
        Column("scheme", "watermark"),
        Column("images", "averaged images"),
        Column("bit_accuracy", "bits of the forged image, %", scale=100),
        Column("tpr", "forged images with p <= 0.01, %", scale=100),
        Column("n", "keys"),
    ]
    return Table([{**row, "scheme": TITLES[row["scheme"]]} for row in rows], columns, "Forgery without the key")


def detail_tables(rows: Rows) -> list[Table]:
    """Return the detailed tables at the end of the HTML report, with one row per method, NFE and attack."""
    columns = [
        Column("label", "method"),
        Column("attack", "attack"),
        Column("nfe", "NFE"),
        BITS,
        DETECTED,
        Column("seed_error", "seed error", "lower"),
        Column("seed_shift", "shift by the attack", "lower"),
        Column("false_positives", "p <= 0.01 without watermark, %", scale=100),
        COUNT,
    ]
    tables = []
    for title, group in by_condition(rows).items():
        for scheme, same_scheme in groups(group, ("scheme",)).items():
            lines = [{**row, "label": _label(row)} for row in same_scheme]
            tables.append(Table(lines, columns, f"{TITLES[scheme[0]]}: {title}", within=["attack"]))
    return tables


def accuracy_figure(rows: Rows, title: str) -> Figure:
    """Plot the bit accuracy against the number of network evaluations per image, with one panel per attack."""
    rows = [row for row in rows if row["bit_accuracy"] is not None]
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    columns = min(len(attacks), 3)
    figure, axes = plots.panels(columns, rows=-(-len(attacks) // columns))
    flat = [axis for line in axes for axis in line]
    styles = plots.method_styles(row["method"] for row in rows)
    for attack, axis in zip(attacks, flat, strict=False):
        group = [row for row in rows if row["attack"] == attack]
        for method in plots.ours_third(row["method"] for row in group):
            curve = [row for row in group if row["method"] == method]
            plots.line(axis, curve, "nfe", "bit_accuracy", scale=100, label=method, **styles[method])
        axis.axhline(50, color="black", linestyle=":", linewidth=1)
        axis.set(title=attack, xlabel="network evaluations per image", ylabel="bit accuracy, %", xscale="log")
        plots.value_ticks(axis, [row["nfe"] for row in group])
    for axis in flat[len(attacks) :]:
        axis.set_visible(False)
    figure.suptitle(title)
    plots.shared_legend(figure, flat[: len(attacks)])
    return figure


def forgery_figure(rows: Rows) -> Figure:
    """Plot the fraction of forged images in which the watermark is detected against the number of averaged images."""
    figure, ((axis,),) = plots.panels(1)
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        group = [row for row in rows if row["scheme"] == scheme]
        (line,) = axis.plot(
            [row["images"] for row in group], [100 * row["tpr"] for row in group], "o-", label=TITLES[scheme]
        )
        plots.interval_band(axis, group, "images", "tpr", scale=100, color=line.get_color())
    axis.set(xlabel="averaged images with one key", ylabel="forged images with p <= 0.01, %", ylim=(-3, 103))
    plots.value_ticks(axis, [row["images"] for row in rows])
    plots.shared_legend(figure, [axis])
    return figure


def attack_figure(examples: Tensor, attacks: Sequence[str]) -> Figure:
    """Draw the images ``examples [S,A,3,H,W]`` (uint8), for S types of watermark (rows) and A attacks (columns)."""
    rows = [(TITLES[scheme], list(images)) for scheme, images in zip(SCHEMES, examples, strict=True)]
    return plots.image_grid(rows, list(attacks), "Watermarked images after each attack")


def thumbnails(examples: Tensor, attacks: Sequence[str]) -> list[Thumbnails]:
    """Return the images of the HTML report: an example image for each attack and each type of watermark."""
    pairs = [(list(examples[:, a]), attack) for a, attack in enumerate(attacks)]
    return [Thumbnails("Attacked images: Gaussian Shading and Tree-Ring", pairs)]


def _file_name(title: str) -> str:
    return title.replace(", ", "_").replace(" ", "")
