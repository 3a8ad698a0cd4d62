"""`ArrayDataset`, the one form in which every source hands its cells on, and the checks that all sources share."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bloodcell_dist.data.rows import Images, blocks, take_rows
from bloodcell_dist.errors import UserError

TRAIN, VAL, TEST = 0, 1, 2  # values of ArrayDataset.partition

Allocate = Callable[[tuple[int, ...]], np.ndarray]
"""Makes the uint8 array of the given shape that a source writes its pictures to: in memory, or a cache file's map."""


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """Labelled pictures of single cells, checked when built.

    images: uint8 [N, H, W, 3], N >= 1: an array, a read-only memory map, or rows of either.
    labels: int64 [N] in [0, len(class_names)).
    class_names: one name per label, in label order.
    groups: int64 [N] or None; examples that share a group (a patient, a slide) must not be split.
    names: file name of each example, or None (then an example is called by its index).
    partition: int8 [N] or None; the source's own split: 0 train, 1 validation, 2 test.
    Raises UserError when dtype, shape or range do not fit.
    """

    images: Images
    labels: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    partition: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_class_names(self.class_names)
        check_images(self.images.shape, self.images.dtype, "images")
        _check_vector(self.labels, np.dtype(np.int64), self.num_examples, "labels")
        check_label_range(self.labels, self.class_names, "labels")
        if self.groups is not None:
            _check_vector(self.groups, np.dtype(np.int64), self.num_examples, "groups")
        if self.names is not None and len(self.names) != self.num_examples:
            raise UserError(f"names: {len(self.names)} names for {self.num_examples} images; expected one each")
        if self.partition is not None:
            _check_vector(self.partition, np.dtype(np.int8), self.num_examples, "partition")
            if not np.isin(self.partition, (TRAIN, VAL, TEST)).all():
                raise UserError("partition: expected only 0 (train), 1 (validation) and 2 (test)")

    @property
    def num_examples(self) -> int:
        return int(self.images.shape[0])

    def name_of(self, index: int) -> str:
        """What a person may call this example: its file name, else its index."""
        return self.names[index] if self.names is not None else str(index)

    def class_counts(self) -> np.ndarray:
        """int64 [num_classes]: examples of each class, zeros included."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    def take(self, indices: np.ndarray | Sequence[int]) -> "ArrayDataset":
        """The chosen examples in the given order, images not copied; their names keep telling where they came from."""
        chosen = np.asarray(indices, np.int64)
        return ArrayDataset(
            images=take_rows(self.images, chosen),
            labels=self.labels[chosen],
            class_names=self.class_names,
            groups=None if self.groups is None else self.groups[chosen],
            names=tuple(self.name_of(int(i)) for i in chosen),
            partition=None if self.partition is None else self.partition[chosen],
        )

    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, images, labels and class names: equal exactly when a run sees the same data."""
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        for block in blocks(self.images):
            digest.update(block)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


def in_memory(shape: tuple[int, ...]) -> np.ndarray:
    """The `Allocate` of a set that is not cached."""
    return np.empty(shape, np.uint8)


def check_class_names(class_names: Sequence[str]) -> None:
    """At least two names, all different."""
    if len(class_names) < 2 or len(set(class_names)) != len(class_names):
        raise UserError(f"class_names={list(class_names)}: expected two or more different names in label order")


def check_images(shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    """uint8 [N, H, W, 3] with at least one example; `where` opens the message."""
    if len(shape) == 3:
        raise UserError(
            f"{where} has shape {shape}: grey-scale pictures; expected colour (N, H, W, 3). "
            "If the cells really are grey, repeat the channel: np.repeat(images[..., None], 3, axis=-1)"
        )
    if len(shape) != 4 or shape[3] != 3:
        raise UserError(f"{where} has shape {shape}; expected (N, H, W, 3): N pictures, red-green-blue last")
    if dtype != np.uint8:
        raise UserError(
            f"{where} has dtype {dtype}; expected uint8 in [0, 255]. "
            "Fix: np.clip(np.rint(images), 0, 255).astype(np.uint8), after * 255 if they are in [0, 1]"
        )
    if 0 in shape:
        raise UserError(f"{where} has shape {shape}; expected at least one picture of at least one pixel")


def to_labels(values: np.ndarray, num_examples: int, where: str) -> np.ndarray:
    """Integers of shape (N,) or (N, 1) as int64 [N]; `where` opens the message."""
    if values.dtype.kind not in "iu":
        raise UserError(f"{where} has dtype {values.dtype}; expected integers, one class number per picture")
    if values.ndim == 2 and values.shape[1] > 1:
        raise UserError(
            f"{where} has shape {values.shape}; expected (N,) or (N, 1). "
            "If the labels are one-hot: labels.argmax(axis=1)"
        )
    if values.shape not in ((num_examples,), (num_examples, 1)):
        raise UserError(f"{where} has shape {values.shape}; expected ({num_examples},): one label per picture")
    return values.reshape(-1).astype(np.int64)


def check_label_range(labels: np.ndarray, class_names: Sequence[str], where: str) -> None:
    """Every label in [0, len(class_names)); the message names the first that is not."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if wrong.size:
        raise UserError(
            f"{where}[{wrong[0]}] is {labels[wrong[0]]} ({wrong.size} such labels); expected 0 to "
            f"{len(class_names) - 1} for the {len(class_names)} classes {', '.join(class_names)}. "
            "Labels count from 0; name every class in data.class_names"
        )


def number_groups(values: np.ndarray) -> np.ndarray:
    """Any one-dimensional column (text, numbers) as int64 group numbers from 0."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _check_vector(values: np.ndarray, dtype: np.dtype, length: int, where: str) -> None:
    if values.shape != (length,) or values.dtype != dtype:
        raise UserError(f"{where} is {values.dtype} {values.shape}; expected {dtype} ({length},)")
