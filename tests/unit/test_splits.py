import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloodcell_dist.data.splits import check_both_sides, split
from bloodcell_dist.errors import UserError

REAL_COUNTS = [426, 1090, 542, 1013, 424, 496, 1165, 821]


def labels_of(counts):
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize("val_fraction", [0.05, 0.1, 0.15, 0.37, 0.5])
def test_each_class_gives_its_share_to_the_example(val_fraction):
    labels = labels_of(REAL_COUNTS)
    train, val = split(labels, None, val_fraction=val_fraction, seed=3)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(len(labels)))
    assert np.bincount(labels[val]).tolist() == [round(count * val_fraction) for count in REAL_COUNTS]
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()


def test_the_seed_decides_and_nothing_else():
    labels = labels_of([40, 60])
    first, again = split(labels, None, seed=1)[1], split(labels, None, seed=1)[1]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, split(labels, None, seed=2)[1])


def test_small_classes_keep_one_example_on_each_side():
    labels = labels_of([500, 2, 3])
    for val_fraction in (0.01, 0.1, 0.89):
        train, val = split(labels, None, val_fraction=val_fraction, seed=0)
        assert set(labels[train]) == set(labels[val]) == {0, 1, 2}


def test_folds_are_disjoint_complete_and_even():
    labels = labels_of([53, 20, 7])
    parts = [split(labels, None, seed=4, fold=fold, folds=5)[1] for fold in range(5)]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(80))
    counts = np.array([np.bincount(labels[part], minlength=3) for part in parts])
    assert (np.ptp(counts, axis=0) <= 1).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=12, max_size=60),
    seed=st.integers(0, 2**32),
    folds=st.sampled_from([None, 2, 3]),
)
def test_groups_never_lie_on_both_sides(sizes, seed, folds):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = groups % 3  # each group is of one class, each class has four groups or more
    train, val = split(labels, groups, val_fraction=0.2, seed=seed, fold=folds and 1, folds=folds)
    assert not set(groups[train]) & set(groups[val])
    assert len(train) + len(val) == len(labels)


def test_the_share_holds_with_patients_of_mixed_classes():
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 120, 6000)
    labels = rng.choice(4, 6000, p=[0.5, 0.3, 0.15, 0.05])
    _, val = split(labels, patients, val_fraction=0.15, seed=0)
    shares = np.bincount(labels[val]) / np.bincount(labels)
    assert len(val) / 6000 == pytest.approx(0.15, abs=0.01)
    assert shares == pytest.approx(0.15, abs=0.03)


def test_a_class_whose_only_groups_are_large_still_validates():
    labels = labels_of([100, 60])
    groups = np.concatenate([np.arange(100), np.repeat([200, 201], 30)])
    train, val = split(labels, groups, val_fraction=0.1, seed=0)
    assert np.bincount(labels[val]).tolist() == [10, 30]
    assert np.bincount(labels[train]).tolist() == [90, 30]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": labels_of([9, 1])}, "class 'b' has 1 examples in 1 separate groups; expected at least 2"),
        ({"labels": labels_of([9, 0])}, "class 'b' has 0 examples"),
        ({"labels": labels_of([9, 4]), "fold": 0, "folds": 5}, "at least 5.*fewer data.folds"),
        ({"labels": labels_of([9, 4]), "groups": np.array([0] * 9 + [1, 2, 3, 4])}, "class 'a' has 9 .* 1 separate"),
        ({"labels": labels_of([9, 4]), "folds": 3}, "data.fold=None with data.folds=3; give both"),
        ({"labels": labels_of([9, 4]), "folds": 3, "fold": 3}, "fold from 0 to folds - 1"),
        ({"labels": labels_of([9, 4]), "val_fraction": 0.0}, "data.val_fraction=0.0; expected a share"),
    ],
)
def test_impossible_splits_say_why(arguments, message):
    with pytest.raises(UserError, match=message):
        split(**{"groups": None, "seed": 0, "class_names": ("a", "b"), **arguments})


def test_classes_without_names_are_called_by_number():
    with pytest.raises(UserError, match="class 'class 1' has 1 examples"):
        split(labels_of([9, 1]), None, seed=0)


def test_both_sides_are_checked_for_splits_that_others_made():
    labels = labels_of([4, 4])
    check_both_sides(labels, np.array([0, 5]), np.array([1, 6]), ("a", "b"))
    with pytest.raises(UserError, match="class 'b' has no validation example"):
        check_both_sides(labels, np.array([0, 5]), np.array([1, 2]), ("a", "b"))
