"""How well a classifier does: metrics, per-class table, confusion matrix and bootstrap intervals.

All functions take `probabilities: float [N, C]` (rows sum to 1) and `labels: int [N]` in 0..C-1. The predicted class is
the first of the most probable ones. Precision, recall, F1 and AUC are *macro* averages: one class against the rest,
then the plain mean over classes. The original took Keras' `Precision`, `Recall` and `AUC`, which pool all classes; on
one-label pictures those follow the accuracy, so they hide a rare class that fails, and that is what they should show.
Means run over the classes that occur in `labels`: a class without examples has no recall, and a set without it should
not score lower for that. (Macro recall is thereby the balanced accuracy; both names are kept.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from bloodcell_dist.errors import TrainingFailed, UserError

INTERVAL_METRICS = ("accuracy", "macro_f1", "balanced_accuracy")


@dataclass(frozen=True)
class SplitScores:
    """One model on one split.

    Attributes:
        metrics: the names of `classification_metrics`.
        per_class: rows of `per_class_table`; empty where predictions were not kept (training).
        confusion: [C][C] counts, rows are true classes; empty likewise.
        intervals: metric to (low, high); empty if not asked for.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    confusion: list[list[int]]
    intervals: dict[str, tuple[float, float]]


def score_split(
    probabilities: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    resamples: int = 0,
    seed: int = 0,
) -> SplitScores:
    """All that is reported of one model on one split; `resamples` > 0 adds bootstrap intervals."""
    return SplitScores(
        metrics=classification_metrics(probabilities, labels),
        per_class=per_class_table(probabilities, labels, class_names),
        confusion=confusion(probabilities, labels, len(class_names)).tolist(),
        intervals=bootstrap_interval(probabilities, labels, resamples=resamples, seed=seed) if resamples else {},
    )


def classification_metrics(
    probabilities: np.ndarray, labels: np.ndarray, *, loss: float | None = None
) -> dict[str, float]:
    """loss, accuracy, precision, recall, auc, macro_f1, balanced_accuracy (see above for the averages).

    `loss` is taken as given (the training loss, say, with its smoothing); None computes the cross-entropy in
    nats. `auc` is NaN if all labels are one class. Raises UserError for an empty set, TrainingFailed for
    predictions that are not finite.
    """
    probabilities, labels = _checked(probabilities, labels)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, _ = _sklearn().precision_recall_fscore_support(
        labels, predicted, labels=np.unique(labels), average="macro", zero_division=0
    )
    areas = _areas(probabilities, labels)
    return {
        "loss": cross_entropy(probabilities, labels) if loss is None else float(loss),
        "accuracy": float(np.mean(predicted == labels)),
        "precision": float(precision),
        "recall": float(recall),
        "auc": float(np.mean(areas[~np.isnan(areas)])) if not np.isnan(areas).all() else float("nan"),
        "macro_f1": float(f1),
        "balanced_accuracy": float(recall),
    }


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p(true class), nats, without label smoothing; p is clipped at 1e-7, as Keras does."""
    of_true = np.take_along_axis(np.asarray(probabilities), np.asarray(labels)[:, None], axis=1)
    return float(-np.log(np.clip(of_true.astype(np.float64), 1e-7, 1.0)).mean())


def per_class_table(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class in label order: class, support, predicted (counts), precision, recall, f1, auc.

    What is not defined is None: everything but the counts for a class without examples, `auc` if there is no other.
    """
    probabilities, labels = _checked(probabilities, labels)
    classes = range(len(class_names))
    predicted = probabilities.argmax(axis=1)
    scores = _sklearn().precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    times_predicted = np.bincount(predicted, minlength=len(class_names))
    rows = []
    for name, precision, recall, f1, support, times, area in zip(
        class_names, *scores, times_predicted, _areas(probabilities, labels), strict=True
    ):
        measured = {"precision": precision, "recall": recall, "f1": f1, "auc": area}
        defined = {key: float(value) if support and value == value else None for key, value in measured.items()}
        rows.append({"class": name, "support": int(support), "predicted": int(times), **defined})
    return rows


def confusion(probabilities: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int64 [num_classes, num_classes]: rows are true classes, columns predicted ones."""
    probabilities, labels = _checked(probabilities, labels)
    counts: np.ndarray = _sklearn().confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(num_classes))
    return counts


def bootstrap_interval(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of accuracy, macro_f1 and balanced_accuracy: name to (low, high).

    Stratified: each class keeps its number of examples. These metrics depend on the confusion counts only, and drawing
    n examples of a class with replacement draws its row of counts from a multinomial, so rows are drawn at once. The
    interval covers the choice of examples from the same source, not another laboratory; without any mistake it has no
    width (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
    """
    counts = confusion(probabilities, labels, np.asarray(probabilities).shape[1])
    present = np.flatnonzero(counts.sum(axis=1))
    generator = np.random.Generator(np.random.Philox(key=seed))
    drawn = np.zeros((resamples, *counts.shape), dtype=np.int64)
    for label in present:
        support = counts[label].sum()
        drawn[:, label] = generator.multinomial(support, counts[label] / support, size=resamples)
    values = _metrics_of_counts(drawn, present)
    tail = (1 - level) / 2
    return {name: tuple(np.quantile(values[name], [tail, 1 - tail]).tolist()) for name in INTERVAL_METRICS}


def _metrics_of_counts(counts: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    """INTERVAL_METRICS of many confusion matrices, counts int [R, C, C] -> float [R] each."""
    hits = np.diagonal(counts, axis1=1, axis2=2)[:, present]
    supports = counts.sum(axis=2)[:, present]
    times_predicted = counts.sum(axis=1)[:, present]
    return {
        "accuracy": hits.sum(axis=1) / supports.sum(axis=1),
        "macro_f1": (2 * hits / (supports + times_predicted)).mean(axis=1),
        "balanced_accuracy": (hits / supports).mean(axis=1),
    }


def _areas(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class against the rest, float [C]; NaN where one side is empty."""
    areas = np.full(probabilities.shape[1], np.nan)
    for label in np.unique(labels):
        is_class = labels == label
        if not is_class.all():
            areas[label] = _sklearn().roc_auc_score(is_class, probabilities[:, label])
    return areas


def _sklearn() -> ModuleType:
    """sklearn.metrics; with scipy.stats it takes a second to import, which only a rank that measures is to pay."""
    import sklearn.metrics

    return sklearn.metrics


def _checked(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, after the checks that every figure here needs."""
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities have shape {probabilities.shape}, labels {labels.shape}; expected [N, C] and [N]"
        )
    if len(labels) == 0:
        raise UserError("there are no examples to evaluate: the set is empty; give one with at least one example")
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise ValueError(f"labels lie in {labels.min()}..{labels.max()}; expected 0..{probabilities.shape[1] - 1}")
    broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if broken:
        raise TrainingFailed(
            f"the predictions of {broken} of {len(labels)} examples are not finite: the training diverged; "
            "a lower optimizer.learning_rate or float32 usually helps"
        )
    return probabilities, labels
