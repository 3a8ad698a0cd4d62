"""From files to the three sets of a run, with real files made here."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bloodcell_dist.data import pairs_cache
from bloodcell_dist.data.dataset import ArrayDataset
from bloodcell_dist.data.prepare import Prepared, Source, prepare
from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import BLOOD_CELLS

SIDE = 16
THREE = ("round", "lobed", "dark")


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def npz(path: Path, labels: list[int] | np.ndarray, seed: int = 0, **arrays: np.ndarray) -> Path:
    labels = np.asarray(labels)
    np.savez(path, **({"images": pictures(len(labels), seed), "labels": labels} | arrays))
    return path


def medmnist(path: Path, **counts: int) -> Path:
    arrays = {}
    for seed, (part, count) in enumerate(({"train": 40, "val": 16, "test": 24} | counts).items()):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = pictures(count, seed), np.arange(count)[:, None] % 8
    np.savez(path, **arrays)
    return path


def folder(root: Path, counts: dict[str, int], seed: int) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index, pixels in enumerate(pictures(count, 100 * seed + number)):
            Image.fromarray(pixels).save(root / name / f"{index:03d}.png")
    return root


def source(path: Path | None, test_path: Path | None = None, **changes: Any) -> Source:
    values: dict[str, Any] = {
        "source": "auto",
        "path": None if path is None else str(path),
        "test_path": None if test_path is None else str(test_path),
        "class_names": None,
        "image_size": SIDE,
        "crop": None,
        "cache_dir": None,
        "group_column": None,
        "synthetic_examples": 200,
    }
    return Source(**(values | changes))


def run(cells: Source, **changes: Any) -> Prepared:
    options: dict[str, Any] = {
        "clean_first": True,
        "group_near_duplicates": False,
        "val_fraction": 0.25,
        "fold": None,
        "folds": None,
        "max_examples": None,
        "seed": 0,
    }
    return prepare(cells, **(options | changes))


def shown(cells: ArrayDataset | None) -> set[bytes]:
    """The pictures of a set."""
    assert cells is not None
    return {image.tobytes() for image in cells.images}


def test_an_npz_is_split_and_nothing_is_lost(tmp_path: Path) -> None:
    found = run(source(npz(tmp_path / "a.npz", np.arange(80) % 8)))
    assert (found.train.num_examples, found.val.num_examples, found.test) == (64, 16, None)
    assert found.val.class_counts().tolist() == [2] * 8
    assert not shown(found.train) & shown(found.val)
    assert shown(found.train) | shown(found.val) == shown(found.loaded)


def test_the_same_arguments_give_the_same_sets(tmp_path: Path) -> None:
    cells = source(npz(tmp_path / "a.npz", np.arange(80) % 8))
    prints = [run(cells, seed=seed).train.fingerprint() for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_a_large_test_set_stays_whole(tmp_path: Path) -> None:
    """More test cells than training cells is what a small laboratory has."""
    test = npz(tmp_path / "t.npz", np.arange(400) % 8, seed=1)
    found = run(source(npz(tmp_path / "a.npz", np.arange(80) % 8), test), val_fraction=0.8)
    assert found.train.num_examples == 16
    assert found.val.num_examples == 64
    assert found.test is not None and found.test.num_examples == 400


def test_max_examples_is_for_each_set_and_even(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(8), [10, 20, 30, 40, 50, 60, 70, 120])
    test = npz(tmp_path / "t.npz", np.arange(20) % 8, seed=1)
    found = run(source(npz(tmp_path / "a.npz", labels), test), max_examples=40)
    assert found.test is not None
    assert [cells.num_examples for cells in (found.train, found.val, found.test)] == [40, 40, 20]
    whole = run(source(tmp_path / "a.npz")).train
    np.testing.assert_allclose(found.train.class_counts() / 40, whole.class_counts() / whole.num_examples, atol=0.05)
    assert found.train.class_counts().min() >= 1
    assert shown(found.train) <= shown(whole)
    assert len(shown(found.train)) == 40


def test_test_cells_neither_train_nor_choose_the_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine, theirs = pictures(80, 0), pictures(16, 1)
    theirs[:8] = mine[:8]
    cells = source(
        npz(tmp_path / "a.npz", np.arange(80) % 8, images=mine),
        npz(tmp_path / "t.npz", np.arange(16) % 8, images=theirs),
    )
    for seed in range(3):
        found = run(cells, seed=seed)
        assert not (shown(found.train) | shown(found.val)) & shown(found.test)
        assert found.test is not None and found.test.num_examples == 16
        assert found.dropped == {"also in the test set": 8}
        assert found.train.num_examples + found.val.num_examples + 8 == 80
    assert "8 cells are also in the test set (0, 1, 2, …); they are left out" in caplog.text


def smooth(count: int, seed: int) -> np.ndarray:
    """Smooth pictures, as cells are, uint8 [count, 96, 96, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(picture).resize((96, 96), 3)) for picture in coarse])


def jpeg(picture: np.ndarray) -> np.ndarray:
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, "JPEG", quality=50)
    return np.asarray(Image.open(stored))


CHANGES = pytest.mark.parametrize(
    "change",
    [jpeg, np.rot90, lambda picture: np.roll(picture, 1, axis=0), lambda picture: jpeg(picture[:, ::-1])],
    ids=["jpeg", "rotated", "shifted", "mirrored jpeg"],
)


@CHANGES
def test_near_duplicates_of_test_cells_are_left_out_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    mine, theirs = smooth(40, 0), smooth(16, 1)
    theirs[:5] = [change(picture) for picture in mine[3:8]]
    theirs[5] = mine[8]
    cells = source(
        npz(tmp_path / "a.npz", np.arange(40) % 8, images=mine),
        npz(tmp_path / "t.npz", np.arange(16) % 8, images=theirs),
        image_size=96,
    )
    found = run(cells, group_near_duplicates=True)
    assert found.dropped == {"also in the test set": 1, "near-duplicates of test cells": 5}
    assert found.train.num_examples + found.val.num_examples == 34
    assert not shown(found.loaded.take(range(3, 9))) & (shown(found.train) | shown(found.val))
    assert found.test is not None and found.test.num_examples == 16
    (line,) = [record.getMessage() for record in caplog.records if "near" in record.getMessage()]
    assert line == "5 cells are near-duplicates of test cells (3 like 0, 4 like 1, 5 like 2, …); they are left out"
    assert run(cells, group_near_duplicates=False).dropped == {"also in the test set": 1}


@CHANGES
def test_near_duplicates_of_a_source_s_own_held_out_cells_leave_training(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    parts = {"train": smooth(40, 0), "val": smooth(16, 1), "test": smooth(16, 2)}
    parts["val"][0], parts["test"][0] = change(parts["train"][3]), change(parts["train"][4])
    images = {f"{name}_images": cells for name, cells in parts.items()}
    labels = {f"{name}_labels": np.arange(len(cells)) % 8 for name, cells in parts.items()}
    np.savez(tmp_path / "blood.npz", **images, **labels)
    found = run(source(tmp_path / "blood.npz", image_size=96), group_near_duplicates=True)
    assert found.dropped == {"near-duplicates of validation cells": 1, "near-duplicates of test cells": 1}
    assert found.test is not None
    assert [cells.num_examples for cells in (found.train, found.val, found.test)] == [38, 16, 16]


def test_training_on_turned_test_cells_is_refused(tmp_path: Path) -> None:
    mine = smooth(32, 0)
    test = npz(tmp_path / "t.npz", np.arange(32) % 8, images=mine[:, ::-1])
    with pytest.raises(UserError, match="every training cell is also in the test set or nearly so"):
        run(
            source(npz(tmp_path / "a.npz", np.arange(32) % 8, images=mine), test, image_size=96),
            group_near_duplicates=True,
        )


def test_names_labels_and_groups_stay_with_their_pictures(tmp_path: Path) -> None:
    mine, theirs = pictures(88, 0), pictures(16, 1)
    mine[80:] = mine[0]  # in every class: removed by cleaning
    theirs[:8] = mine[8:16]  # left out for the test set
    patients = np.arange(88) // 2
    path = npz(tmp_path / "a.npz", np.arange(88) % 8, images=mine, patients=patients)
    test = npz(tmp_path / "t.npz", np.arange(16) % 8, images=theirs)
    found = run(source(path, test, group_column="patients"))
    assert (found.cleaning and len(found.cleaning.removed), found.dropped) == (9, {"also in the test set": 8})
    for cells in (found.train, found.val):
        assert cells.names is not None
        places = np.array([int(name) for name in cells.names])
        np.testing.assert_array_equal(cells.images, mine[places])
        np.testing.assert_array_equal(cells.labels, places % 8)
        assert cells.groups is not None
        np.testing.assert_array_equal(cells.groups, patients[places])


def test_what_is_known_of_near_duplicates_is_not_searched_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = smooth(40, 0), smooth(16, 1)
    mine[39], theirs[0] = jpeg(mine[1]), jpeg(mine[2])
    cells = source(
        npz(tmp_path / "a.npz", np.arange(40) % 8, images=mine),
        npz(tmp_path / "t.npz", np.arange(16) % 8, images=theirs),
        image_size=96,
        cache_dir=str(tmp_path / "cache"),
    )
    first = run(cells, group_near_duplicates=True)
    monkeypatch.delattr(pairs_cache, "near_duplicates")
    again = run(cells, group_near_duplicates=True)
    for one, other in ((first.train, again.train), (first.val, again.val)):
        assert one.fingerprint() == other.fingerprint()
    assert first.cleaning is not None and again.cleaning is not None
    assert first.cleaning.near_pairs == again.cleaning.near_pairs != ()
    assert first.dropped == again.dropped == {"near-duplicates of test cells": 1}


def test_training_on_the_test_set_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", np.arange(80) % 8)
    with pytest.raises(UserError, match="every training cell is also in the test set.*data.path and data.test_path"):
        run(source(path, path))


def test_a_class_that_is_all_in_the_test_set_is_named(tmp_path: Path) -> None:
    mine = pictures(80, 0)
    labels = np.arange(80) % 8
    test = npz(tmp_path / "t.npz", labels[labels == 3], images=mine[labels == 3])
    with pytest.raises(UserError, match="class 'ig' has 0 examples in 0 separate groups"):
        run(source(npz(tmp_path / "a.npz", labels, images=mine), test))


def test_duplicates_across_the_split_are_taken_out_without_cleaning_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = pictures(80, 0)
    images[40:] = images[:40]
    found = run(source(npz(tmp_path / "a.npz", np.arange(80) % 8, images=images)), clean_first=False)
    assert found.cleaning is None
    assert found.val.num_examples == 16
    assert not shown(found.train) & shown(found.val)
    assert "cells are also in the validation set" in caplog.text
    assert found.train.num_examples + found.val.num_examples + sum(found.dropped.values()) == 80


def test_cleaning_comes_before_the_split(tmp_path: Path) -> None:
    images = pictures(88, 0)
    images[80:] = images[0]  # one picture in every class
    found = run(source(npz(tmp_path / "a.npz", np.arange(88) % 8, images=images)))
    assert found.cleaning is not None and len(found.cleaning.removed) == 9
    assert found.loaded.num_examples == 88
    assert found.train.num_examples + found.val.num_examples == 79
    assert images[0].tobytes() not in shown(found.train) | shown(found.val)


def test_a_class_that_cleaning_removes_is_named(tmp_path: Path) -> None:
    images, labels = pictures(80, 0), np.arange(80) % 8
    images[labels == 3] = images[labels == 4]  # no label is right
    with pytest.raises(UserError, match="class 'ig' has 0 examples in 0 separate groups"):
        run(source(npz(tmp_path / "a.npz", labels, images=images)))


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training cells of class ig, platelet; add some"):
        run(source(npz(tmp_path / "a.npz", [0, 1, 2, 4, 5, 6] * 4)))


def test_groups_stay_together(tmp_path: Path) -> None:
    patients = np.arange(160) // 8  # each patient has a cell of every class
    path = npz(tmp_path / "a.npz", np.arange(160) % 8, patients=patients)
    for clean_first in (True, False):
        found = run(source(path, group_column="patients"), clean_first=clean_first)
        assert found.train.groups is not None and found.val.groups is not None
        assert not set(found.train.groups) & set(found.val.groups)
        assert found.val.num_examples == 40


def test_folds_partition_the_cells(tmp_path: Path) -> None:
    cells = source(npz(tmp_path / "a.npz", np.arange(80) % 8))
    parts = [shown(run(cells, folds=5, fold=fold).val) for fold in range(5)]
    assert [len(part) for part in parts] == [16] * 5
    assert len(set.union(*parts)) == 80


# ---- a source's own split


def test_a_source_s_own_split_is_kept(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "blood.npz")
    found = run(source(path))
    with np.load(path) as file:
        for part, cells in (("train", found.train), ("val", found.val), ("test", found.test)):
            assert cells is not None
            np.testing.assert_array_equal(cells.images, file[f"{part}_images"])
            np.testing.assert_array_equal(cells.labels, file[f"{part}_labels"][:, 0])
    assert found.loaded.num_examples == 40


def test_another_test_set_replaces_the_source_s_own(tmp_path: Path) -> None:
    test = npz(tmp_path / "t.npz", np.arange(8), seed=9)
    found = run(source(medmnist(tmp_path / "blood.npz"), test))
    assert found.test is not None and found.test.num_examples == 8


def test_only_the_test_part_of_a_split_source_is_tested_on(tmp_path: Path) -> None:
    found = run(source(npz(tmp_path / "a.npz", np.arange(80) % 8, seed=9), medmnist(tmp_path / "blood.npz")))
    with np.load(tmp_path / "blood.npz") as file:
        assert found.test is not None
        np.testing.assert_array_equal(found.test.images, file["test_images"])


def test_folds_of_a_split_source_are_refused(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "blood.npz")
    with pytest.raises(UserError, match="data.folds=5: .*blood.npz has its own validation part; leave data.folds"):
        run(source(path), folds=5, fold=0)


# ---- class names


def test_labels_of_a_test_folder_follow_the_order_of_the_training_set(tmp_path: Path) -> None:
    """By itself the folder would be sorted by name: dark 0, lobed 1, round 2."""
    train = npz(tmp_path / "a.npz", np.arange(30) % 3)
    test = folder(tmp_path / "test", {"dark": 1, "lobed": 2, "round": 3}, seed=1)
    found = run(source(train, test, class_names=THREE))
    assert found.test is not None
    assert found.test.class_names == found.train.class_names == THREE
    assert found.test.class_counts().tolist() == [3, 2, 1]


def test_a_test_folder_may_lack_a_class(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", {"b": 8, "a": 8, "c": 8}, seed=1)
    found = run(source(train, folder(tmp_path / "test", {"b": 2, "c": 3}, seed=2)))
    assert found.test is not None
    assert found.test.class_names == ("a", "b", "c")
    assert found.test.class_counts().tolist() == [0, 2, 3]


def test_a_test_folder_with_an_unknown_class_is_refused(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", {"a": 8, "b": 8}, seed=1)
    with pytest.raises(UserError, match="other"):
        run(source(train, folder(tmp_path / "test", {"a": 2, "other": 3}, seed=2)))


# ---- drawn cells


def test_drawn_cells_have_a_test_set_of_their_own() -> None:
    found = run(source(None, source="synthetic"), max_examples=None)
    assert found.test is not None
    assert found.loaded.num_examples == 200 and found.test.num_examples == 50
    assert found.test.class_names == BLOOD_CELLS
    assert not shown(found.test) & shown(found.loaded)


def test_drawn_cells_can_be_tested_on_others(tmp_path: Path) -> None:
    found = run(source(None, npz(tmp_path / "t.npz", np.arange(8)), source="synthetic"))
    assert found.test is not None and found.test.num_examples == 8


def test_real_contaminated_cells(real_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The 800 real cells stay; no test cell is trained on."""
    caplog.set_level(logging.WARNING)
    cells = source(real_data / "contaminated.npz", real_data / "test_set.npz", image_size=96)
    found = run(cells)
    assert found.train.num_examples + found.val.num_examples == 800
    assert found.test is not None
    assert found.test.num_examples == len(np.load(real_data / "test_set.npz")["labels"])
    assert not shown(found.train) & (shown(found.val) | shown(found.test))
    assert not shown(found.val) & shown(found.test)
    assert found.dropped == {}
