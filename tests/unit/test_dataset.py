import numpy as np
import pytest

from bloodcell_dist.data.dataset import ArrayDataset, check_images, number_groups, to_labels
from bloodcell_dist.errors import UserError

IMAGES = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3)
LABELS = np.array([0, 2, 2, 0], np.int64)
NAMES = ("a", "b", "c")


def dataset(**changes):
    return ArrayDataset(**{"images": IMAGES, "labels": LABELS, "class_names": NAMES, **changes})


def test_counts_include_classes_without_examples():
    assert dataset().class_counts().tolist() == [2, 0, 2]
    assert dataset().num_examples == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES.astype(np.float32)}, "images has dtype float32; expected uint8"),
        ({"images": IMAGES[..., 0]}, r"images has shape \(4, 6, 5\): grey-scale pictures"),
        ({"images": IMAGES[..., :2]}, r"images has shape \(4, 6, 5, 2\); expected \(N, H, W, 3\)"),
        ({"images": IMAGES[:0]}, "expected at least one picture"),
        ({"labels": LABELS.astype(np.int32)}, r"labels is int32 \(4,\); expected int64 \(4,\)"),
        ({"labels": LABELS[:3]}, r"labels is int64 \(3,\); expected int64 \(4,\)"),
        ({"labels": LABELS + 1}, r"labels\[1\] is 3 \(2 such labels\); expected 0 to 2 for the 3 classes a, b, c"),
        ({"labels": LABELS - 1}, r"labels\[0\] is -1"),
        ({"class_names": ("a", "b", "a")}, "expected two or more different names"),
        ({"class_names": ("a",)}, "expected two or more different names"),
        ({"groups": np.zeros(3, np.int64)}, r"groups is int64 \(3,\)"),
        ({"names": ("x",)}, "1 names for 4 images"),
        ({"partition": np.array([0, 1, 2, 3], np.int8)}, "partition: expected only 0"),
        ({"partition": np.zeros(4, np.int64)}, "partition is int64"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataset(**changes)


def test_take_keeps_every_column_and_the_origin():
    groups, partition = np.array([5, 6, 7, 8]), np.array([0, 1, 2, 0], np.int8)
    taken = dataset(groups=groups, partition=partition).take([3, 1])
    assert np.array_equal(taken.images, IMAGES[[3, 1]])
    assert taken.labels.tolist() == [0, 2]
    assert taken.groups.tolist() == [8, 6]
    assert taken.partition.tolist() == [0, 1]
    assert taken.take([1]).name_of(0) == "1"  # the index in the first set, not in the one between
    assert dataset(names=("w", "x", "y", "z")).take([2]).names == ("y",)


def test_fingerprint_follows_the_content():
    same = dataset(images=IMAGES.copy(), names=("w", "x", "y", "z")).fingerprint()
    assert same == dataset().fingerprint()
    changed = IMAGES.copy()
    changed[3, 5, 4, 2] ^= 1
    others = [
        dataset(images=changed),
        dataset(labels=LABELS[::-1] // 2),
        dataset(class_names=("a", "b", "d")),
        dataset(images=IMAGES.reshape(4, 5, 6, 3)),
    ]
    assert len({same, *(other.fingerprint() for other in others)}) == 5


def test_fingerprint_does_not_depend_on_memory_layout():
    assert dataset(images=np.asfortranarray(IMAGES)).fingerprint() == dataset().fingerprint()


@pytest.mark.parametrize("values", [np.array([1, 0], np.uint8), np.array([[1], [0]], np.int32)])
def test_to_labels_accepts_the_usual_forms(values):
    labels = to_labels(values, 2, "labels")
    assert labels.dtype == np.int64
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([0.0, 1.0]), "x has dtype float64; expected integers"),
        (np.array(["a", "b"]), "x has dtype <U1; expected integers"),
        (np.eye(2, dtype=int), r"x has shape \(2, 2\); expected \(N,\) or \(N, 1\). If .* one-hot"),
        (np.zeros(3, int), r"x has shape \(3,\); expected \(2,\)"),
    ],
)
def test_to_labels_refuses_the_rest(values, message):
    with pytest.raises(UserError, match=message):
        to_labels(values, 2, "x")


def test_check_images_names_the_place():
    with pytest.raises(UserError, match="cells.npz: array 'images' has dtype float64"):
        check_images((2, 4, 4, 3), np.dtype(float), "cells.npz: array 'images'")


def test_groups_are_numbered_from_text():
    assert number_groups(np.array(["p9", "p1", "p9"])).tolist() == [1, 0, 1]
