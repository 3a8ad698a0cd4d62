"""The index plan: which examples make up each global batch, whatever the number of replicas."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell_dist.data.sampling import IndexPlan, class_weights, replica_slice
from bloodcell_dist.errors import UserError

LABELS = np.repeat(np.arange(4), [7, 23, 11, 40])


def plan(labels: np.ndarray = LABELS, size: int = 16, seed: int = 5, **options: Any) -> IndexPlan:
    return IndexPlan(labels, size, seed, **options)


def oversampled(target: int | None, labels: np.ndarray = LABELS, size: int = 16, seed: int = 5) -> IndexPlan:
    return plan(labels, size, seed, balance="oversample", target_per_class=target)


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({}, "b63752c570ca9865"),
        ({"balance": "oversample", "target_per_class": 30}, "55cd58fa96dd74b5"),
        ({"balance": "oversample"}, "909d1cdabe84fa37"),
    ],
)
def test_the_order_is_that_of_earlier_versions(options: dict[str, Any], digest: str) -> None:
    """A run begun with one version goes on with the next; a change of order is a change of results."""
    batches = np.concatenate([plan(**options).epoch_batches(epoch) for epoch in range(3)])
    assert hashlib.sha256(batches.astype("<i4").tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("num_examples", "size", "steps"), [(1, 1, 1), (64, 64, 1), (65, 64, 1), (127, 64, 1), (128, 64, 2), (3, 64, 1)]
)
def test_steps_per_epoch(num_examples: int, size: int, steps: int) -> None:
    batches = plan(np.zeros(num_examples, int), size).epoch_batches(0)
    assert batches.shape == (steps, size) and batches.dtype == np.int32


@pytest.mark.parametrize("balance", ["none", "class_weights"])
def test_without_repetition_every_example_comes_once(balance: str) -> None:
    chosen = plan(balance=balance, target_per_class=5500)
    assert sorted(chosen.epoch_order(3)) == list(range(len(LABELS)))
    batches = chosen.epoch_batches(3)
    assert np.unique(batches).size == batches.size == 80  # one of 81 has to wait


def test_epochs_and_seeds_differ_and_repeat() -> None:
    orders = {plan(seed=seed).epoch_order(epoch).tobytes() for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    np.testing.assert_array_equal(plan().epoch_order(9), plan().epoch_order(9))


def test_what_an_epoch_leaves_out_changes() -> None:
    left_out = {(set(range(81)) - set(plan().epoch_batches(epoch).ravel().tolist())).pop() for epoch in range(8)}
    assert len(left_out) > 1


def test_a_tiny_set_wraps_around() -> None:
    batches = plan(np.array([0, 1, 1]), size=8).epoch_batches(0)
    assert sorted(np.bincount(batches[0])) == [2, 3, 3]


@pytest.mark.parametrize("options", [{}, {"balance": "oversample", "target_per_class": 30}])
def test_any_step_is_reached_directly(options: dict[str, Any]) -> None:
    chosen = plan(**options)
    in_order = np.concatenate([chosen.epoch_batches(epoch) for epoch in range(3)])
    for step in (0, 1, chosen.steps_per_epoch - 1, chosen.steps_per_epoch, len(in_order) - 1):
        np.testing.assert_array_equal(chosen.batch_at(step), in_order[step])


# ---- balance


@pytest.mark.parametrize(
    ("target", "counts"),
    [(30, [30, 30, 30, 30]), (1, [1, 1, 1, 1]), (40, [40, 40, 40, 40]), (None, [40, 40, 40, 40]), (41, [41] * 4)],
)
def test_every_class_has_its_target(target: int | None, counts: list[int]) -> None:
    chosen = oversampled(target)
    assert chosen.examples_per_epoch == sum(counts)
    assert np.bincount(LABELS[chosen.epoch_order(2)]).tolist() == counts


def test_repetition_is_as_even_as_possible() -> None:
    appearances = np.bincount(oversampled(30).epoch_order(0), minlength=len(LABELS))
    per_class = [np.bincount(part).tolist() for part in np.split(appearances, [7, 30, 41])]
    assert per_class == [
        [0, 0, 0, 0, 5, 2],  # 30 = 7 x 4 + 2
        [0, 16, 7],  # 30 = 23 + 7
        [0, 0, 3, 8],  # 30 = 11 x 2 + 8
        [10, 30],  # 30 of 40
    ]


def test_a_class_cut_to_its_target_is_seen_whole_over_the_epochs() -> None:
    """40 examples, 30 an epoch: after 4 epochs each was seen three times."""
    seen = sum(np.bincount(oversampled(30).epoch_order(epoch), minlength=len(LABELS)) for epoch in range(4))
    assert set(np.asarray(seen)[LABELS == 3]) == {3}


def test_an_absent_class_is_left_out() -> None:
    labels = np.array([0, 0, 2])
    assert sorted(oversampled(2, labels, size=2).epoch_order(0)) == [0, 1, 2, 2]


label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


@given(label_lists, st.integers(1, 50), st.integers(1, 6), st.integers(0, 2**31 - 1))
@settings(max_examples=50, deadline=None)
def test_no_example_is_ever_favoured_by_more_than_one(labels: np.ndarray, target: int, epochs: int, seed: int) -> None:
    chosen = oversampled(target, labels, seed=seed)
    total = np.zeros(len(labels), int)
    for epoch in range(epochs):
        appearances = np.bincount(chosen.epoch_order(epoch), minlength=len(labels))
        total += appearances
        for counts in (appearances, total):
            for label in np.unique(labels):
                assert np.ptp(counts[labels == label]) <= 1


@given(label_lists, st.integers(1, 70), st.sampled_from(["none", "oversample"]), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_batches_are_the_beginning_of_the_order(labels: np.ndarray, size: int, balance: Any, epoch: int) -> None:
    chosen = plan(labels, size, balance=balance)
    order, fed = chosen.epoch_order(epoch), chosen.epoch_batches(epoch).ravel()
    assert len(order) == chosen.examples_per_epoch
    shared = min(len(order), len(fed))
    np.testing.assert_array_equal(fed[:shared], order[:shared])
    assert len(order) - len(fed) < size


# ---- replicas


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 4, 8])
def test_global_batches_are_the_same_at_any_number_of_replicas(num_replicas: int) -> None:
    batches = oversampled(30, size=24).epoch_batches(1)
    slices = [replica_slice(batches, replica, num_replicas) for replica in range(num_replicas)]
    assert {part.shape for part in slices} == {(len(batches), 24 // num_replicas)}
    np.testing.assert_array_equal(np.concatenate(slices, axis=-1), batches)


@pytest.mark.parametrize(
    ("size", "replica", "num_replicas", "expected"),
    [(6, 0, 1, [0, 1, 2, 3, 4, 5]), (6, 0, 2, [0, 1, 2]), (6, 1, 2, [3, 4, 5]), (6, 2, 3, [4, 5]), (6, 5, 6, [5])],
)
def test_slices(size: int, replica: int, num_replicas: int, expected: list[int]) -> None:
    assert replica_slice(np.arange(size), replica, num_replicas).tolist() == expected


@pytest.mark.parametrize(("size", "replicas", "good"), [(100, 8, "96 or 104"), (3, 8, "8"), (7, 2, "6 or 8")])
def test_a_batch_that_does_not_divide_is_refused(size: int, replicas: int, good: str) -> None:
    with pytest.raises(UserError) as caught:
        replica_slice(np.arange(size), 0, replicas)
    assert str(caught.value) == f"train.global_batch_size={size} is not divisible by {replicas} replicas; use {good}"


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(UserError, match="the training set is empty: nothing is left after cleaning and splitting"):
        plan(np.array([], int))


# ---- class weights


def test_weights_are_inverse_to_the_class_sizes() -> None:
    weights = class_weights(np.array([0, 0, 0, 2]), 3)
    assert weights.dtype == np.float32
    assert weights.tolist() == pytest.approx([4 / (2 * 3), 0, 4 / 2])


@given(label_lists)
def test_weights_are_one_on_average(labels: np.ndarray) -> None:
    weights = class_weights(labels, 6)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
    totals = (weights * np.bincount(labels, minlength=6))[np.unique(labels)]
    assert totals == pytest.approx(totals[0], rel=1e-5)
