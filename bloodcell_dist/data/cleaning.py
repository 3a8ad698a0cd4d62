"""What must not be trained on: junk pictures and exact duplicates; and which pictures must stay on one side
of a split."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bloodcell_dist.data.dataset import ArrayDataset
from bloodcell_dist.data.pairs_cache import find_pairs
from bloodcell_dist.data.rows import take_rows
from bloodcell_dist.data.similarity import NearPair, connected_groups, identical_copies
from bloodcell_dist.errors import UserError

DUPLICATE = "duplicate"
ACROSS_CLASSES = "across_classes"
MASS_COPY = "mass_copy"
REASONS = {
    DUPLICATE: "byte-identical copy of a picture of the same class; one copy stays",
    ACROSS_CLASSES: "byte-identical picture in several classes, so no label is right; every copy is dropped",
    MASS_COPY: "copied far more often than the others of its class, so no cell; every copy is dropped",
}
TITLES = {
    DUPLICATE: "exact duplicates",
    ACROSS_CLASSES: "same picture in several classes",
    MASS_COPY: "copied many times in one class",
}
"""The reasons in a few words, as headings."""
MASS_COPIES = 10
"""How many byte-identical copies in one class make a picture junk. A cell may be exported twice or three
times, not ten times. In a class that was balanced by copying, where the median picture has m copies, it takes
10 m."""


@dataclass(frozen=True)
class Removal:
    """One dropped picture: its index and name in the uncleaned set, its label, why (a key of REASONS), and
    the index of the copy that stayed (DUPLICATE) or of the first copy (junk)."""

    index: int
    name: str
    label: int
    reason: str
    twin: int


@dataclass(frozen=True, eq=False)
class CleaningResult:
    """What cleaning found. All indices refer to the uncleaned set of `num_examples` pictures.

    kept_indices: int64 [K], ascending. removed: one record per dropped picture, ascending. groups: int64 [K],
    of the kept ones; pictures with the same number must not be split. near_pairs: the near-duplicates among
    the kept.
    """

    num_examples: int
    kept_indices: np.ndarray
    removed: tuple[Removal, ...]
    groups: np.ndarray
    near_pairs: tuple[NearPair, ...]

    def counts(self) -> dict[str, int]:
        """Dropped pictures by reason, every reason of REASONS, zeros included."""
        found = Counter(removal.reason for removal in self.removed)
        return {reason: found[reason] for reason in REASONS}

    def near_groups(self) -> list[np.ndarray]:
        """Index sets of pictures that near-duplicates link, largest first; each int64, ascending."""
        return _near_groups(self.num_examples, self.near_pairs)

    def summary(self) -> str:
        """One line for the log."""
        dropped = ", ".join(f"{count} {TITLES[reason]}" for reason, count in self.counts().items() if count)
        groups = self.near_groups()
        largest = f", largest {len(groups[0])}" if groups else ""
        return (
            f"cleaning keeps {len(self.kept_indices)} of {self.num_examples} pictures "
            f"(dropped: {dropped or 'none'}; near-duplicate groups: {len(groups)}{largest})"
        )


def clean(
    dataset: ArrayDataset, *, group_near_duplicates: bool = True, cache_dir: str | Path | None = None
) -> CleaningResult:
    """Find junk and exact duplicates, and group near-duplicates, which are never dropped.

    Byte-identical pictures alone are dropped, so a real cell that junk was blended over stays. Of duplicates
    in one class the first stays; with a source's own split the first in the test part, then validation, then
    training, so that a published test set stays whole. `groups` joins the set's own groups with the
    near-duplicates, whose pairs are kept in `cache_dir` if one is given. Raises UserError when nothing is left.
    """
    removed = sorted(_find_junk_and_duplicates(dataset), key=lambda removal: removal.index)
    kept = np.setdiff1d(np.arange(dataset.num_examples), [removal.index for removal in removed])
    if not kept.size:
        raise UserError(
            f"cleaning leaves none of {dataset.num_examples} pictures: all are copies across classes or many "
            "times in one class. Check the data, or set data.clean=false to train on it as it is"
        )
    pairs = find_pairs(cache_dir, take_rows(dataset.images, kept)) if group_near_duplicates else []
    moved = tuple(
        NearPair(int(kept[pair.first]), int(kept[pair.second]), pair.orientation, pair.distance) for pair in pairs
    )
    groups = _join_groups(pairs, None if dataset.groups is None else dataset.groups[kept], len(kept))
    return CleaningResult(dataset.num_examples, kept.astype(np.int64), tuple(removed), groups, moved)


def _find_junk_and_duplicates(dataset: ArrayDataset) -> list[Removal]:
    sets = identical_copies(dataset.images)
    limits = _mass_limits(dataset, sets)
    removed: list[Removal] = []
    for copies in sets:
        labels = np.unique(dataset.labels[copies])
        if len(labels) > 1:
            removed += _removals(dataset, copies, ACROSS_CLASSES, copies[0])
        elif len(copies) >= limits[labels[0]]:
            removed += _removals(dataset, copies, MASS_COPY, copies[0])
        else:
            stays = copies[0] if dataset.partition is None else copies[np.argmax(dataset.partition[copies])]
            removed += _removals(dataset, copies[copies != stays], DUPLICATE, stays)
    return removed


def _mass_limits(dataset: ArrayDataset, sets: list[np.ndarray]) -> np.ndarray:
    """int64 [num_classes]: from how many copies on a picture of this class is junk; see MASS_COPIES."""
    copies = np.ones(dataset.num_examples, np.int64)  # at the first copy of each picture; 0 at the others
    for indices in sets:
        copies[indices] = 0
        copies[indices[0]] = len(indices)
    limits = np.full(len(dataset.class_names), MASS_COPIES, np.int64)
    for label in np.unique(dataset.labels):
        pictures = copies[(dataset.labels == label) & (copies > 0)]
        if pictures.size:
            limits[label] = MASS_COPIES * int(np.percentile(pictures, 50, method="lower"))
    return limits


def _removals(dataset: ArrayDataset, indices: np.ndarray, reason: str, twin: int) -> list[Removal]:
    return [
        Removal(int(index), dataset.name_of(index), int(dataset.labels[index]), reason, int(twin)) for index in indices
    ]


def _join_groups(pairs: list[NearPair], own: np.ndarray | None, num_examples: int) -> np.ndarray:
    """int64 [num_examples]: components of near-duplicates and of the set's own groups together."""
    first = [pair.first for pair in pairs]
    second = [pair.second for pair in pairs]
    if own is not None:
        _, representative, number = np.unique(own, return_index=True, return_inverse=True)
        first += list(range(num_examples))
        second += representative[number].tolist()
    return connected_groups(num_examples, np.array(first, np.int64), np.array(second, np.int64))


def _near_groups(num_examples: int, pairs: tuple[NearPair, ...]) -> list[np.ndarray]:
    first = np.array([pair.first for pair in pairs], np.int64)
    second = np.array([pair.second for pair in pairs], np.int64)
    numbers = connected_groups(num_examples, first, second)
    linked = np.unique(np.concatenate([first, second]))
    found = [linked[numbers[linked] == number] for number in np.unique(numbers[linked])]
    return sorted(found, key=lambda group: (-len(group), group[0]))
