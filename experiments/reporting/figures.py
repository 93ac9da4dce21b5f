"""Plotting with matplotlib: the style and the shared functions for the figures of all experiments.

The functions create panels (subplots), draw error bars, image grids and legends, and save figures.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use(os.environ.get("MPLBACKEND", "Agg"))  # notebooks set MPLBACKEND to show figures inline

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogFormatter,
    LogFormatterMathtext,
    LogLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)

from experiments.cache.atomic import CannotWrite, atomic_write

STYLE = {
    "text.parse_math": False,  # names that contain dollar signs are not typeset as formulas
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "errorbar.capsize": 3.0,
}
matplotlib.rcParams.update(STYLE)

PANEL_SIZE = (4.6, 3.2)  # width and height of a panel, in inches
CELL_SIZE = 1.25  # width and height of an image in a grid, in inches
DPI = 110
MARKERS = "osD^vP*"


def panels(columns: int, rows: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """Create a figure with ``rows`` x ``columns`` panels; return the figure and the axes of each row of panels.

    Raises:
        ValueError: ``columns`` is 0.
    """
    if not columns:
        raise ValueError("there are no rows to plot")
    width, height = PANEL_SIZE
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns + 1.6, height * rows + 0.4), squeeze=False)
    return figure, [list(line) for line in axes]


def panel(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure with a single panel of ``width`` x ``height`` inches."""
    return plt.subplots(figsize=(width, height))


def method_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the color and the marker of each method name, so that all panels of a figure use the same ones."""
    unique = list(dict.fromkeys(names))
    colors = plt.get_cmap("tab10" if len(unique) <= 10 else "tab20").colors
    return {
        name: {"color": colors[k % len(colors)], "marker": MARKERS[k % len(MARKERS)]} for k, name in enumerate(unique)
    }


def error_lengths(row: Mapping[str, Any], name: str, scale: float = 1.0) -> tuple[float, float]:
    """Return the lengths of the error bar below and above the value in column ``name`` of ``row``.

    The ends of the error bar are the columns ``NAME_low`` and ``NAME_high``. Lengths that are negative because of
    rounding errors are set to 0.

    Args:
        scale: factor by which the value and the ends are multiplied.
    """
    value, low, high = (scale * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return max(0.0, value - low), max(0.0, high - value)


def error_bars(rows: Sequence[Mapping[str, Any]], name: str, scale: float = 1.0) -> np.ndarray:
    """Return the lengths of error bars as an array ``[2, number of rows]`` for matplotlib's ``yerr`` and ``xerr``."""
    return np.array([error_lengths(row, name, scale) for row in rows]).T


def point(axis: Axes, row: Mapping[str, Any], x: str, y: str, **style: Any) -> None:
    """Plot ``row`` as a point with an error bar in the direction of y, unless the value of ``y`` is missing.

    Args:
        x: name of the column with the x coordinate.
        y: name of the column with the y coordinate.
        **style: keyword arguments of matplotlib, such as the color and the marker.
    """
    if row.get(y) is not None and np.isfinite(row[y]):
        axis.errorbar(row[x], row[y], error_bars([row], y), linestyle="none", elinewidth=1, capsize=0, **style)


def line(axis: Axes, rows: Sequence[Mapping[str, Any]], x: str, y: str, *, scale: float = 1.0, **style: Any) -> None:
    """Plot column ``y`` of ``rows``, multiplied by ``scale``, as a curve over column ``x``.

    Rows in which ``y`` is missing, NaN or infinite are omitted.
    """
    points = sorted((row[x], scale * row[y]) for row in rows if row.get(y) is not None and np.isfinite(row[y]))
    if points:
        axis.plot(*zip(*points, strict=True), **style)


def interval_band(
    axis: Axes, rows: Sequence[Mapping[str, Any]], x: str, y: str, *, scale: float = 1.0, **style: Any
) -> None:
    """Fill the area between the columns ``Y_low`` and ``Y_high`` of ``rows``, over column ``x``, with a pale color."""
    points = sorted((row[x], scale * row[f"{y}_low"], scale * row[f"{y}_high"]) for row in rows)
    if points:
        axis.fill_between(*zip(*points, strict=True), alpha=0.07, linewidth=0, **style)


def log_axis_with_plain_numbers(axis: Axes) -> None:
    """Make the x axis logarithmic, with tick labels at 1, 2 and 5 times the powers of ten."""
    axis.set_xscale("log")
    axis.xaxis.set(
        major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=ScalarFormatter(), minor_locator=NullLocator()
    )


def shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Add one legend for all panels to the right of them. Each label is shown once."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(0.99, 0.5))
    figure.tight_layout()


def image_grid(
    rows: Sequence[tuple[str, Sequence[Any]]],
    columns: Sequence[str],
    title: str,
    captions: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Create a figure with a grid of images, row labels and column heads.

    Args:
        rows: for each row of the grid, its label and its images ``uint8 [3, H, W]`` (arrays or tensors). If an image is
            None, the words "not finite" are shown in its place.
        columns: heads of the columns.
        title: title of the figure.
        captions: for each row of the grid, the texts below its images.
    """
    height = CELL_SIZE * len(rows) + 0.5
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(CELL_SIZE * len(columns) + 1.2, height), squeeze=False
    )
    for grid_row, (label, images) in zip(axes, rows, strict=True):
        for axis, image in zip(grid_row, images, strict=True):
            _draw_image(axis, image)
        grid_row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for axis, head in zip(axes[0], columns, strict=True):
        axis.set_title(head, fontsize=8)
    for grid_row, texts in zip(axes, captions or [], strict=bool(captions)):
        for axis, text in zip(grid_row, texts, strict=True):
            axis.set_xlabel(text, fontsize=6, labelpad=1)
    figure.suptitle(title, fontsize=10, y=1.0, va="bottom")
    figure.subplots_adjust(wspace=0.04, hspace=0.16 if captions else 0.04, top=1 - 0.25 / height)
    return figure


def _draw_image(axis: Axes, image: Any) -> None:
    if image is None:
        axis.text(0.5, 0.5, "not finite", ha="center", va="center", fontsize=7, transform=axis.transAxes)
    else:
        axis.imshow(np.moveaxis(np.asarray(image), 0, -1), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def accuracy_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Create a bar plot of the accuracy of each method in each frequency bucket, with 95 % confidence intervals."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    buckets = list(dict.fromkeys(row["bucket"] for row in rows))
    figure, axis = panel(1.6 + 1.5 * len(buckets), 3)
    width = 0.8 / len(methods)
    for m, method in enumerate(methods):
        row_of = {row["bucket"]: row for row in rows if row["method"] == method}
        positions = [b + (m - (len(methods) - 1) / 2) * width for b in range(len(buckets))]
        bars = [row_of[bucket] for bucket in buckets]
        heights = [100 * row["accuracy"] for row in bars]
        axis.bar(positions, heights, width * 0.92, yerr=error_bars(bars, "accuracy", 100), label=method)
    axis.set(xticks=range(len(buckets)), xticklabels=buckets, ylabel="accuracy, %", ylim=(0, 105))
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(methods))
    return figure


def save_figures(run_dir: Path, figures: Mapping[str, Callable[[], Figure]]) -> dict[str, Path]:
    """Draw figures and save them as ``run_dir / NAME.png``; return the files by the names of the figures in loggers.

    If a figure cannot be drawn, a warning is given, and the other figures are saved.

    Args:
        figures: functions that draw a figure, by the name of the figure.

    Raises:
        CannotWrite: a file of a figure cannot be written.
    """
    files = {}
    for name, draw in figures.items():
        try:
            files[name.removeprefix("figures/")] = save_figure(draw(), run_dir / f"{name}.png")
        except CannotWrite:
            plt.close("all")
            raise
        except Exception as error:  # matplotlib raises many types
            plt.close("all")
            warnings.warn(f"figure {name} could not be drawn ({type(error).__name__}: {error}).", stacklevel=2)
    return files


def save_figure(figure: Figure, path: Path) -> Path:
    """Save ``figure`` as a PNG file and close the figure."""
    for axis in (each for axes in figure.axes for each in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatterMathtext):  # STYLE would print its dollar signs
            axis.set(major_formatter=LogFormatter(), minor_formatter=NullFormatter())
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight"))
    plt.close(figure)
    return path
