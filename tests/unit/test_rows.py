"""Chosen rows of an array: as an array of their own, but none is copied before it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bloodcell_dist.data.dataset import ArrayDataset
from bloodcell_dist.data.rows import Rows, is_mapped, take_rows

ARRAY = np.arange(7 * 4, dtype=np.uint8).reshape(7, 2, 2)
PLACES = np.array([5, 0, 5, 6])


@pytest.mark.parametrize("places", [2, -1, slice(1, 3), slice(None), np.array([3, 3, 0]), [True, False, False, True]])
def test_rows_read_like_a_copy(places: object) -> None:
    rows = take_rows(ARRAY, PLACES)
    np.testing.assert_array_equal(rows[places], ARRAY[PLACES][places], strict=True)
    assert (rows.shape, rows.dtype, len(rows)) == ((4, 2, 2), np.uint8, 4)
    np.testing.assert_array_equal(np.asarray(rows), ARRAY[PLACES], strict=True)
    np.testing.assert_array_equal(np.stack(list(rows)), ARRAY[PLACES])


def test_rows_of_rows_are_rows_of_the_array() -> None:
    again = take_rows(take_rows(ARRAY, PLACES), np.array([3, 1]))
    np.testing.assert_array_equal(np.asarray(again), ARRAY[[6, 0]])
    assert np.shares_memory(again[0], ARRAY)


def test_a_place_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError):
        Rows(ARRAY, PLACES)[4]
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(Rows(ARRAY, PLACES), copy=False)


def test_parts_of_a_set_leave_a_mapped_file_where_it_is(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    part = ArrayDataset(mapped, np.arange(8) % 2, ("a", "b")).take([6, 1, 4]).take([2, 0])
    assert isinstance(part.images, Rows)
    assert np.shares_memory(part.images[0], mapped)
    assert is_mapped(mapped) and is_mapped(part.images)
    assert not is_mapped(images) and not is_mapped(take_rows(images, np.array([1])))
    copied = ArrayDataset(images[[4, 6]], np.array([0, 0]), ("a", "b"))
    assert part.fingerprint() == copied.fingerprint()
