"""What a finished training leaves to measure and draw: the best and the last model, the pictures of the report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bloodcell_dist.data.prepare import Prepared
from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.epochs import Evaluation, Standing
from bloodcell_dist.evaluation.metrics import SplitScores, score_split
from bloodcell_dist.evaluation.result import ModelScores
from bloodcell_dist.history import read_metrics
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.settings import METRICS


@dataclass(frozen=True)
class Measured:
    """Scores and predictions of the best and the last model.

    Attributes:
        best, last: scores by split.
        probabilities: split to float32 [N, C] of the best model.
    """

    best: ModelScores
    last: ModelScores
    probabilities: Mapping[str, np.ndarray]


Predictions = Mapping[str, np.ndarray]
"""Split to float32 [N, C]."""


def predict_last_and_best(evaluation: Evaluation, data: Prepared) -> tuple[Predictions, Predictions]:
    """Of validation and test; leaves the best model's weights in the network. A collective."""
    with evaluation.weights():
        last = _predictions(evaluation, data)
    evaluation.take_best()
    return last, _predictions(evaluation, data)


def measure(
    run: RunDir,
    data: Prepared,
    standing: Standing,
    last: Predictions,
    best: Predictions,
    *,
    resamples: int,
    seed: int,
) -> Measured:
    """Scores of the last and the best model. UserError where metrics.jsonl no longer tells of the best epoch."""
    best_row, last_row = best_and_last(run.metrics, standing.best_epoch)
    scores = [
        _with_training(_score(found, data, resamples, seed), row) for found, row in ((best, best_row), (last, last_row))
    ]
    return Measured(
        best=ModelScores(best_row["epoch"], best_row["step"], scores[0]),
        last=ModelScores(last_row["epoch"], last_row["step"], scores[1]),
        probabilities=best,
    )


def best_and_last(path: str | os.PathLike[str], best_epoch: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of a metrics.jsonl of the best epoch (from 0) and of the last. UserError if the first is missing."""
    rows = read_metrics(path)
    for row in rows:
        if row.get("epoch") == best_epoch:
            return row, rows[-1]
    raise UserError(
        f'{path}: has no line with "epoch": {best_epoch}, the best epoch; put the file back as training left it, '
        "or give another --run-dir for a new run"
    )


def _predictions(evaluation: Evaluation, data: Prepared) -> Predictions:
    sets = {"val": data.val, "test": data.test}
    return {name: evaluation.probabilities(cells) for name, cells in sets.items() if cells is not None}


def _score(predictions: Predictions, data: Prepared, resamples: int, seed: int) -> dict[str, SplitScores]:
    scores = {}
    for name, cells in (("val", data.val), ("test", data.test)):
        if cells is not None:
            repeats = resamples if name == "test" else 0
            scores[name] = score_split(predictions[name], cells.labels, cells.class_names, resamples=repeats, seed=seed)
    return scores


def _with_training(scores: dict[str, SplitScores], row: Mapping[str, Any]) -> dict[str, SplitScores]:
    """The scores with those of the training set, taken from the epoch's row."""
    numbers = {name: row[f"train_{name}"] for name in METRICS}
    return {"train": SplitScores(numbers, [], [], {}), **scores}


def draw_plots(
    run: RunDir, data: Prepared, measured: Measured, class_counts: Mapping[str, Sequence[int]]
) -> dict[str, Path]:
    """Draw the pictures of the report into plots/; their paths by name."""
    from bloodcell_dist.evaluation import plots  # the chief alone draws, at the end: matplotlib can wait

    names = data.train.class_names
    split, cells = ("test", data.test) if data.test is not None else ("val", data.val)
    title = {"test": "Test set", "val": "Validation set"}[split]
    scores = measured.best.splits[split]
    paths = {
        name: run.plots / f"{name}.png" for name in ("curves", "confusion", "per_class", "class_counts", "mistakes")
    }
    plots.plot_curves(paths["curves"], read_metrics(run.metrics), measured.best.epoch)
    plots.plot_confusion(paths["confusion"], np.asarray(scores.confusion), names, f"{title}, best model")
    plots.plot_per_class(paths["per_class"], scores.per_class, f"{title}, best model")
    plots.plot_class_counts(paths["class_counts"], class_counts, names)
    plots.plot_mistakes(paths["mistakes"], cells.images, cells.labels, measured.probabilities[split], names)
    if data.cleaning is not None and (data.cleaning.removed or data.cleaning.near_pairs):
        paths["cleaning"] = run.path / "cleaning.png"
    return paths
