"""Figures of an inversion experiment, drawn from the rows of the results table and from the metrics of each image."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.finite import select_finite
from experiments.inversion.jobs import PromptSource, Setting
from experiments.reporting import figures as plots

Rows = Sequence[Mapping[str, Any]]

EMPTY_TITLE = ", empty prompt"


def by_setting(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Select the rows for the curves, and group the selected rows by number of steps, guidance scale and prompt.

    A row is selected if it satisfies three conditions. The images are real, and their latents are the output of the
    VAE's encoder (no decoder inversion). The prompt is the caption or empty. The inversion called the network.

    Returns:
        A dict from the title of each group to the rows of the group. The group with the largest number of steps is
        first.
    """
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (-(row["steps"] or 0), row["guidance"] or 0, row["prompt"])):
        if row["images"] == "real" and row["prompt"] in ("caption", "empty") and row.get("nfe_per_step", 0) > 0:
            title = f"{row['steps']} steps, guidance {row['guidance']:g}"
            settings.setdefault(title + EMPTY_TITLE * (row["prompt"] == "empty"), []).append(row)
    return settings


def is_edited(row: Mapping[str, Any]) -> bool:
    """Return whether the images of ``row`` were sampled with an edited prompt."""
    return row["prompt"] not in get_args(PromptSource)


def is_vae_bound(row: Mapping[str, Any]) -> bool:
    """Return whether the images of ``row`` were only encoded and decoded by the VAE, without inversion."""
    return row["steps"] is None


def _curves(axis: Axes, rows: Rows, column: str, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Plot the finite values of ``column`` against network evaluations per step, with one curve per method."""
    for method in plots.ours_third(row["method"] for row in rows):
        method_rows = [row for row in rows if row["method"] == method]
        plots.line(axis, method_rows, "nfe_per_step", column, label=method, **styles[method])
    axis.set_xlabel("network evaluations per step")
    plots.value_ticks(axis, [row["nfe_per_step"] for row in rows])


def _styles(rows: Rows) -> dict[str, dict[str, Any]]:
    return plots.method_styles([row["method"] for row in rows])


def nfe(rows: Rows, _: Rows) -> Figure:
    """Plot the PSNR (Fig. 3a of the RNRI paper) and the latent MSE against the number of network evaluations per step.

    A dashed line shows the PSNR of images that the VAE only encodes and decodes, which is an upper bound for every
    inversion method.
    """
    settings = by_setting(rows)
    figure, axes = plots.panels(len(settings), rows=2)
    styles = _styles(rows)
    for (title, group), top, bottom in zip(settings.items(), *axes, strict=True):
        bound = group[0]["psnr"] + group[0]["vae_gap"]
        top.axhline(bound, color="black", linestyle="--", linewidth=1, label="VAE")
        _curves(top, group, "psnr", styles)
        top.set(title=title, ylabel="PSNR, dB")
        _curves(bottom, group, "latent_mse", styles)
        bottom.set(yscale="log", ylabel="latent MSE")
    plots.shared_legend(figure, [axis for line in axes for axis in line])
    return figure


def residuals(rows: Rows, _: Rows) -> Figure:
    """Plot the mean residual against the number of network evaluations per step (Fig. 3b of the RNRI paper).

    Each inversion step solves an implicit equation ``z = f(z)`` for the latent ``z``. The plotted values are the
    residuals ``|z - f(z)|``, averaged over images and steps. Settings whose rows all have the same number of network
    evaluations are not shown, unless all settings are of this kind.
    """
    settings = by_setting(rows)
    varying = {title: group for title, group in settings.items() if len({row["nfe"] for row in group}) > 1}
    settings = varying or settings
    figure, (axes,) = plots.panels(len(settings))
    for (title, group), axis in zip(settings.items(), axes, strict=True):
        _curves(axis, group, "residual_mean", _styles(rows))
        axis.set(yscale="log", title=title, ylabel="mean |z - f(z)|")
    plots.shared_legend(figure, axes)
    return figure


def detection(_: Rows, samples: Rows) -> Figure:
    """Plot histograms of the mean residual of images that were inverted with captions and with wrong prompts.

    There is one panel per inversion method.
    """
    methods = plots.ours_third(s["method"] for s in samples if np.isfinite(s.get("residual_mean", np.nan)))
    figure, (axes,) = plots.panels(len(methods))
    for method, axis in zip(methods, axes, strict=True):
        for prompt in ("caption", "wrong"):
            group = [s for s in samples if s["method"] == method and s["prompt"] == prompt]
            values = [s["residual_mean"] for s in group if np.isfinite(s.get("residual_mean", np.nan))]
            label = "caption" if prompt == "caption" else "wrong prompt"
            axis.hist(np.log10(np.maximum(values, 1e-12)), bins=24, alpha=0.55, label=label)
        axis.set(title=method, xlabel="log10 of the mean residual", ylabel="images")
    plots.shared_legend(figure, axes)
    return figure


def editing(rows: Rows, _: Rows) -> Figure:
    """Plot the CLIP score of edited images against their perceptual distance to the source images.

    The CLIP score compares an edited image with the edited prompt.

    The axes are similar to the axes of Figure 6 of the RNRI paper.
    """
    unedited = {row["prompt"]: row for row in rows if is_vae_bound(row)}
    edited = [row for row in rows if is_edited(row) and not is_vae_bound(row)]
    settings: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in edited:
        settings.setdefault((row["steps"], row["guidance"], row["prompt"]), []).append(row)
    figure, (axes,) = plots.panels(len(settings))
    styles = _styles(edited)
    for ((steps, guidance, edit), group), axis in zip(settings.items(), axes, strict=True):
        if original := unedited.get(edit):
            axis.plot(original["perceptual"], original["clip_score"], "k*", markersize=10, label="unedited image")
        for row in sorted(group, key=lambda row: list(styles).index(row["method"])):
            plots.point(axis, row, "perceptual", "clip_score", label=row["method"], **styles[row["method"]])
        axis.set(
            title=f"{steps} steps, guidance {guidance:g}\n{edit}",
            xlabel="perceptual distance to the image",
            ylabel="CLIP score with the edited prompt",
        )
    plots.shared_legend(figure, axes)
    return figure


FIGURES: dict[str, Callable[[Rows, Rows], Figure]] = {
    "nfe": nfe,
    "residuals": residuals,
    "detection": detection,
    "editing": editing,
}


def images_to_save(**images: Tensor) -> dict[str, Tensor]:
    """Convert the images without NaN and infinite pixels of each batch ``[B, 3, H, W]`` to uint8.

    For a batch ``NAME``, the returned dict contains the converted images ``NAME`` and the mask ``NAME_finite``, which
    is a tensor ``bool [B]`` that is True for the converted images.
    """
    tensors = {}
    for name, batch in images.items():
        tensors[name], tensors[f"{name}_finite"] = select_finite(batch)
    return tensors


def load_images(tensors: Mapping[str, Tensor], name: str) -> list[Tensor | None]:
    """Return the images that :func:`images_to_save` stored as ``name``.

    An image with NaN or infinite pixels is None.
    """
    images = iter(tensors[name])
    return [next(images) if finite else None for finite in tensors[f"{name}_finite"]]


def image_figures(results: Sequence[tuple]) -> dict[str, Callable[[], Figure]]:
    """Return a dict from file name to a function that draws images and their reconstructions by each method.

    There is one figure per setting, such as a number of steps and a guidance scale.
    """
    settings: dict[str, dict[str, Any]] = {}
    for job, tensors, _ in results:
        if not job.first or job.inverter is None or not _has_figure(job.setting):
            continue
        rows = settings.setdefault(_title(job.setting), {"image": load_images(tensors, "images")})
        rows.setdefault(job.method, load_images(tensors, "reconstructions"))
    figures = {}
    for title, images in settings.items():
        rows = list(images.items())
        file_name = re.sub(r"[^\w.]+", "-", title.replace(", ", "_").replace(" ", ""))
        figures[file_name] = partial(plots.image_grid, rows, [""] * len(rows[0][1]), title)
    return figures


def _has_figure(setting: Setting) -> bool:
    return not (setting.prompt == "wrong" or setting.generated or setting.decoder_iterations)


def _title(setting: Setting) -> str:
    title = f"{setting.steps} steps, guidance {setting.guidance:g}"
    if setting.nfe is not None:
        title += f", NFE {setting.nfe}"
    if setting.edit:
        title += f", {setting.prompt_label}"
    if setting.prompt == "empty":
        title += EMPTY_TITLE
    return title
