"""The pictures of a comparison, as PNG files. Drawn narrow, so that a phone shows them large enough."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from bloodcell_dist.evaluation.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    column_of,
    new_figure,
    plain,
    save_png,
    style_axis,
)
from bloodcell_dist.sweep.compare import Comparison, Row, figures_of, range_of

_LOOKS = {"val": ("validation", ORANGE, "s"), "test": ("test", BLUE, "o")}
_COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", INK, GREY)
_MARKERS = "osD^v<>pXP*"
_WIDTH = 5.6
_MOST = 24
"""Configurations that a picture shows, the best ones."""


def plot_scores(path: str | os.PathLike[str], comparison: Comparison) -> None:
    """Macro-F1 of each configuration on validation and test cells.

    A mark for the mean, a small one for each seed, a line over the range that decides whether the order is sure.
    """
    rows = _with(comparison, "val_macro_f1")
    has_seeds = any(len(row.done) > 1 for row in rows)
    figure = new_figure(_WIDTH, 0.42 * len(rows) + 1.5)
    axis = figure.subplots()
    style_axis(axis, "Macro-F1" + (": mean (large) and each seed (small)" if has_seeds else ""))
    for split, (label, colour, marker) in _LOOKS.items():
        for place, row in enumerate(rows):
            values = [value for one in row.done if (value := figures_of(one.result)[f"{split}_macro_f1"]) is not None]
            if values:
                height = place + (0.13 if split == "val" else -0.13)
                ends = [end for end in range_of(row, f"{split}_macro_f1") if np.isfinite(end)]
                axis.plot(ends, [height] * len(ends), color=colour, linewidth=1.4, alpha=0.55)
                axis.plot(values, [height] * len(values), marker, color=colour, alpha=0.5, markersize=4)
                axis.plot(np.mean(values), height, marker, color=colour, markersize=8)
        if any(f"{split}_macro_f1" in row.spreads for row in rows):
            axis.plot([], [], marker, color=colour, markersize=8, label=label)
    names = [plain(row.name) + (f" ({len(row.done)})" if has_seeds else "") for row in rows]
    axis.set_yticks(range(len(rows)), names)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    _percents(axis, "x")
    _legend(figure, 2)
    save_png(figure, path)


def plot_cost(path: str | os.PathLike[str], comparison: Comparison) -> None:
    """Accuracy against GPU-hours, or against hours where no GPU was in use; a small point for each member."""
    has_gpus = any((figures_of(one.result)["gpu_hours"] or 0) > 0 for one in comparison.done)
    cost, unit, title = ("gpu_hours", 1, "GPU-hours") if has_gpus else ("wall_s", 3600, "hours")
    accuracy = f"{comparison.split}_accuracy"
    figure = new_figure(_WIDTH, 4.8)
    axis = figure.subplots()
    style_axis(axis, f"{_LOOKS[comparison.split][0].capitalize()} accuracy against {title}")
    for number, row in enumerate(_with(comparison, accuracy)):
        colour, marker = _look(number)
        figures = [figures_of(one.result) for one in row.done]
        points = [(x / unit, y) for one in figures if (x := one[cost]) and (y := one[accuracy]) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), marker, color=colour, markersize=5, alpha=0.45)
            axis.plot(
                *np.mean(np.array(points, float), axis=0), marker, color=colour, markersize=9, label=plain(row.name)
            )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(title, fontsize=9.5, color=INK)
    _percents(axis, "y")
    _legend(figure, 3)
    save_png(figure, path)


def plot_curves(path: str | os.PathLike[str], comparison: Comparison) -> None:
    """Validation macro-F1 over the epochs: the mean of each configuration's seeds, and each of them faintly."""
    rows = [row for row in comparison.rows if any(one.history for one in row.members)][:_MOST]
    figure = new_figure(_WIDTH, 5.2)
    axis = figure.subplots()
    style_axis(axis, "Validation macro-F1 while training")
    everything = []
    for number, row in enumerate(rows):
        colour, marker = _look(number)
        curves = [column_of(one.history, "val_macro_f1") for one in row.members if one.history]
        epochs = np.arange(1, max(map(len, curves)) + 1)
        if len(curves) > 1:
            for curve in curves:
                axis.plot(epochs[: len(curve)], curve, color=colour, linewidth=0.9, alpha=0.35)
        mean = np.array([_mean([curve[epoch - 1] for curve in curves if len(curve) >= epoch]) for epoch in epochs])
        axis.plot(
            epochs, mean, marker=marker, markersize=5, markevery=max(1, len(epochs) // 15), color=colour, linewidth=1.8,
            label=plain(row.name),
        )  # fmt: skip
        everything.append(mean)
    flat = np.concatenate(everything)
    if len(flat) > 20 * len(rows) and np.isfinite(flat).any():  # the climb of the first epochs would hide the rest
        axis.set_ylim(bottom=float(np.nanquantile(flat, 0.25)))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("Epoch", fontsize=9.5, color=INK)
    axis.set_xlim(left=max(0, axis.get_xlim()[0]))
    _percents(axis, "y")
    _legend(figure, 3)
    save_png(figure, path)


def _with(comparison: Comparison, figure: str) -> Sequence[Row]:
    return [row for row in comparison.rows if figure in row.spreads][:_MOST]


def _look(number: int) -> tuple[str, str]:
    return _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def _legend(figure: Figure, columns: int) -> None:
    """Below the panel, where it covers nothing."""
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=10)


def _percents(axis: Axes, which: str) -> None:
    """Per cent at the ticks, hardly beyond 100."""
    low, high = getattr(axis, f"get_{which}lim")()
    getattr(axis, f"set_{which}lim")(low, min(high, 1.005))
    getattr(axis, f"{which}axis").set_major_formatter(PercentFormatter(1, decimals=None))
