"""The plotting functions that several reports use."""

import numpy as np
from matplotlib import pyplot as plt

from experiments.reporting import figures

IMAGE = np.zeros((3, 8, 8), np.uint8)


def accuracy_row(method="a", value=0.5, low=0.4, high=0.7):
    return {"method": method, "bucket": "tail", "accuracy": value, "accuracy_low": low, "accuracy_high": high}


def test_figures_are_saved_as_png_and_pdf(tmp_path):
    grid = figures.image_grid([("camel", [IMAGE, IMAGE])], ["x", "y"], "title")
    bars = figures.accuracy_figure([accuracy_row("a"), accuracy_row("b")])
    for name, figure in (("images/grid.png", grid), ("figures/bars.png", bars)):
        path = figures.save_figure(figure, tmp_path / name)
        assert path.read_bytes().startswith(b"\x89PNG") and path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_names_with_dollar_signs_are_plain_text(tmp_path):
    figure = figures.image_grid([("$1 bill, $x^", [IMAGE])], ["a_$b"], "100 % $\\frac$")
    assert figures.save_figure(figure, tmp_path / "a.png").stat().st_size > 0


def test_logarithmic_ticks_are_plain_numbers(tmp_path):
    for scale in ({"value": "log"}, {"value": "symlog", "linthresh": 1e-4}):
        figure, axis = plt.subplots()
        axis.plot([1e-3, 1e-1, 20], [1e-3, 1, 1e3])
        axis.set_yscale(**scale)
        figures.save_figure(figure, tmp_path / "a.png")
        labels = [label.get_text() for label in axis.get_yticklabels()]
        assert any(labels) and "$" not in "".join(labels)
        assert {float(text.replace("−", "-")) for text in labels if text} >= {0.1, 10.0}


def test_captions_are_below_their_images():
    figure = figures.image_grid([("a", [IMAGE, None])], ["x", "y"], "title", [["right", "wrong, a copy"]])
    assert [axis.get_xlabel() for axis in figure.axes] == ["right", "wrong, a copy"]
    plt.close(figure)


def test_error_bars_are_never_negative():
    row = accuracy_row(value=0.1 + 0.2, low=0.3 + 1e-15, high=0.3)
    assert min(figures.error_lengths(row, "accuracy")) >= 0
    assert figures.error_bars([accuracy_row()], "accuracy", 100).round(6).tolist() == [[10.0], [20.0]]


def test_line_skips_missing_values_and_sorts_by_x():
    (axis,) = figures.panels(1)[1][0]
    rows = [{"nfe": 2, "psnr": 20.0}, {"nfe": 1, "psnr": 10.0}, {"nfe": 3, "psnr": None}, {"nfe": 4}]
    figures.line(axis, rows, "nfe", "psnr", scale=2)
    assert axis.lines[0].get_xydata().tolist() == [[1, 20], [2, 40]]
    plt.close("all")


def test_methods_have_the_same_style_in_all_panels():
    styles = figures.method_styles(["a", "b", "a"])
    assert list(styles) == ["a", "b"] and styles["a"] != styles["b"]


def test_styles_of_methods_differ_and_markers_become_smaller():
    styles = list(figures.method_styles(f"method {k}" for k in range(22)).values())
    assert len({(tuple(style["color"]), style["marker"]) for style in styles}) == 22
    sizes = [style["markersize"] for style in styles]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


def test_first_method_of_this_project_is_third():
    assert figures.ours_third(["accelerated", "a", "b", "accelerated_8", "a"]) == [
        "a",
        "b",
        "accelerated",
        "accelerated_8",
    ]
    arms = ["plain", "seedselect_ddim", "seedselect_rnri", "seedselect_ours", "between_ours"]
    assert figures.ours_third(arms).index("seedselect_ours") == 2
    assert figures.ours_third(["hours", "b"]) == ["hours", "b"]


def test_few_values_have_one_tick_each(tmp_path):
    for scale, values, expected in (("linear", [2, 2, 3.5], ["2", "3.5"]), ("log", [20, 65.5], ["20", "65.5"])):
        figure, axis = plt.subplots()
        axis.plot(values, values)
        axis.set_xscale(scale)
        figures.value_ticks(axis, values)
        figures.save_figure(figure, tmp_path / "a.png")
        assert [label.get_text() for label in axis.get_xticklabels()] == expected


def test_many_values_have_ticks_at_integers(tmp_path):
    figure, axis = plt.subplots()
    axis.plot(range(40), range(40))
    figures.value_ticks(axis, range(40))
    figures.save_figure(figure, tmp_path / "a.png")
    ticks = axis.get_xticks()
    assert len(ticks) <= 10 and all(float(tick).is_integer() for tick in ticks)


def test_logarithmic_axis_of_less_than_a_decade_has_labels(tmp_path):
    figure, axis = plt.subplots()
    axis.plot([1, 2], [2.1e-3, 6e-3])
    axis.set_yscale("log")
    figures.save_figure(figure, tmp_path / "a.png")
    assert "0.005" in [label.get_text() for label in axis.get_yticklabels()]


def test_accuracy_figure_omits_groups_without_a_row():
    rows = [
        {**accuracy_row("a"), "bucket": "head"},
        {**accuracy_row("a"), "bucket": "tail"},
        {**accuracy_row("b"), "bucket": "tail"},
    ]
    figure = figures.accuracy_figure(rows)
    assert [round(patch.get_x() + patch.get_width() / 2) for patch in figure.axes[0].patches] == [0, 1, 1]
    plt.close(figure)
