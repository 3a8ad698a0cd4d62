"""Metrics against tables worked out by hand and against scikit-learn."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn import metrics as reference

from bloodcell_dist.errors import TrainingFailed, UserError
from bloodcell_dist.evaluation.metrics import (
    bootstrap_interval,
    classification_metrics,
    confusion,
    cross_entropy,
    per_class_table,
    score_split,
)


def draw(num_examples: int, num_classes: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that are right about nine times in ten, on imbalanced labels."""
    generator = np.random.default_rng(seed)
    shares = np.arange(1, num_classes + 1) / np.arange(1, num_classes + 1).sum()
    labels = generator.choice(num_classes, num_examples, p=shares)
    logits = generator.normal(size=(num_examples, num_classes))
    logits[np.arange(num_examples), labels] += 3
    probabilities = np.exp(logits)
    return (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32), labels


# Three classes, six examples; true 0 0 0 1 1 2, predicted 0 0 1 1 1 0.
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4]]
)
LABELS = np.array([0, 0, 0, 1, 1, 2])


def test_a_small_table_worked_out_by_hand() -> None:
    found = classification_metrics(PROBABILITIES, LABELS)
    assert found == pytest.approx(
        {
            "loss": -np.log([0.8, 0.6, 0.3, 0.7, 0.8, 0.4]).mean(),
            "accuracy": 4 / 6,
            "precision": (2 / 3 + 2 / 3 + 0) / 3,
            "recall": (2 / 3 + 1 + 0) / 3,
            "macro_f1": (2 / 3 + 4 / 5 + 0) / 3,
            "balanced_accuracy": (2 / 3 + 1 + 0) / 3,
            # pairs in the right order: 8 of 9 (0.3 lies below 0.5), 8 of 8, 5 of 5
            "auc": (8 / 9 + 1 + 1) / 3,
        }
    )
    assert confusion(PROBABILITIES, LABELS, 3).tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_agrees_with_scikit_learn() -> None:
    probabilities, labels = draw(2000)
    predicted = probabilities.argmax(axis=1)
    found = classification_metrics(probabilities, labels)
    assert found == pytest.approx(
        {
            "loss": reference.log_loss(labels, probabilities),
            "accuracy": reference.accuracy_score(labels, predicted),
            "precision": reference.precision_score(labels, predicted, average="macro"),
            "recall": reference.recall_score(labels, predicted, average="macro"),
            "macro_f1": reference.f1_score(labels, predicted, average="macro"),
            "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
            "auc": np.mean([reference.roc_auc_score(labels == c, probabilities[:, c]) for c in range(8)]),
        },
        rel=1e-5,
    )
    assert all(type(value) is float for value in found.values())


def test_a_rare_class_that_fails_counts_as_much_as_a_frequent_one() -> None:
    labels = np.array([0] * 99 + [1])
    found = classification_metrics(np.tile([0.9, 0.1], (100, 1)), labels)
    assert found["accuracy"] == pytest.approx(0.99)
    assert found["recall"] == found["balanced_accuracy"] == 0.5
    assert found["precision"] == pytest.approx(0.99 / 2)


def test_classes_without_examples_do_not_lower_the_means() -> None:
    without = classification_metrics(PROBABILITIES[:5], LABELS[:5])
    assert without["recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert without["macro_f1"] == pytest.approx((4 / 5 + 4 / 5) / 2)
    assert without["auc"] == pytest.approx(1.0)


def test_one_class_alone_has_no_auc() -> None:
    found = classification_metrics(PROBABILITIES[:2], LABELS[:2])
    assert np.isnan(found.pop("auc"))
    assert found == pytest.approx(
        {"accuracy": 1, "precision": 1, "recall": 1, "macro_f1": 1, "balanced_accuracy": 1}
        | {"loss": -np.log([0.8, 0.6]).mean()}
    )


def test_a_loss_that_is_given_is_kept() -> None:
    assert classification_metrics(PROBABILITIES, LABELS, loss=1.25)["loss"] == 1.25


def test_the_loss_of_a_sure_mistake_is_finite() -> None:
    assert cross_entropy(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(-np.log(1e-7))
    assert cross_entropy(np.array([[1.0, 0.0]]), np.array([0])) == 0


def test_the_table_by_class() -> None:
    rows = per_class_table(PROBABILITIES, LABELS, ["a", "b", "c"])
    assert [row["class"] for row in rows] == ["a", "b", "c"]
    assert [(row["support"], row["predicted"]) for row in rows] == [(3, 3), (2, 3), (1, 0)]
    assert [row["precision"] for row in rows] == pytest.approx([2 / 3, 2 / 3, 0])
    assert [row["recall"] for row in rows] == pytest.approx([2 / 3, 1, 0])
    assert [row["f1"] for row in rows] == pytest.approx([2 / 3, 4 / 5, 0])
    assert [row["auc"] for row in rows] == pytest.approx([8 / 9, 1, 1])


def test_the_table_says_nothing_of_a_class_without_examples() -> None:
    rows = per_class_table(PROBABILITIES[:5], LABELS[:5], ["a", "b", "c"])
    assert rows[2] == {
        "class": "c", "support": 0, "predicted": 0, "precision": None, "recall": None, "f1": None, "auc": None
    }  # fmt: skip


def test_intervals_agree_with_a_bootstrap_over_examples() -> None:
    probabilities, labels = draw(600)
    found = bootstrap_interval(probabilities, labels, resamples=4000, seed=1)
    predicted, generator = probabilities.argmax(axis=1), np.random.default_rng(2)
    by_class = [np.flatnonzero(labels == label) for label in range(8)]
    slow = []
    for _ in range(800):
        rows = np.concatenate([generator.choice(members, len(members)) for members in by_class])
        counts = reference.confusion_matrix(labels[rows], predicted[rows])
        f1 = 2 * np.diag(counts) / (counts.sum(axis=0) + counts.sum(axis=1))
        recall = np.diag(counts) / counts.sum(axis=1)
        slow.append((np.diag(counts).sum() / counts.sum(), f1.mean(), recall.mean()))
    expected = np.quantile(slow, [0.025, 0.975], axis=0)
    for column, name in enumerate(("accuracy", "macro_f1", "balanced_accuracy")):
        assert found[name] == pytest.approx(tuple(expected[:, column]), abs=0.007)


def test_intervals_hold_the_measured_value_and_depend_on_the_seed_alone() -> None:
    probabilities, labels = draw(3000)
    measured = classification_metrics(probabilities, labels)
    found = bootstrap_interval(probabilities, labels, seed=3)
    for name, (low, high) in found.items():
        assert low < measured[name] < high
        assert high - low < 0.06
    assert found == bootstrap_interval(probabilities, labels, seed=3)
    assert found != bootstrap_interval(probabilities, labels, seed=4)


def test_a_thousand_resamples_of_three_thousand_examples_take_no_time() -> None:
    probabilities, labels = draw(3000)
    start = time.process_time()
    bootstrap_interval(probabilities, labels, resamples=1000)
    assert time.process_time() - start < 2


def test_intervals_leave_out_classes_without_examples() -> None:
    found = bootstrap_interval(PROBABILITIES[:5], LABELS[:5], resamples=50)
    assert all(np.isfinite(bounds).all() for bounds in found.values())
    assert found["accuracy"][1] <= 1


def test_without_a_mistake_the_interval_has_no_width() -> None:
    perfect = np.eye(3)[LABELS]
    assert bootstrap_interval(perfect, LABELS, resamples=50)["accuracy"] == (1.0, 1.0)


def test_scores_of_a_split_fit_together() -> None:
    scores = score_split(PROBABILITIES, LABELS, ["a", "b", "c"], resamples=20)
    assert scores.metrics == classification_metrics(PROBABILITIES, LABELS)
    assert scores.per_class == per_class_table(PROBABILITIES, LABELS, ["a", "b", "c"])
    assert scores.confusion == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert set(scores.intervals) == {"accuracy", "macro_f1", "balanced_accuracy"}
    assert score_split(PROBABILITIES, LABELS, ["a", "b", "c"]).intervals == {}


def test_no_examples_are_refused() -> None:
    with pytest.raises(UserError, match="there are no examples to evaluate"):
        classification_metrics(np.zeros((0, 8)), np.zeros(0, int))


def test_predictions_of_a_diverged_model_are_refused() -> None:
    broken = PROBABILITIES.copy()
    broken[1] = np.nan
    with pytest.raises(TrainingFailed, match="predictions of 1 of 6 examples are not finite.*learning_rate"):
        classification_metrics(broken, LABELS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:, None], r"probabilities have shape \(6, 3\), labels \(6, 1\); expected \[N, C\] and \[N\]"),
        (LABELS[:4], r"labels \(4,\)"),
        (LABELS + 1, "labels lie in 1..3; expected 0..2"),
        (LABELS - 1, "labels lie in -1..1; expected 0..2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(PROBABILITIES, labels)
