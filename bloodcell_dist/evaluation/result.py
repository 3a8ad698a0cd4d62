"""What `result.json` holds: the measured result of a run under names that other programs can rely on.

format              1; a change that breaks readers raises it
run_id, created     identity for life; ISO 8601 time at which the result was made
backbone, class_names, seed, epochs, select_by
images_per_s, wall_s    training speed and time, all lives of the run together
replicas            that worked together in the last life
gpu_hours           hours lived times GPUs in use, all lives together; 0 without GPUs
versions            package to version
train_loss …        the selected (best) model: train_, val_ and test_ with each of loss, accuracy, precision, recall,
                    auc, macro_f1, balanced_accuracy; null where there is no such split. train_ is measured while
                    training, on augmented pictures with dropout; val_ and test_ afterwards, without
examples            of the selected model, likewise all below: split to number of evaluated examples
intervals           metric (with its prefix) to [low, high], 95%
per_class           split to rows of class, support, predicted, precision, recall, f1, auc
confusion           split to counts [C][C], rows are true classes
best, last          the selected and the last model: epoch (from 0), step, the metrics above and their intervals
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bloodcell_dist.atomic import to_json
from bloodcell_dist.evaluation.metrics import SplitScores
from bloodcell_dist.settings import METRICS

SPLITS = ("train", "val", "test")

FORMAT = 1
"""Of what `build_result` makes."""


@dataclass(frozen=True)
class ModelScores:
    """One state of the model, and how it does.

    Attributes:
        epoch: from 0.
        step: updates made.
        splits: scores by `train`, `val` and `test`; those that were not measured are left out.
    """

    epoch: int
    step: int
    splits: Mapping[str, SplitScores]

    def __post_init__(self) -> None:
        if unknown := set(self.splits) - set(SPLITS):
            raise ValueError(f"splits are {', '.join(SPLITS)}; received {', '.join(sorted(unknown))}")


def build_result(
    *,
    run_id: str,
    created: datetime,
    backbone: str,
    class_names: Sequence[str],
    seed: int,
    epochs: int,
    select_by: str,
    best: ModelScores,
    last: ModelScores,
    images_per_s: float,
    wall_s: float,
    replicas: int,
    gpu_hours: float,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """The content of result.json in JSON's own types (NaN becomes null); the module says what the keys mean.

    `images_per_s`: examples trained on per second; `wall_s`: seconds; `epochs`: how many were trained.
    """
    measured = {name: scores for name, scores in best.splits.items() if scores.confusion}
    return to_json(
        {
            "format": FORMAT,
            "run_id": run_id,
            "created": created.isoformat(timespec="seconds"),
            "backbone": backbone,
            "class_names": class_names,
            "seed": seed,
            "epochs": epochs,
            "select_by": select_by,
            "images_per_s": images_per_s,
            "wall_s": wall_s,
            "replicas": replicas,
            "gpu_hours": gpu_hours,
            "versions": versions,
            **_flat_metrics(best),
            "intervals": _flat_intervals(best),
            "examples": {name: sum(map(sum, scores.confusion)) for name, scores in measured.items()},
            "per_class": {name: scores.per_class for name, scores in measured.items()},
            "confusion": {name: scores.confusion for name, scores in measured.items()},
            "best": _nested(best),
            "last": _nested(last),
        }
    )


def summary(result: Mapping[str, Any]) -> str:
    """One line on how the best model does, for the log."""
    split = "test" if result["test_accuracy"] is not None else "val"
    name = {"test": "test set", "val": "validation set (split off the training cells)"}[split]
    low, high = result["intervals"].get(f"{split}_accuracy", (None, None))
    interval = "" if low is None else f" (95% interval {low:.4f} to {high:.4f})"
    return (
        f"best epoch {result['best']['epoch'] + 1} on the {name}: accuracy {result[f'{split}_accuracy']:.4f}"
        f"{interval}, macro-F1 {result[f'{split}_macro_f1']:.4f}"
    )


def _nested(model: ModelScores) -> dict[str, Any]:
    return {
        "epoch": model.epoch,
        "step": model.step,
        **_flat_metrics(model),
        "intervals": _flat_intervals(model),
    }


def _flat_metrics(model: ModelScores) -> dict[str, float | None]:
    """Every split and metric as `val_accuracy`; None for a split that was not measured."""
    return {
        f"{split}_{metric}": model.splits[split].metrics[metric] if split in model.splits else None
        for split in SPLITS
        for metric in METRICS
    }


def _flat_intervals(model: ModelScores) -> dict[str, tuple[float, float]]:
    return {
        f"{split}_{metric}": interval
        for split, scores in model.splits.items()
        for metric, interval in scores.intervals.items()
    }
