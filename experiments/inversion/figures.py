"""Figures of an inversion study, each from the rows of its table and its samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from experiments.reporting import tables
from experiments.reporting.finite import select_finite

Rows = Sequence[Mapping[str, Any]]


def by_setting(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of real images under their own prompts where there is a network evaluation to plot, finest steps first.

    Other latents than the encoder's have another ceiling, and are left out.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (-(row["steps"] or 0), row["guidance"] or 0)):
        if row["images"] == "real" and row["prompts"] == "right" and row.get("nfe_per_step", 0) > 0:
            found.setdefault(f"{row['steps']} steps, guidance {row['guidance']:g}", []).append(row)
    return found


def is_edited(row: Mapping[str, Any]) -> bool:
    """Whether the row is of images sampled under an edited prompt."""
    return row["prompts"] not in ("right", "wrong")


def is_vae_bound(row: Mapping[str, Any]) -> bool:
    """Whether the row is of images that were only encoded and decoded."""
    return row["steps"] is None


def _styles(rows: Rows) -> dict[str, dict[str, Any]]:
    """A color and a marker for each method, the same in every panel."""
    names = dict.fromkeys(row["method"] for row in rows)
    colors, markers = plt.get_cmap("tab10" if len(names) <= 10 else "tab20").colors, "osD^vP*"
    return {name: {"color": colors[k % len(colors)], "marker": markers[k % 7]} for k, name in enumerate(names)}


def _panels(count: int, lines: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """``lines`` of ``count`` panels; ValueError where there is nothing to draw."""
    if not count:
        raise ValueError("the study has no rows that it could show")
    figure, axes = plt.subplots(lines, count, figsize=(4.6 * count + 1.6, 0.4 + 3.2 * lines), squeeze=False)
    return figure, [list(line) for line in axes]


def _curves(axis: Axes, rows: Rows, value: str, styles: Mapping[str, Mapping[str, Any]]) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        own = sorted((r for r in rows if r["method"] == method), key=lambda r: r["nfe_per_step"])
        known = [(r["nfe_per_step"], r[value]) for r in own if np.isfinite(r.get(value, np.nan))]
        if known:
            axis.plot(*zip(*known, strict=True), markersize=4.5, linewidth=1.2, label=method, **styles[method])
    axis.set_xlabel("network evaluations a step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=7.5, loc="center left", bbox_to_anchor=(0.99, 0.5),
                  frameon=False)  # fmt: skip
    figure.tight_layout()


def nfe(rows: Rows, _: Rows) -> Figure:
    """PSNR against evaluations (Fig. 3a), the VAE's ceiling dashed, and latent MSE below it."""
    settings = by_setting(rows)
    figure, axes = _panels(len(settings), lines=2)
    styles = _styles(rows)
    for (title, own), top, bottom in zip(settings.items(), *axes, strict=True):
        top.axhline(own[0]["psnr"] + own[0]["vae_gap"], color="black", linestyle="--", linewidth=1, label="VAE")
        _curves(top, own, "psnr", styles)
        top.set(title=title, ylabel="PSNR, dB")
        _curves(bottom, own, "latent_mse", styles)
        bottom.set(yscale="log", ylabel="latent MSE")
    _legend(figure, [axis for line in axes for axis in line])
    return figure


def residuals(rows: Rows, _: Rows) -> Figure:
    """Residual against evaluations (Fig. 3b), mean over images and steps; of settings that vary them, if any do."""
    settings = by_setting(rows)
    several = {title: own for title, own in settings.items() if len({row["nfe"] for row in own}) > 1}
    settings = several or settings
    figure, (axes,) = _panels(len(settings))
    for (title, own), axis in zip(settings.items(), axes, strict=True):
        _curves(axis, own, "residual_mean", _styles(rows))
        axis.set(yscale="log", title=title, ylabel="mean |z - f(z)|")
    _legend(figure, axes)
    return figure


def detection(_: Rows, samples: Rows) -> Figure:
    """Residuals of images under their own and under wrong prompts, method by method."""
    methods = list(dict.fromkeys(s["method"] for s in samples if np.isfinite(s.get("residual_mean", np.nan))))
    figure, (axes,) = _panels(len(methods))
    for method, axis in zip(methods, axes, strict=True):
        for prompts in ("right", "wrong"):
            own = [s for s in samples if s["method"] == method and s["prompts"] == prompts]
            values = [s["residual_mean"] for s in own if np.isfinite(s.get("residual_mean", np.nan))]
            axis.hist(np.log10(np.maximum(values, 1e-12)), bins=24, alpha=0.55, label=f"{prompts} prompt")
        axis.set(title=method, xlabel="log10 of the mean residual", ylabel="images")
    _legend(figure, axes)
    return figure


def editing(rows: Rows, _: Rows) -> Figure:
    """CLIP score under the edited prompt against the perceptual distance to the image (Fig. 6), a panel a setting."""
    unedited = {row["prompts"]: row for row in rows if is_vae_bound(row)}
    edited = [row for row in rows if is_edited(row) and not is_vae_bound(row)]
    settings: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in edited:
        settings.setdefault((row["steps"], row["guidance"], row["prompts"]), []).append(row)
    figure, (axes,) = _panels(len(settings))
    styles = _styles(edited)
    for ((steps, guidance, edit), own), axis in zip(settings.items(), axes, strict=True):
        if itself := unedited.get(edit):
            axis.plot(itself["perceptual"], itself["clip_score"], "k*", markersize=10, label="the image itself")
        for row in own:
            spread = np.array([tables.whiskers(row, "clip_score")]).T
            axis.errorbar(row["perceptual"], row["clip_score"], spread, linewidth=1, linestyle="none",
                          label=row["method"], **styles[row["method"]])  # fmt: skip
        axis.set(title=f"{steps} steps, guidance {guidance:g}\n{edit}", ylabel="CLIP score of the edited prompt",
                 xlabel="perceptual distance to the image")  # fmt: skip
    _legend(figure, axes)
    return figure


FIGURES: dict[str, Callable[[Rows, Rows], Figure]] = {
    "nfe": nfe,
    "residuals": residuals,
    "detection": detection,
    "editing": editing,
}


def kept_pictures(**images: Tensor) -> dict[str, Tensor]:
    """The bytes of images ``[B, 3, H, W]`` by name, and beside them which of the B are finite: the others have none."""
    kept = {}
    for name, own in images.items():
        kept[name], kept[f"{name}_finite"] = select_finite(own)
    return kept


def _shown(tensors: Mapping[str, Tensor], name: str) -> list[Tensor | None]:
    """Those images again, None for those that are not finite."""
    kept = iter(tensors[name])
    return [next(kept) if finite else None for finite in tensors[f"{name}_finite"]]


def pictures(found: Sequence[tuple]) -> dict[str, Callable[[], Figure]]:
    """For each setting what draws its images, and below them what each method makes of them with as many evaluations.

    By the name of their file.
    """
    groups: dict[str, dict[str, Any]] = {}
    for job, tensors, _ in found:
        setting = job.setting
        if (
            not job.first
            or job.inverter is None
            or setting.wrong_prompts
            or setting.generated
            or setting.decoder_iterations
        ):
            continue
        name = f"{setting.steps} steps, guidance {setting.guidance:g}"
        if setting.nfe is not None:
            name += f", {setting.nfe} evaluations"
        if setting.edit:
            name += f", {setting.prompts}"
        group = groups.setdefault(name, {"image": _shown(tensors, "images")})
        group.setdefault(job.method, _shown(tensors, "reconstructions"))
    figures = {}
    for name, group in groups.items():
        rows = list(group.items())
        file = re.sub(r"[^\w.]+", "-", name.replace(", ", "_").replace(" ", ""))
        figures[file] = partial(tables.image_table, rows, [""] * len(rows[0][1]), name)
    return figures
