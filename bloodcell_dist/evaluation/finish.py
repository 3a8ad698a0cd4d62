"""The end of a run: best and last model measured, exported, plotted, reported."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np

from bloodcell_dist.data.cleaning import REASONS
from bloodcell_dist.data.prepare import Prepared
from bloodcell_dist.evaluation import plots
from bloodcell_dist.evaluation.epochs import Evaluation, Standing
from bloodcell_dist.evaluation.metrics import SplitScores, score_split
from bloodcell_dist.evaluation.report import Removed, ReportInputs, write_report
from bloodcell_dist.evaluation.result import ModelScores, build_result
from bloodcell_dist.history import read_metrics
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.settings import METRICS
from bloodcell_dist.training.state import load_weights

log = logging.getLogger(__name__)


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


def measure(
    run: RunDir,
    model: keras.Model,
    evaluation: Evaluation,
    data: Prepared,
    standing: Standing,
    *,
    resamples: int,
    seed: int,
) -> Measured:
    """Evaluate the last and the best model on validation and test; leaves the best one's weights in the network."""
    history = read_metrics(run.metrics)
    with evaluation.weights():
        last, _ = _score(evaluation, data, resamples, seed)
    load_weights(model, run.best_weights)
    best, probabilities = _score(evaluation, data, resamples, seed)
    best_row, last_row = next(row for row in history if row["epoch"] == standing.best_epoch), history[-1]
    return Measured(
        best=ModelScores(best_row["epoch"], best_row["step"], _with_training(best, best_row)),
        last=ModelScores(last_row["epoch"], last_row["step"], _with_training(last, last_row)),
        probabilities=probabilities,
    )


def _score(
    evaluation: Evaluation, data: Prepared, resamples: int, seed: int
) -> tuple[dict[str, SplitScores], dict[str, np.ndarray]]:
    scores, probabilities = {}, {}
    for name, cells in (("val", data.val), ("test", data.test)):
        if cells is not None:
            probabilities[name] = evaluation.probabilities(cells)
            repeats = resamples if name == "test" else 0
            scores[name] = score_split(
                probabilities[name], cells.labels, cells.class_names, resamples=repeats, seed=seed
            )
    return scores, probabilities


def _with_training(scores: dict[str, SplitScores], row: Mapping[str, Any]) -> dict[str, SplitScores]:
    """The scores with those of the training set, taken from the epoch's row."""
    numbers = {name: row[f"train_{name}"] for name in METRICS}
    return {"train": SplitScores(numbers, [], [], {}), **scores}


def make_result(
    run: RunDir,
    data: Prepared,
    measured: Measured,
    standing: Standing,
    *,
    backbone: str,
    seed: int,
    select_by: str,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """The content of result.json."""
    return build_result(
        run_id=run.run_id,
        created=datetime.now(UTC),
        backbone=backbone,
        class_names=data.train.class_names,
        seed=seed,
        epochs=len(read_metrics(run.metrics)),
        select_by=select_by,
        best=measured.best,
        last=measured.last,
        images_per_s=standing.examples / max(standing.train_seconds, 1e-9),
        wall_s=standing.wall_seconds,
        versions=versions,
    )


def draw_plots(
    run: RunDir, data: Prepared, measured: Measured, class_counts: Mapping[str, Sequence[int]]
) -> dict[str, Path]:
    """Draw the pictures of the report into plots/; their paths by name."""
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


def write_run_report(
    run: RunDir,
    data: Prepared,
    result: Mapping[str, Any],
    *,
    class_counts: Mapping[str, Sequence[int]],
    pictures: Mapping[str, Path],
    environment: Mapping[str, Any],
    test_source: str | None,
    test_is_same_source: bool | None,
    notes: Sequence[str],
) -> None:
    """Write report.html."""
    removed = data.cleaning.counts() if data.cleaning else {}
    inputs = ReportInputs(
        result=result,
        settings_yaml=run.config.read_text(encoding="utf-8"),
        environment=environment,
        commands=[f"bloodcell-dist train --config {run.config} --run-dir NEW_FOLDER"],
        class_counts=class_counts,
        removed=[Removed(reason, count, REASONS[reason]) for reason, count in removed.items() if count],
        cleaned=data.cleaning is not None,
        pictures=pictures,
        test_source=test_source,
        test_is_same_source=test_is_same_source,
        notes=notes,
    )
    write_report(run.report, inputs)


def summary(result: Mapping[str, Any]) -> str:
    """One line on how the best model does."""
    split = "test" if result["test_accuracy"] is not None else "val"
    name = {"test": "test set", "val": "validation set (same slides as the training cells)"}[split]
    low, high = result["intervals"].get(f"{split}_accuracy", (None, None))
    interval = "" if low is None else f" (95% interval {low:.4f} to {high:.4f})"
    return (
        f"best epoch {result['best']['epoch'] + 1} on the {name}: accuracy {result[f'{split}_accuracy']:.4f}"
        f"{interval}, macro-F1 {result[f'{split}_macro_f1']:.4f}"
    )
