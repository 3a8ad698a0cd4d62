"""From a source to the three sets of a run: load, clean, split."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bloodcell_dist.data.cleaning import CleaningResult, clean
from bloodcell_dist.data.dataset import TEST, TRAIN, VAL, ArrayDataset
from bloodcell_dist.data.sources import load_dataset
from bloodcell_dist.data.splits import split
from bloodcell_dist.errors import UserError

log = logging.getLogger(__name__)

_TEST_SEED_OFFSET = 7_919  # drawn test cells come from another stream than drawn training cells


@dataclass(frozen=True)
class Prepared:
    """The sets of a run.

    Attributes:
        train: what the network learns from.
        val: what epochs are chosen by.
        test: independent cells, or None.
        loaded: the set that was cleaned and split, as the source gave it.
        cleaning: what cleaning found, or None where it was turned off.
    """

    train: ArrayDataset
    val: ArrayDataset
    test: ArrayDataset | None
    loaded: ArrayDataset
    cleaning: CleaningResult | None


@dataclass(frozen=True)
class Source:
    """How cells are read; the names are those of the settings section `data`."""

    source: str
    path: str | None
    test_path: str | None
    class_names: Sequence[str] | None
    image_size: int
    crop: int | None
    cache_dir: str | None
    group_column: str | None
    synthetic_examples: int

    def load(self, seed: int) -> ArrayDataset:
        """The cells to learn from, with the source's own partition if it has one."""
        return self._load(self.source, self.path, seed, self.synthetic_examples, self.group_column)

    def load_test(self, class_names: Sequence[str], seed: int) -> ArrayDataset | None:
        """The independent test cells, if the settings name any; their labels follow `class_names`.

        Of a source with its own split only the test part is taken.
        """
        if self.test_path is None and self.source != "synthetic":
            return None
        kind = "auto" if self.test_path else "synthetic"
        named = replace(self, class_names=tuple(class_names))
        test = named._load(kind, self.test_path, seed + _TEST_SEED_OFFSET, self.synthetic_examples // 4, None)
        return test if test.partition is None else test.take(np.flatnonzero(test.partition == TEST))

    def _load(
        self, source: str, path: str | None, seed: int, synthetic_examples: int, group_column: str | None
    ) -> ArrayDataset:
        return load_dataset(
            source,
            path,
            class_names=self.class_names,
            image_size=self.image_size,
            crop=self.crop,
            cache_dir=self.cache_dir,
            group_column=group_column,
            seed=seed,
            synthetic_examples=synthetic_examples,
        )


def prepare(
    source: Source,
    *,
    clean_first: bool,
    group_near_duplicates: bool,
    val_fraction: float,
    fold: int | None,
    folds: int | None,
    max_examples: int | None,
    seed: int,
) -> Prepared:
    """Load, clean and split, in this order; a pure function of the files and the arguments.

    A source's own split (MedMNIST) is kept; only its training part is cleaned. Cells that are byte for byte in the
    validation or test set are taken out of training. Raises UserError.
    """
    everything = source.load(seed)
    test = source.load_test(everything.class_names, seed)
    own_split = everything.partition is not None
    if own_split and folds is not None:
        raise UserError(
            f"data.folds={folds}: {source.path} has its own validation part; leave data.folds and data.fold out"
        )
    loaded = everything.take(np.flatnonzero(everything.partition == TRAIN)) if own_split else everything
    _require_every_class(loaded)
    cleaning = clean(loaded, group_near_duplicates=group_near_duplicates) if clean_first else None
    kept = loaded.take(cleaning.kept_indices) if cleaning else loaded
    if own_split:
        train, val = kept, everything.take(np.flatnonzero(everything.partition == VAL))
        if test is None:
            test = everything.take(np.flatnonzero(everything.partition == TEST))
    else:
        groups = cleaning.groups if cleaning else kept.groups
        chosen = split(
            kept.labels,
            groups,
            val_fraction=val_fraction,
            seed=seed,
            fold=fold,
            folds=folds,
            class_names=kept.class_names,
        )
        train, val = kept.take(chosen[0]), kept.take(chosen[1])
    for name, held_out in (("validation", val), ("test", test)):
        if held_out is not None:
            train = _without(train, held_out, name)
    _require_every_class(train)
    if max_examples is not None:
        train, val = _evenly(train, max_examples), _evenly(val, max_examples)
        test = None if test is None else _evenly(test, max_examples)
    return Prepared(train, val, test, loaded, cleaning)


def _require_every_class(dataset: ArrayDataset) -> None:
    counts = dataset.class_counts()
    empty = [name for name, count in zip(dataset.class_names, counts, strict=True) if not count]
    if empty:
        raise UserError(
            f"no training cells of class {', '.join(empty)}; add some, or leave the class out of data.class_names"
        )


def _without(train: ArrayDataset, held_out: ArrayDataset, name: str) -> ArrayDataset:
    """The training cells that are not byte for byte in a held-out set too."""
    theirs = set(_digests(held_out))
    fresh = np.array([digest not in theirs for digest in _digests(train)])
    if fresh.all():
        return train
    if not fresh.any():
        raise UserError(
            f"every training cell is also in the {name} set, so there is nothing left to learn from; "
            "data.path and data.test_path must hold different cells"
        )
    log.warning("%d training cells are also in the %s set; they are left out of training", (~fresh).sum(), name)
    return train.take(np.flatnonzero(fresh))


def _digests(dataset: ArrayDataset) -> Iterator[bytes]:
    """One for each picture; the pictures themselves would fill the memory."""
    return (hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in dataset.images)


def _evenly(dataset: ArrayDataset, limit: int) -> ArrayDataset:
    """At most `limit` examples, drawn evenly along the set ordered by class."""
    if dataset.num_examples <= limit:
        return dataset
    by_class = np.argsort(dataset.labels, kind="stable")
    return dataset.take(np.sort(by_class[np.linspace(0, len(by_class) - 1, limit).round().astype(int)]))
