"""Training and validation parts: stratified, deterministic, groups never on both sides.

Made before any balancing, so that no copy of a validation picture is trained on. scikit-learn's
StratifiedGroupKFold knows only fractions 1/k; this honours any fraction to the example where groups allow it.
"""

from collections.abc import Sequence

import numpy as np

from bloodcell_dist.errors import UserError

_TRIES = 20  # orders of the groups that are tried before the closest result is taken


def split(
    labels: np.ndarray,
    groups: np.ndarray | None,
    *,
    val_fraction: float = 0.1,
    seed: int,
    fold: int | None = None,
    folds: int | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(train_indices, val_indices), both int64 and ascending; together every example once.

    labels: int [N]. groups: int [N] or None; examples of one group land on one side. val_fraction: share of
    each class in (0, 1), at least one example. folds, fold: k-fold instead; the `fold`-th (from 0) of `folds`
    disjoint parts is the validation part and `val_fraction` is not used. class_names: for messages, and to
    notice a class without examples. Raises UserError when a class cannot be on both sides.
    """
    _check_folds(fold, folds, val_fraction)
    names = class_names or [f"class {label}" for label in range(int(labels.max()) + 1)]
    members = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    table = np.zeros((int(members.max()) + 1, len(names)), np.int64)  # examples of each class in each group
    np.add.at(table, (members, labels), 1)
    parts = 2 if folds is None else folds
    _check_classes(table, names, parts)
    in_val = _choose_groups(table, val_fraction, seed, fold, folds)[members]
    train, val = np.flatnonzero(~in_val), np.flatnonzero(in_val)
    check_both_sides(labels, train, val, names)
    return train, val


def check_both_sides(
    labels: np.ndarray, train_indices: np.ndarray, val_indices: np.ndarray, class_names: Sequence[str]
) -> None:
    """Raises UserError naming the first class without an example for training or for validation."""
    for part, indices in (("training", train_indices), ("validation", val_indices)):
        empty = np.flatnonzero(np.bincount(labels[indices], minlength=len(class_names)) == 0)
        if empty.size:
            raise UserError(
                f"class '{class_names[empty[0]]}' has no {part} example; each class needs one on each side. "
                "Add examples, drop the class from data.class_names, or change data.val_fraction or folds"
            )


def _choose_groups(
    table: np.ndarray, val_fraction: float, seed: int, fold: int | None, folds: int | None
) -> np.ndarray:
    """bool [num_groups]: which groups validate. Folds are drawn one after another from the groups that are left."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    totals = table.sum(0)
    if folds is None or fold is None:
        return _draw(table, np.clip(np.rint(totals * val_fraction), 1, totals - 1), rng)
    left = np.ones(len(table), bool)
    for part in range(fold + 1):
        if part == folds - 1:
            return left
        chosen = np.zeros(len(table), bool)
        chosen[left] = _draw(table[left], np.rint(table[left].sum(0) / (folds - part)), rng)
        left &= ~chosen
    return chosen


def _draw(table: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """bool [G]: groups whose class counts add up as nearly as possible to `target` [C].

    Walks through the groups in random order and takes each that brings the sum nearer. Without groups of
    several that hits the target in one walk; else the best of several orders is taken.
    """
    weight = 1.0 / np.maximum(table.sum(0), 1) ** 2  # rare classes count as much as common ones
    best, smallest = np.zeros(len(table), bool), np.inf
    for _ in range(_TRIES):
        chosen = _walk(table, target, weight, rng.permutation(len(table)))
        _give_every_class_one(table, chosen)
        error = float((weight * (table[chosen].sum(0) - target) ** 2).sum())
        if error < smallest:
            best, smallest = chosen, error
        if error == 0:
            break
    return best


def _walk(table: np.ndarray, target: np.ndarray, weight: np.ndarray, order: np.ndarray) -> np.ndarray:
    chosen = np.zeros(len(table), bool)
    missing = target.astype(float)
    for group in order:
        counts = table[group]
        if (weight * counts * (counts - 2 * missing)).sum() < 0:  # the change of the weighted squared error
            chosen[group] = True
            missing -= counts
    return chosen


def _give_every_class_one(table: np.ndarray, chosen: np.ndarray) -> None:
    """Add, for each class that `chosen` lacks, its smallest group; large groups can be too large for any target."""
    for label in range(table.shape[1]):
        having = np.flatnonzero(table[:, label])
        if having.size and not chosen[having].any():
            chosen[having[np.argmin(table[having].sum(1))]] = True


def _check_folds(fold: int | None, folds: int | None, val_fraction: float) -> None:
    if (fold is None) != (folds is None):
        raise UserError(f"data.fold={fold} with data.folds={folds}; give both (folds: 5, fold: 0 to 4) or neither")
    if folds is not None and fold is not None and not (folds >= 2 and 0 <= fold < folds):
        raise UserError(f"data.fold={fold} with data.folds={folds}; expected folds >= 2 and fold from 0 to folds - 1")
    if not 0 < val_fraction < 1:
        raise UserError(f"data.val_fraction={val_fraction}; expected a share between 0 and 1, for example 0.1")


def _check_classes(table: np.ndarray, names: Sequence[str], parts: int) -> None:
    """Every class must have as many groups as there are parts to share them out to."""
    for name, examples, having in zip(names, table.sum(0), (table > 0).sum(0), strict=True):
        if having < parts:
            raise UserError(
                f"class '{name}' has {examples} examples in {having} separate groups; expected at least "
                f"{parts}, so that each side of the split gets one. Add examples or drop the class"
                + (", or use fewer data.folds" if parts > 2 else "")
            )
