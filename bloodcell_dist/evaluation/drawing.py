"""The look that the pictures of a run share: figures, axes, lines, bars and matrices.

Drawn with Matplotlib's Figure objects, without pyplot and so without global state. Colours are those of Okabe
and Ito (https://jfly.uni-koeln.de/color/), which people with any kind of colour vision can tell apart; what
colour says is also said by a label, a marker or a number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from bloodcell_dist.atomic import atomic_file

BLUE, ORANGE, GREEN, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#8a9099", "#1f2630"
_HITS = LinearSegmentedColormap.from_list("hits", ["#ffffff", "#9cc6e3", "#0072b2", "#00456e"])
_MISSES = LinearSegmentedColormap.from_list("misses", ["#ffffff", "#f7c9a5", "#d55e00", "#8a3c00"])
_DPI = 144  # sharp at the width of a report on dense screens


def new_figure(width: float, height: float, space: float = 0.02) -> Figure:
    """An empty figure, sizes in inches; `space` between panels as a share of a panel."""
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    figure.set_layout_engine("constrained", wspace=space, hspace=space)
    return figure


def add_title(figure: Figure, title: str) -> None:
    """A title above all panels."""
    figure.suptitle(plain(title, 100), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure, whole or not at all."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.15)


def style_axis(axis: Axes, title: str) -> None:
    """Title on the left, grey frame, faint lines at the ticks."""
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)
    axis.tick_params(colors=INK, labelsize=9, length=3)
    axis.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axis.set_axisbelow(True)


def draw_lines(axis: Axes, epochs: np.ndarray, series: Mapping[str, np.ndarray]) -> None:
    """One line for each of `training`, `validation` or the only one, which has no name; NaN leaves a gap."""
    looks = {"training": (BLUE, "-", "o"), "validation": (ORANGE, "-", "s"), "": (INK, "-", "o")}
    for label, values in series.items():
        colour, line, marker = looks[label]
        size = 4 if len(epochs) <= 30 else 0
        axis.plot(epochs, values, line, color=colour, marker=marker, markersize=size, linewidth=1.8, label=label)


def add_legend(figure: Figure, axis: Axes, best_epoch: int | None) -> None:
    """Above the panels, where it covers no curve."""
    lines, labels = axis.get_legend_handles_labels()
    if best_epoch is not None:
        lines.append(axis.lines[-1])
        labels.append(f"selected epoch ({best_epoch + 1})")
    figure.legend(lines, labels, loc="outside upper right", ncols=len(lines), frameon=False, fontsize=10)


def draw_matrix(axis: Axes, shares: np.ndarray, texts: Sequence[Sequence[str]]) -> None:
    """Cells coloured by share with a text each; the square root makes single mistakes visible."""
    is_hit = np.eye(len(shares), dtype=bool)
    most = max(0.05, float(shares[~is_hit].max(initial=0)))
    axis.imshow(np.ma.array(shares, mask=~is_hit), cmap=_HITS, vmin=0, vmax=1)
    axis.imshow(np.ma.array(shares, mask=is_hit), cmap=_MISSES, norm=PowerNorm(0.5, 0, 1.6 * most))
    size = 9.5 if len(shares) <= 10 else 7
    for row, column in np.ndindex(shares.shape):
        is_dark = shares[row, column] > 0.6 if row == column else shares[row, column] > 0.55 * most
        axis.text(
            column, row, texts[row][column], ha="center", va="center", fontsize=size,
            color="white" if is_dark else INK, fontweight="bold" if row == column else "normal",
        )  # fmt: skip
    axis.set_xticks(np.arange(len(shares) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(shares) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="#dfe3e8", linewidth=1)
    axis.tick_params(which="both", length=0, colors=INK, labelsize=9.5)
    axis.spines[:].set_visible(False)


def draw_bars(axis: Axes, names: Sequence[str], values: np.ndarray, texts: Sequence[str], colour: str) -> None:
    """Horizontal bars with their values beside them, the first class on top; NaN draws none."""
    rows = np.arange(len(names))
    lengths = np.nan_to_num(values)
    axis.barh(rows, lengths, height=0.68, color=colour)
    for row, length, text in zip(rows, lengths, texts, strict=True):
        axis.annotate(text, (length, row), (4, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    axis.set_yticks(rows, names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(GREY)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(colors=INK, labelsize=9.5)


def draw_cell(axis: Axes, image: np.ndarray) -> None:
    """A picture, uint8 [H, W, 3], in a thin frame."""
    axis.set_axis_on()
    axis.imshow(image, interpolation="lanczos")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_color("#cfd4da")


def caption(axis: Axes, true: str, predicted: str, confidence: float) -> None:
    """Two lines below a picture: what it is, and what the model is how sure of."""
    axis.set_xlabel(f"{plain(true, 15)}\n", fontsize=9.5, color=INK, fontweight="bold", loc="left", labelpad=4)
    axis.annotate(
        f"→ {plain(predicted, 13)} {percent(confidence)}", (0, 0), (0, -21), xycoords="axes fraction",
        textcoords="offset points", va="center", fontsize=9.5, color=ORANGE,
    )  # fmt: skip


def column_of(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """The values of a key, float [len(rows)]; NaN where it is missing or null."""
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=float)


def percent(share: float) -> str:
    """`97.4%`; nothing for 0; what is not 0 or 1 is not rounded to it."""
    if share <= 0:
        return ""
    if share >= 1:
        return "100%"
    return "<0.1%" if share < 0.001 else f"{min(share, 0.999):.1%}"


def plain(text: str, longest: int = 28) -> str:
    """A name for Matplotlib: on one line, not too long, its dollar signs kept from starting a formula."""
    line = " ".join(text.split())
    return (line if len(line) <= longest else line[: longest - 1] + "…").replace("$", r"\$")
