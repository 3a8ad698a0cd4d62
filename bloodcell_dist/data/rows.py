"""Chosen rows of an array of pictures, read when they are asked for: a split costs indices, not pictures.

The ranks of a node map one decoded file. Were each part of the set a copy, every rank would hold the whole set again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


class Rows:
    """Rows of an array in a given order; reads like an array of its own, but is only looked into.

    Args:
        array: [N, ...], in memory or a memory map.
        rows: int [M] in [0, N).
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self._array = array
        self._rows = np.asarray(rows, np.int64)
        self.shape = (len(self._rows), *array.shape[1:])
        self.dtype = array.dtype

    def __len__(self) -> int:
        """How many rows."""
        return len(self._rows)

    def __getitem__(self, places: Any) -> np.ndarray:
        """One row, a slice of them, or those at an array of places; copied, but for one row."""
        return np.asarray(self._array[self._rows[places]])

    def __iter__(self) -> Iterator[np.ndarray]:
        """Row by row."""
        return (self._array[row] for row in self._rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, copied."""
        if copy is False:
            raise ValueError("chosen rows of an array cannot be one without a copy")
        return np.asarray(self[:], dtype)

    @property
    def is_mapped(self) -> bool:
        """Whether the rows lie in a file that is memory-mapped, which the ranks of a node share."""
        return isinstance(self._array, np.memmap)

    def take(self, places: np.ndarray) -> Rows:
        """Some of these rows, from the same array."""
        return Rows(self._array, self._rows[places])


BLOCK = 1024
"""Pictures looked at together, so that a set that is mapped is never read whole into memory."""

Images = np.ndarray | Rows
"""uint8 [N, H, W, 3]: an array, a read-only memory map, or rows of either."""


def take_rows(images: Images, places: np.ndarray) -> Rows:
    """The pictures at `places`, int [M], none of them copied."""
    return images.take(places) if isinstance(images, Rows) else Rows(images, places)


def is_mapped(images: Images) -> bool:
    """Whether the pictures lie in a file that is memory-mapped."""
    return images.is_mapped if isinstance(images, Rows) else isinstance(images, np.memmap)


def blocks(images: Images) -> Iterator[memoryview]:
    """The bytes of all pictures, block by block, for a hash."""
    for start in range(0, len(images), BLOCK):
        yield np.ascontiguousarray(images[start : start + BLOCK]).data
