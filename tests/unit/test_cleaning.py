"""Cleaning and the search for near-duplicates; on noise pictures made here and on real cells."""

import io
import json

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageFilter

from bloodcell_dist.data import cleaning_report
from bloodcell_dist.data.cleaning import ACROSS_CLASSES, DUPLICATE, MASS_COPY, REASONS, TITLES, clean
from bloodcell_dist.data.cleaning_report import draw_cleaning, write_cleaning_report
from bloodcell_dist.data.dataset import ArrayDataset
from bloodcell_dist.data.similarity import _describe, _hashes, near_duplicates, oriented
from bloodcell_dist.data.sources import load_dataset
from bloodcell_dist.data.splits import split
from bloodcell_dist.errors import UserError


def blobs(count: int, seed: int = 0, size: int = 32) -> np.ndarray:
    """Smooth random colour pictures, uint8 [count, size, size, 3], no two alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(picture).resize((size, size), 3)) for picture in coarse])


def dataset_of(picks: list[tuple[int, int]], **columns) -> ArrayDataset:
    """(picture, label) pairs as a set of three classes."""
    pictures, labels = np.array(picks).T
    return ArrayDataset(blobs(40)[pictures], labels.astype(np.int64), ("a", "b", "c"), **columns)


def dropped(dataset: ArrayDataset, **options) -> dict[int, tuple[str, int]]:
    result = clean(dataset, **options)
    assert sorted([*result.kept_indices, *(removal.index for removal in result.removed)]) == list(
        range(dataset.num_examples)
    )
    return {removal.index: (removal.reason, removal.twin) for removal in result.removed}


def test_a_clean_set_stays_as_it_is():
    result = clean(dataset_of([(i, i % 3) for i in range(12)]))
    assert result.kept_indices.tolist() == list(range(12))
    assert result.counts() == {DUPLICATE: 0, ACROSS_CLASSES: 0, MASS_COPY: 0}
    assert sorted(result.groups) == list(range(12))
    assert "keeps 12 of 12 pictures (dropped: none; near-duplicate groups: 0)" in result.summary()


def test_of_duplicates_in_one_class_the_first_stays():
    assert dropped(dataset_of([(0, 0), (1, 0), (0, 0), (2, 1), (0, 0)])) == {2: (DUPLICATE, 0), 4: (DUPLICATE, 0)}


def test_of_pictures_in_several_classes_none_stays():
    assert dropped(dataset_of([(1, 0), (0, 0), (0, 1), (0, 1), (2, 2)])) == {
        index: (ACROSS_CLASSES, 1) for index in (1, 2, 3)
    }


@pytest.mark.parametrize(("copies", "expected"), [(9, {DUPLICATE}), (10, {MASS_COPY})])
def test_a_picture_copied_ten_times_in_one_class_is_junk(copies, expected):
    found = dropped(dataset_of([(i, 1) for i in range(5)] + [(7, 1)] * copies))
    assert {reason for reason, _ in found.values()} == expected
    assert len(found) == (copies if expected == {MASS_COPY} else copies - 1)


def test_the_summary_says_the_reasons_in_words():
    picks = [(i, i % 3) for i in range(6)] + [(0, 0), (1, 1), (7, 0), (7, 1)]
    words = "keeps 6 of 10 pictures (dropped: 2 exact duplicates, 2 same picture in several classes; near"
    assert words in clean(dataset_of(picks)).summary()
    assert set(TITLES) == set(REASONS)


def test_a_class_balanced_by_copying_is_not_junk():
    """Every cell 12 times: each is kept once; a picture copied 130 times among them is still junk."""
    picks = [(i, 2) for i in range(6) for _ in range(12)]
    assert {reason for reason, _ in dropped(dataset_of(picks)).values()} == {DUPLICATE}
    result = clean(dataset_of(picks + [(9, 2)] * 130))
    assert result.counts() == {DUPLICATE: 66, ACROSS_CLASSES: 0, MASS_COPY: 130}


def test_a_published_test_part_stays_whole():
    partition = np.array([0, 2, 1, 0], np.int8)
    found = dropped(dataset_of([(0, 0), (0, 0), (0, 0), (1, 1)], partition=partition))
    assert found == {0: (DUPLICATE, 1), 2: (DUPLICATE, 1)}


def test_nothing_left_is_a_mistake():
    with pytest.raises(UserError, match="cleaning leaves none of 4 pictures.*data.clean=false"):
        clean(dataset_of([(0, 0), (0, 1), (1, 1), (1, 2)]))


# --- near-duplicates ---


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, "JPEG", quality=quality)
    return np.asarray(Image.open(stored))


@pytest.mark.parametrize("orientation", range(8))
def test_every_orientation_is_found_and_named(orientation):
    images = blobs(6)
    images[5] = jpeg(oriented(images[2:3], orientation)[0], 90)
    (pair,) = near_duplicates(images)
    assert (pair.first, pair.second, pair.orientation) == (2, 5, orientation)
    assert 0 < pair.distance < 0.01


def test_flat_pictures_are_like_nothing():
    images = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 90, 255)])
    assert near_duplicates(images) == []


def test_pictures_that_are_not_square_are_compared_upright_and_mirrored():
    images = np.ascontiguousarray(blobs(4)[:, :20])
    images[3] = images[1, ::-1]
    assert [(pair.first, pair.second, pair.orientation) for pair in near_duplicates(images)] == [(1, 3, 6)]


def test_between_two_sets_the_same_pairs_are_found_as_in_both_together():
    mine, theirs = blobs(7), blobs(5, seed=1)
    mine[6] = jpeg(mine[2], 90)  # within one set: not asked for
    theirs[4], theirs[1] = jpeg(oriented(mine[2:3], 3)[0], 90), jpeg(oriented(mine[5:6], 6)[0], 90)
    together = [
        (pair.first, pair.second - 7, pair.orientation, pytest.approx(pair.distance, abs=1e-6))
        for pair in near_duplicates(np.concatenate([mine, theirs]))
        if pair.first < 7 <= pair.second
    ]
    found = [(pair.first, pair.second, pair.orientation, pair.distance) for pair in near_duplicates(mine, theirs)]
    assert [pair[:3] for pair in found] == [(2, 4, 3), (5, 1, 6), (6, 4, 3)]
    assert found == together


def test_the_distance_is_a_choice():
    images = blobs(6)
    images[5] = jpeg(images[2], 30)
    (pair,) = near_duplicates(images)
    assert near_duplicates(images, max_distance=pair.distance / 2) == []


def test_near_duplicates_are_kept_and_grouped_with_the_sets_own_groups():
    images = blobs(8)
    images[5], images[6] = jpeg(images[1], 80), jpeg(images[2], 80)
    own = np.array([9, 1, 2, 3, 9, 5, 6, 2])  # 0 with 4, 2 with 7
    dataset = ArrayDataset(images, np.arange(8) % 2, ("a", "b"), groups=own)
    result = clean(dataset)
    assert not result.removed
    together = [np.flatnonzero(result.groups == number).tolist() for number in np.unique(result.groups)]
    assert sorted(together) == [[0, 4], [1, 5], [2, 6, 7], [3]]
    assert [group.tolist() for group in result.near_groups()] == [[1, 5], [2, 6]]
    apart = clean(dataset, group_near_duplicates=False)
    assert apart.near_pairs == () and apart.groups[0] == apart.groups[4] and apart.groups[1] != apart.groups[5]


def test_groups_and_pairs_count_from_different_ends():
    """Groups follow the kept pictures, pairs name pictures of the uncleaned set."""
    images = blobs(6)
    images[1] = images[0]
    images[5] = jpeg(images[3], 80)
    result = clean(ArrayDataset(images, np.zeros(6, np.int64), ("a", "b")))
    assert [(pair.first, pair.second) for pair in result.near_pairs] == [(3, 5)]
    assert result.kept_indices.tolist() == [0, 2, 3, 4, 5]
    assert result.groups[2] == result.groups[4] and len(set(result.groups)) == 4


# --- the report ---


def test_the_report_lists_and_pictures_what_was_removed(tmp_path):
    images = blobs(40)[[0, 1, 2, 0, 1, 3, *[4] * 10, 5, 5]]
    images[17] = jpeg(images[16], 80)
    labels = np.array([0, 0, 1, 0, 1, 2, *[1] * 10, 2, 2])
    names = tuple(f"slide/cell{i}.png" for i in range(18))
    dataset = ArrayDataset(images, labels, ("a", "b", "c"), names=names)
    result = clean(dataset)
    picture = write_cleaning_report(result, dataset, tmp_path)
    listed = json.loads((tmp_path / "cleaning.json").read_text())
    assert listed["removed_by_reason"] == {DUPLICATE: 1, ACROSS_CLASSES: 2, MASS_COPY: 10}
    assert listed["removed"][1] == {
        "index": 3,
        "name": "slide/cell3.png",
        "class": "a",
        "reason": DUPLICATE,
        "twin": {"index": 0, "name": "slide/cell0.png", "class": "a"},
    }
    assert [[member["index"] for member in group] for group in listed["near_duplicate_groups"]] == [[16, 17]]
    assert listed["num_examples"] == 18 and listed["num_kept"] == 5
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG" and drawn.width > 1000
    shown = [text.get_text() for text in draw_cleaning(result, dataset).texts]
    assert shown[0] == "Cleaning kept 5 of 18 pictures"
    assert "10 dropped, b\nfirst: slide/cell6.png" in shown
    assert "2 dropped, 2 classes\nfirst: slide/cell1.png" in shown
    assert "1 dropped, a\nkept: slide/cell0.png" in shown
    assert "group 1: c\n…slide/cell17.png"[-15:] in shown[-1]


def test_a_report_that_was_cut_short_is_not_taken_for_done(tmp_path, monkeypatch):
    """cleaning.json says that the report is there, so it comes last."""

    def killed(*_):
        raise KeyboardInterrupt

    dataset = dataset_of([(0, 0), (1, 1)])
    monkeypatch.setattr(cleaning_report, "draw_cleaning", killed)
    with pytest.raises(KeyboardInterrupt):
        write_cleaning_report(clean(dataset), dataset, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_report_says_when_nothing_was_removed(tmp_path):
    dataset = dataset_of([(0, 0), (1, 1)])
    result = clean(dataset)
    assert write_cleaning_report(result, dataset, tmp_path).is_file()
    assert json.loads((tmp_path / "cleaning.json").read_text())["removed"] == []
    assert "Nothing was removed; no near-duplicates." in draw_cleaning(result, dataset).texts[1].get_text()


def test_long_lists_are_cut_in_the_picture_only(tmp_path):
    dataset = dataset_of([(i, 0) for i in range(30)] * 2)
    result = clean(dataset)
    shown = [text.get_text() for text in draw_cleaning(result, dataset).texts]
    assert "(20 of 30 shown; cleaning.json lists all)" in shown[2]
    write_cleaning_report(result, dataset, tmp_path)
    assert len(json.loads((tmp_path / "cleaning.json").read_text())["removed"]) == 30


# --- real cells ---


@pytest.fixture(scope="module")
def contaminated(real_data):
    return load_dataset("auto", real_data / "contaminated.npz")


def test_of_the_contaminated_set_exactly_the_real_cells_stay(contaminated):
    result = clean(contaminated)
    assert np.array_equal(result.kept_indices, np.arange(800))
    assert result.counts() == {DUPLICATE: 4, ACROSS_CLASSES: 120, MASS_COPY: 15}
    assert {removal.twin for removal in result.removed if removal.reason == DUPLICATE} == {3, 150, 420, 790}
    assert len(set(result.groups)) == 800


def test_of_the_training_set_nothing_real_is_lost(real_data):
    """And no look-alike cells are chained: unrelated cells stay in groups of their own."""
    cells = load_dataset("auto", real_data / "training_set.npz")
    result = clean(cells)
    assert np.array_equal(result.kept_indices, np.arange(5977))
    assert result.removed == () and len(set(result.groups)) == 5977


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda cell: jpeg(cell, 30), 1.0),
        (lambda cell: (cell * 0.8).astype(np.uint8), 1.0),
        (lambda cell: np.asarray(Image.fromarray(cell).filter(ImageFilter.GaussianBlur(1.5))), 1.0),
        (lambda cell: np.roll(cell, 1, axis=0), 0.95),
    ],
    ids=["jpeg", "exposure", "focus", "shift"],
)
def test_copies_of_real_cells_are_recognised_in_any_orientation(contaminated, change, least):
    cells = contaminated.images[:800:8]
    copies = np.stack([change(np.ascontiguousarray(oriented(cell[None], i % 8)[0])) for i, cell in enumerate(cells)])
    found = {(pair.first, pair.second) for pair in near_duplicates(np.concatenate([cells, copies]))}
    assert found <= {(i, i + 100) for i in range(100)}  # no unrelated pair
    assert len(found) >= least * 100


def test_near_duplicates_of_real_cells_end_on_one_side(contaminated):
    cells = contaminated.images[:800:4]
    copies = np.stack([jpeg(np.ascontiguousarray(cell[::-1]), 50) for cell in cells])
    labels = np.tile(contaminated.labels[:800:4], 2)
    dataset = ArrayDataset(np.concatenate([cells, copies]), labels, contaminated.class_names)
    train, val = split(dataset.labels, clean(dataset).groups, val_fraction=0.2, seed=1)
    assert not set(train % 200) & set(val % 200)
    assert len(val) == 80


def test_the_hash_is_that_of_the_library(contaminated):
    """Same algorithm as imagehash.phash but for its Lanczos reduction: a few borderline bits differ."""
    cells = contaminated.images[:200]
    ours = _hashes(_describe(cells)[0])
    theirs = [np.packbits(imagehash.phash(Image.fromarray(cell)).hash).view(np.uint64)[0] for cell in cells]
    differing = np.bitwise_count(ours ^ np.array(theirs))
    assert differing.mean() < 2 and differing.max() <= 6
