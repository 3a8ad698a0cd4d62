"""From a source to the three sets of a run: load, clean, split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bloodcell_dist.data.cleaning import CleaningResult, clean
from bloodcell_dist.data.dataset import TEST, TRAIN, VAL, ArrayDataset
from bloodcell_dist.data.overlap import not_held_out
from bloodcell_dist.data.sources import load_dataset
from bloodcell_dist.data.splits import split
from bloodcell_dist.errors import UserError

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
        dropped: how many more of `loaded` were left out, by reason; what data.max_examples leaves out is not counted.
    """

    train: ArrayDataset
    val: ArrayDataset
    test: ArrayDataset | None
    loaded: ArrayDataset
    cleaning: CleaningResult | None
    dropped: Mapping[str, int] = field(default_factory=dict)


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
    scratch_dir: str | None = None

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
            scratch_dir=self.scratch_dir,
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

    A source's own split (MedMNIST) is kept; only its training part is cleaned. Cells that are in a held-out set too,
    byte for byte or, where near-duplicates are grouped, nearly, are left out: those of the test set before the split,
    so that they choose no epoch either. Raises UserError.
    """
    loaded, val, test = _load_sets(source, seed, folds)
    _require_every_class(loaded)
    near = clean_first and group_near_duplicates
    cleaning = clean(loaded, group_near_duplicates=near, cache_dir=source.cache_dir) if clean_first else None
    pool = cleaning.kept_indices if cleaning else np.arange(loaded.num_examples)
    groups = cleaning.groups if cleaning else loaded.groups
    dropped: dict[str, int] = {}
    for name, held_out in (("validation", val), ("test", test)):
        if held_out is not None:
            fresh, left_out = not_held_out(loaded, pool, held_out, name, near=near, cache_dir=source.cache_dir)
            pool, groups, dropped = pool[fresh], None if groups is None else groups[fresh], dropped | left_out
    if val is None:
        train_part, val_part = split(
            loaded.labels[pool],
            groups,
            val_fraction=val_fraction,
            seed=seed,
            fold=fold,
            folds=folds,
            class_names=loaded.class_names,
        )
        val, pool = loaded.take(pool[val_part]), pool[train_part]
        if cleaning is None:  # copies may stand on both sides
            fresh, left_out = not_held_out(loaded, pool, val, "validation", near=False, cache_dir=None)
            pool, dropped = pool[fresh], dropped | left_out
    train = loaded.take(pool)
    _require_every_class(train)
    if max_examples is not None:
        train, val = _evenly(train, max_examples), _evenly(val, max_examples)
        test = None if test is None else _evenly(test, max_examples)
    return Prepared(train, val, test, loaded, cleaning, dropped)


def _load_sets(
    source: Source, seed: int, folds: int | None
) -> tuple[ArrayDataset, ArrayDataset | None, ArrayDataset | None]:
    """The cells to clean and split, or only to learn from if the source has validation cells; those; test cells."""
    everything = source.load(seed)
    test = source.load_test(everything.class_names, seed)
    if everything.partition is None:
        return everything, None, test
    if folds is not None:
        raise UserError(
            f"data.folds={folds}: {source.path} has its own validation part; leave data.folds and data.fold out"
        )
    train, val, own_test = (
        everything.take(np.flatnonzero(everything.partition == part)) for part in (TRAIN, VAL, TEST)
    )
    return train, val, own_test if test is None else test


def _require_every_class(dataset: ArrayDataset) -> None:
    counts = dataset.class_counts()
    empty = [name for name, count in zip(dataset.class_names, counts, strict=True) if not count]
    if empty:
        raise UserError(
            f"no training cells of class {', '.join(empty)}; add some, or leave the class out of data.class_names"
        )


def _evenly(dataset: ArrayDataset, limit: int) -> ArrayDataset:
    """At most `limit` examples, drawn evenly along the set ordered by class."""
    if dataset.num_examples <= limit:
        return dataset
    by_class = np.argsort(dataset.labels, kind="stable")
    return dataset.take(np.sort(by_class[np.linspace(0, len(by_class) - 1, limit).round().astype(int)]))
