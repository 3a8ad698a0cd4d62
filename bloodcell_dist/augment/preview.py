"""A picture of what a policy does: cells before and after, with their mixed labels (the original's Figure 1)."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bloodcell_dist.augment.policies import Policy, build_policy

_COLUMNS = 8
_MULTIPLE = 4  # whole mixing groups
_LEAST_SHARE = 0.005  # classes below half a percent are not named


def draw_preview(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    policy_name: str,
    seed: int,
    path: str | os.PathLike[str],
    *,
    engine: str = "fused",
    magnitude: float | None = None,
    steps: int = 6,
) -> None:
    """Write a PNG: a row of cells as they are, then the same cells as `steps` training steps would see them.

    Args:
        images: uint8 [N, H, W, 3], square; the first eight are shown (fewer are repeated to a multiple of four).
        labels: int [N].
        class_names: in label order.
        policy_name, engine, magnitude: as for `build_policy`.
        seed: of the run; the same seed draws the same picture with engine "fused".
        path: of the PNG, whatever its suffix.
        steps: rows of augmented cells.

    Raises:
        UserError: unknown policy or engine, impossible magnitude.
        ValueError: no images.
    """
    if len(images) == 0:
        raise ValueError("a preview needs at least one image, got none")
    policy = build_policy(
        policy_name,
        engine=engine,
        image_size=images.shape[1],
        num_classes=len(class_names),
        magnitude=magnitude,
    )
    shown = np.arange(_MULTIPLE * -(-min(len(images), _COLUMNS) // _MULTIPLE)) % len(images)
    images, soft = images[shown], np.eye(len(class_names), dtype=np.float32)[labels[shown].ravel()]
    rows = [("before", images, soft)]
    rows += [(f"step {step}", *_augment(policy, images, soft, seed, step)) for step in range(steps)]
    title = f"Augmentation policy “{policy_name}”, engine {engine}, seed {seed}"
    _draw(rows, class_names, title).savefig(path, format="png", dpi=130)


def describe(soft_label: np.ndarray, class_names: Sequence[str]) -> str:
    """A soft label [C] in words, largest share first: "neutrophil" or "neutrophil 63 %" over "platelet 37 %"."""
    named = [place for place in np.argsort(-soft_label, kind="stable") if soft_label[place] >= _LEAST_SHARE]
    if len(named) == 1:
        return class_names[named[0]]
    return "\n".join(f"{class_names[place]} {100 * soft_label[place]:.0f} %" for place in named)


def _augment(
    policy: Policy, images: np.ndarray, soft: np.ndarray, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    positions = tf.range(len(images), dtype=tf.int32)
    new_images, new_labels = policy(tf.constant(images), tf.constant(soft), seed, tf.constant(step), positions)
    return np.rint(new_images.numpy()).astype(np.uint8), new_labels.numpy()


def _draw(rows: list[tuple[str, np.ndarray, np.ndarray]], class_names: Sequence[str], title: str) -> Figure:
    columns = len(rows[0][1])
    figure = Figure(figsize=(1.35 * columns + 0.5, 1.75 * len(rows) + 0.5), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=11, fontweight="bold")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (name, images, soft) in zip(grid, rows, strict=True):
        axes_row[0].set_ylabel(name, fontsize=9)
        for axes, image, label in zip(axes_row, images, soft, strict=True):
            _draw_cell(axes, image, describe(label, class_names))
    return figure


def _draw_cell(axes: Axes, image: np.ndarray, caption: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_xlabel(caption, fontsize=7.5, linespacing=1.15)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
