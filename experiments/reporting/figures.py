"""Functions and style settings for the figures of all experiments, with matplotlib."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use(os.environ.get("MPLBACKEND", "Agg"))  # notebooks set MPLBACKEND to show figures inline

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogFormatterMathtext,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)

from experiments.cache.atomic import CannotWrite, atomic_write

STYLE = {
    "text.parse_math": False,  # do not interpret dollar signs in names as formulas
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "errorbar.capsize": 3.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "pdf.fonttype": 42,  # TrueType fonts, because conferences do not accept Type 3 fonts
}
matplotlib.rcParams.update(STYLE)

PANEL_SIZE = (4.6, 3.2)  # width and height of a panel, in inches
CELL_SIZE = 1.25  # width and height of an image in a grid, in inches
DPI = 110
MARKERS = "osD^vP*X<>hpd"
MARKER_SIZES = (8.0, 4.0)  # marker sizes of the first and the last method of a figure, in points
MAX_TICK_VALUES = 8  # maximum number of ticks that show the exact values of the plotted points


def panels(columns: int, rows: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """Create a figure with ``rows`` x ``columns`` subplots; return the figure and the axes of each row of subplots.

    Raises:
        ValueError: ``columns`` is 0.
    """
    if not columns:
        raise ValueError("columns: must be at least 1, got 0; pass at least one row of results.")
    width, height = PANEL_SIZE
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns + 1.6, height * rows + 0.4), squeeze=False)
    return figure, [list(line) for line in axes]


def panel(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure with a single subplot of ``width`` x ``height`` inches."""
    return plt.subplots(figsize=(width, height))


def is_ours(method: str) -> bool:
    """Return whether this project introduces ``method``, that is, its name is ``accelerated...`` or ``..._ours``."""
    return method.startswith("accelerated") or "ours" in method.split("_")


def ours_third(names: Iterable[str]) -> list[str]:
    """Return the distinct ``names`` in their order, except that the first method of this project becomes the third.

    Curves are drawn in this order. The first curves may be hidden by later curves, and the last curves may hide earlier
    curves.
    """
    unique = list(dict.fromkeys(names))
    ours = next(filter(is_ours, unique), None)
    if ours is not None:
        unique.remove(ours)
        unique.insert(2, ours)
    return unique


def method_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the color, marker and marker size of each method name, in the order of :func:`ours_third`.

    Markers become smaller from method to method, so that every marker is visible if several methods have equal values.
    """
    unique = ours_third(names)
    colors = plt.get_cmap("tab10" if len(unique) <= 10 else "tab20").colors
    sizes = np.linspace(*MARKER_SIZES, max(len(unique), 2))
    return {
        name: {
            "color": colors[k % len(colors)],
            "marker": MARKERS[k % len(MARKERS)],
            "markersize": float(sizes[k]),
        }
        for k, name in enumerate(unique)
    }


def error_lengths(row: Mapping[str, Any], name: str, scale: float = 1.0) -> tuple[float, float]:
    """Return the lengths of the error bar below and above the value in column ``name`` of ``row``.

    The ends of the error bar are the columns ``NAME_low`` and ``NAME_high``, where NAME is ``name``. A length that is
    negative because of rounding errors is set to 0.

    Args:
        row: dict from column name to value, including the ends of error bars.
        name: name of the column with the value.
        scale: factor by which the value and the ends are multiplied.
    """
    value, low, high = (scale * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return max(0.0, value - low), max(0.0, high - value)


def error_bars(rows: Sequence[Mapping[str, Any]], name: str, scale: float = 1.0) -> np.ndarray:
    """Return the lengths of error bars as an array ``[2, number of rows]`` for matplotlib's ``yerr`` and ``xerr``."""
    return np.array([error_lengths(row, name, scale) for row in rows]).T


def point(axis: Axes, row: Mapping[str, Any], x: str, y: str, **style: Any) -> None:
    """Plot ``row`` as a point with a vertical error bar, unless the y coordinate is missing.

    Args:
        axis: axes of the plot.
        row: dict from column name to value.
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
    """Fill the area between two columns of ``rows``, over column ``x``, with a pale color.

    The two columns are ``NAME_low`` and ``NAME_high``, where NAME is ``y``.
    """
    points = sorted((row[x], scale * row[f"{y}_low"], scale * row[f"{y}_high"]) for row in rows)
    if points:
        axis.fill_between(*zip(*points, strict=True), alpha=0.07, linewidth=0, **style)


def value_ticks(axis: Axes, values: Iterable[float]) -> None:
    """Set the ticks of the x axis to the distinct ``values``, or to round numbers if there are many values.

    The round numbers of a logarithmic axis are 1, 2 and 5 times the powers of ten. Tick labels that would overlap are
    rotated.
    """
    unique = sorted({float(value) for value in values if np.isfinite(value)})
    if 0 < len(unique) <= MAX_TICK_VALUES:
        labels = [f"{value:g}" for value in unique]
        axis.set_xticks(unique, labels, rotation=45 if sum(map(len, labels)) > 24 else 0)
        axis.xaxis.set_minor_locator(NullLocator())
    elif axis.get_xscale() == "log":
        axis.xaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=ScalarFormatter(), minor_locator=NullLocator()
        )
    elif axis.get_xscale() == "linear":
        integer = all(value.is_integer() for value in unique)
        axis.xaxis.set_major_locator(MaxNLocator(MAX_TICK_VALUES, integer=integer))
    if len(unique) == 1:
        axis.set_xlim(unique[0] - 1, unique[0] + 1)


def _readable_log_labels(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis with plain numbers, because ``STYLE`` disables matplotlib's formulas.

    If the axis spans less than two powers of ten, the ticks are 1, 2 and 5 times the powers of ten.
    """
    low, high = axis.get_view_interval()
    if low > 0 and high / low < 100:
        axis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
    axis.set(major_formatter=FuncFormatter(lambda value, _: f"{value:g}"), minor_formatter=NullFormatter())


def shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Add one legend for all subplots to the right of the subplots, in which each label occurs once."""
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
        rows: label and images of each row of the grid. The images are arrays or tensors ``uint8 [3, H, W]``; the words
            "not finite" replace an image that is None.
        columns: heads of the columns.
        title: title of the figure.
        captions: texts below the images of each row of the grid.
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
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def accuracy_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Create a bar plot of the accuracy of each method on each group of concepts, with 95 % confidence intervals."""
    styles = method_styles(row["method"] for row in rows)
    buckets = list(dict.fromkeys(row["bucket"] for row in rows))
    figure, axis = panel(1.6 + 1.5 * len(buckets), 3)
    width = 0.8 / len(styles)
    for m, (method, style) in enumerate(styles.items()):
        row_of = {row["bucket"]: row for row in rows if row["method"] == method}
        present = [b for b, bucket in enumerate(buckets) if bucket in row_of]  # a method may lack a group of concepts
        positions = [b + (m - (len(styles) - 1) / 2) * width for b in present]
        bars = [row_of[buckets[b]] for b in present]
        heights = [100 * row["accuracy"] for row in bars]
        errors = error_bars(bars, "accuracy", 100)
        axis.bar(positions, heights, width * 0.92, yerr=errors, label=method, color=style["color"])
    axis.set(xticks=range(len(buckets)), xticklabels=buckets, ylabel="accuracy, %", ylim=(0, 105))
    axis.grid(visible=False, axis="x")
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(styles)))
    return figure


def save_figures(run_dir: Path, figures: Mapping[str, Callable[[], Figure]]) -> dict[str, Path]:
    """Draw figures and save them as ``run_dir / NAME.png`` and ``run_dir / NAME.pdf``.

    If a figure cannot be drawn, a warning is issued, and the other figures are saved.

    Args:
        run_dir: folder of the run.
        figures: dict from the name of each figure to the function that draws the figure.

    Returns:
        A dict from the name of each figure in the loggers to its PNG file.

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
        except Exception as error:  # matplotlib raises exceptions of many types
            plt.close("all")
            warnings.warn(f"figure {name} could not be drawn ({type(error).__name__}: {error}).", stacklevel=2)
    return files


def save_figure(figure: Figure, path: Path) -> Path:
    """Save ``figure`` as the PNG file ``path`` and as a PDF file of the same name, and close the figure."""
    for axis in (each for axes in figure.axes for each in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
            _readable_log_labels(axis)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight"))
    # The creation date is omitted, so that drawing the same figure again gives an identical file.
    options = {"format": "pdf", "bbox_inches": "tight", "metadata": {"CreationDate": None}}
    atomic_write(path.with_suffix(".pdf"), lambda temporary: figure.savefig(temporary, **options))
    plt.close(figure)
    return path
