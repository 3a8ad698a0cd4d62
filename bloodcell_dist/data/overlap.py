"""Cells to learn from that are held out too: byte for byte, or as a near-duplicate."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bloodcell_dist.data.dataset import ArrayDataset
from bloodcell_dist.data.pairs_cache import find_pairs
from bloodcell_dist.data.rows import Images, take_rows
from bloodcell_dist.errors import UserError

log = logging.getLogger(__name__)

_NAMED = 3  # examples in a warning


def not_held_out(
    dataset: ArrayDataset,
    indices: np.ndarray,
    held_out: ArrayDataset,
    name: str,
    *,
    near: bool,
    cache_dir: str | Path | None,
) -> tuple[np.ndarray, dict[str, int]]:
    """Which cells `indices` of `dataset` are not in `held_out`: (bool [len(indices)], {reason: number left out}).

    name: of the held-out set, for messages. near: leave out near-duplicates too; their pairs are kept in `cache_dir`
    if one is given. Each reason is one warning. Raises UserError when no cell is left.
    """
    theirs = set(_digests(held_out.images, range(held_out.num_examples)))
    same = np.array([digest in theirs for digest in _digests(dataset.images, indices)], bool)
    rest = np.flatnonzero(~same)
    others = take_rows(dataset.images, indices[rest])
    pairs = find_pairs(cache_dir, others, held_out.images) if near and rest.size else []
    twins = {int(rest[pair.first]): pair.second for pair in pairs}
    like = np.isin(np.arange(len(indices)), list(twins))
    if (same | like).all():
        raise UserError(
            f"every training cell is also in the {name} set{' or nearly so' if like.any() else ''}, so there is "
            "nothing left to learn from; data.path and data.test_path must hold different cells"
        )
    copies = [dataset.name_of(index) for index in indices[same]]
    likes = [f"{dataset.name_of(indices[place])} like {held_out.name_of(twin)}" for place, twin in twins.items()]
    left_out = {}
    for reason, found in ((f"also in the {name} set", copies), (f"near-duplicates of {name} cells", likes)):
        if found:
            left_out[reason] = len(found)
            some = ", ".join([*found[:_NAMED], "…"] if len(found) > _NAMED else found)
            log.warning("%d cells are %s (%s); they are left out", len(found), reason, some)
    return ~(same | like), left_out


def _digests(images: Images, indices: Iterable[int]) -> Iterator[bytes]:
    """One for each picture; the pictures themselves would fill the memory."""
    return (hashlib.sha256(np.ascontiguousarray(images[index]).data).digest() for index in indices)
