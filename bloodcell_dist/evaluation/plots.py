"""The pictures of a run, as PNG files: curves, confusion, classes, counts and mistakes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bloodcell_dist.data.rows import Images
from bloodcell_dist.evaluation.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    add_legend,
    add_title,
    caption,
    column_of,
    draw_bars,
    draw_cell,
    draw_lines,
    draw_matrix,
    new_figure,
    percent,
    plain,
    save_png,
    style_axis,
)


def plot_curves(
    path: str | os.PathLike[str], history: Sequence[Mapping[str, Any]], best_epoch: int | None = None
) -> None:
    """Loss, accuracy, macro-F1 and learning rate over the epochs; a line marks the selected one.

    Args:
        path: PNG to write.
        history: rows of metrics.jsonl with `epoch` (from 0, shown from 1), train_/val_ loss, accuracy and
            macro_f1, and `learning_rate`. A value that is missing or null leaves a gap.
        best_epoch: from 0.
    """
    epochs = column_of(history, "epoch") + 1
    figure = new_figure(10, 6.4)
    axes = figure.subplots(2, 2, sharex=True).ravel()
    titles = {
        "loss": "Loss",
        "accuracy": "Accuracy",
        "macro_f1": "Macro-F1",
        "learning_rate": "Learning rate",
    }
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        style_axis(axis, title)
        draw_lines(axis, epochs, _series(history, name))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if best_epoch is not None:
            axis.axvline(best_epoch + 1, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    for axis in axes[1:3]:
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes[3].yaxis.set_major_formatter(lambda rate, _: _scientific(rate))
    axes[3].set_ylim(bottom=0)
    for axis in axes[2:]:
        axis.set_xlabel("Epoch")
    add_legend(figure, axes[0], best_epoch)
    save_png(figure, path)


def plot_confusion(
    path: str | os.PathLike[str],
    matrix: np.ndarray,
    class_names: Sequence[str],
    title: str = "Confusion matrix",
) -> None:
    """The confusion matrix in counts and in shares of the true class, side by side.

    `matrix`: int [C, C], rows are true classes. The diagonal is blue, mistakes are orange on a scale of their
    own, so that a few mistakes show beside many hits.
    """
    matrix = np.asarray(matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    side = max(5.2, 0.62 * len(matrix) + 1.2)
    figure = new_figure(2 * side, side)
    add_title(figure, title)
    left, right = figure.subplots(1, 2, sharey=True)
    draw_matrix(left, shares, [[f"{count:,}" if count else "" for count in row] for row in matrix])
    draw_matrix(right, shares, [[percent(share) for share in row] for row in shares])
    for axis, heading in ((left, "Examples"), (right, "Share of the true class")):
        axis.set_title(heading, loc="left", fontsize=11, color=INK)
        axis.set_xlabel("Predicted")
        axis.set_xticks(range(len(matrix)), [plain(name) for name in class_names], rotation=40, ha="right")
        axis.set_yticks(
            range(len(matrix)),
            [f"{plain(name)} ({total:,})" for name, total in zip(class_names, totals[:, 0], strict=True)],
        )
    left.set_ylabel("True (examples)")
    save_png(figure, path)


def plot_per_class(path: str | os.PathLike[str], per_class: Sequence[Mapping[str, Any]], title: str) -> None:
    """Precision, recall and F1 of each class as bars; `per_class`: rows of `metrics.per_class_table`."""
    names = [f"{plain(row['class'])} ({row['support']:,})" for row in per_class]
    figure = new_figure(10, 0.36 * len(names) + 1.5)
    add_title(figure, title)
    panels = [("precision", "Precision", GREEN), ("recall", "Recall", ORANGE), ("f1", "F1", BLUE)]
    for axis, (key, heading, colour) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        values = column_of(per_class, key)
        draw_bars(axis, names, values, ["–" if np.isnan(value) else f"{value:.3f}" for value in values], colour)
        axis.set_title(heading, loc="left", fontsize=11, color=INK)
        axis.set_xlim(0, 1.22)
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    save_png(figure, path)


def plot_class_counts(
    path: str | os.PathLike[str], stages: Mapping[str, Sequence[int]], class_names: Sequence[str]
) -> None:
    """Examples per class at each stage, one panel for each on a common scale.

    `stages`: title to int [C], in their order: as found, after cleaning, training, validation, and so on.
    """
    names = [plain(name) for name in class_names]
    columns = min(3, len(stages))
    rows = -(-len(stages) // columns)
    figure = new_figure(10, rows * (0.3 * len(names) + 1.2), space=0.05)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    longest = max(1, *(max(counts) for counts in stages.values()))
    for axis, (title, counts) in zip(axes, stages.items(), strict=False):
        draw_bars(axis, names, np.asarray(counts, float), [f"{count:,}" for count in counts], BLUE)
        axis.set_title(f"{plain(title, 36)}\n{sum(counts):,} examples", loc="left", fontsize=10, color=INK)
        axis.set_xlim(0, 1.25 * longest)
        axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axis.xaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    for axis in axes[len(stages) :]:
        axis.set_visible(False)
    save_png(figure, path)


def plot_mistakes(
    path: str | os.PathLike[str],
    images: Images,
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    limit: int = 24,
) -> int:
    """The mistakes that the model is surest of, as pictures, surest first; returns the number of all.

    `images`: uint8 [N, H, W, 3], may be memory-mapped, only those shown are read; `labels`: int [N];
    `probabilities`: float [N, C].
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    mistakes = np.flatnonzero(predicted != labels)
    shown = mistakes[np.argsort(-confidence[mistakes], kind="stable")][:limit]
    columns = 6
    rows = max(1, -(-len(shown) // columns))
    figure = new_figure(10, 2.1 * rows + 0.5)
    heading = f"{len(mistakes):,} mistakes in {len(labels):,} examples"
    if len(shown) < len(mistakes):
        heading += f"; the {len(shown)} most confident"
    add_title(figure, heading)
    for axis in (axes := figure.subplots(rows, columns, squeeze=False).ravel()):
        axis.set_axis_off()
    for axis, index in zip(axes, shown, strict=False):
        draw_cell(axis, images[index])
        caption(axis, class_names[labels[index]], class_names[predicted[index]], float(confidence[index]))
    save_png(figure, path)
    return len(mistakes)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> dict[str, np.ndarray]:
    """The lines of one panel: training and validation, or the only one."""
    if name == "learning_rate":
        return {"": column_of(history, name)}
    return {
        "training": column_of(history, f"train_{name}"),
        "validation": column_of(history, f"val_{name}"),
    }


def _scientific(rate: float) -> str:
    """`3e-4`, `2.5e-4`, `0`."""
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}" if rate else "0"
