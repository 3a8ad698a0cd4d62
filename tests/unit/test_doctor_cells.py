"""Cells and weights: found, readable, counted, the right ones."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bloodcell_dist.doctor import weights
from bloodcell_dist.doctor.cells import Cells, judge_cells, judge_checksum, look_at_cells
from bloodcell_dist.doctor.weights import FILES, Weights, find_weights, judge_weights, look_at_weights, weight_folders
from bloodcell_dist.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """cells.npz (12), medmnist.npz (4 + 2 + 3) and class folders (2 + 1)."""

    def pictures(count: int) -> np.ndarray:
        return np.full((count, 16, 16, 3), count, np.uint8)

    np.savez(tmp_path / "cells.npz", images=pictures(12), labels=np.arange(12) % 8)
    parts = {"train": 4, "val": 2, "test": 3}
    arrays = {f"{part}_images": pictures(count) for part, count in parts.items()}
    arrays |= {f"{part}_labels": np.zeros((count, 1)) for part, count in parts.items()}
    np.savez(tmp_path / "medmnist.npz", **arrays)  # type: ignore[arg-type]
    for name, count in {"basophil": 2, "platelet": 1}.items():
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 16)).save(tmp_path / "classes" / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "given", "kind", "examples", "thoroughly"),
    [
        ("cells.npz", "auto", "npz", 12, 12),
        ("cells.npz", "npz", "npz", 12, 12),
        ("medmnist.npz", "auto", "medmnist", 9, 9),
        ("classes", "auto", "folder", None, 3),  # counting many files takes long
    ],
)
def test_cells_that_are_there(
    name: str, given: str, kind: str, examples: int | None, thoroughly: int, folder: Path
) -> None:
    path = str(folder / name)
    assert look_at_cells(path, given, None, all_of_it=False) == Cells(path=path, source=kind, examples=examples)
    found = look_at_cells(path, given, None, all_of_it=True)
    assert (found.source, found.examples, found.problem) == (kind, thoroughly, None)
    assert found.sha256 is not None and len(found.sha256) == 64


def test_the_checksum_of_a_file_is_that_of_sha256sum(folder: Path) -> None:
    found = look_at_cells(str(folder / "cells.npz"), "npz", None, all_of_it=True)
    assert found.sha256 == hashlib.sha256((folder / "cells.npz").read_bytes()).hexdigest()
    (line,) = judge_checksum(found)
    assert (line.name, line.level, line.text) == ("sha-256", "ok", f"{found.sha256} cells.npz")
    assert judge_checksum(Cells()) == []


def test_the_checksum_of_a_folder_knows_names_and_contents(folder: Path) -> None:
    def checksum() -> str | None:
        return look_at_cells(str(folder / "classes"), "folder", None, all_of_it=True).sha256

    first = checksum()
    (folder / "classes/notes.txt").write_text("no picture")
    assert checksum() == first
    (folder / "classes/basophil/0.png").rename(folder / "classes/basophil/7.png")
    renamed = checksum()
    Image.new("RGB", (16, 16), "red").save(folder / "classes/basophil/7.png")
    assert len({first, renamed, checksum()}) == 3


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("nowhere.npz", "auto", "{folder}/nowhere.npz: no such file or folder"),
        ("nowhere.npz", "npz", "{folder}/nowhere.npz: no such file"),
        ("nowhere", "folder", "{folder}/nowhere: No such file or directory"),
        ("text.npz", "npz", "{folder}/text.npz is no intact .npz file"),
        ("medmnist.npz", "npz", "{folder}/medmnist.npz has no array 'labels'"),
        ("cells.npz", "medmnist", "{folder}/cells.npz has no array 'train_labels'"),
    ],
)
def test_cells_that_cannot_be_used(name: str, given: str, problem: str, folder: Path) -> None:
    (folder / "text.npz").write_text("text")
    for all_of_it in (False, True):
        found = look_at_cells(str(folder / name), given, None, all_of_it=all_of_it)
        assert found.problem is not None and found.problem.startswith(problem.format(folder=folder))


def test_cells_without_a_path_are_drawn() -> None:
    assert look_at_cells(None, "synthetic", None, all_of_it=True) == Cells(source="synthetic")


@pytest.mark.parametrize(
    ("found", "key", "level", "text", "fix"),
    [
        (Cells(path="/d/a.npz", source="npz", examples=5977), "data.path", "ok", "/d/a.npz, npz, 5,977 cells", ""),
        (Cells(path="/d/a", source="folder"), "data.path", "ok", "/d/a, folder", ""),
        (Cells(), "data.path", "ok", "drawn cells, as data.source=synthetic asks", ""),
        (Cells(), "data.test_path", "ok", "drawn cells, as data.source=synthetic asks", ""),
        (Cells(source="npz"), "data.test_path", "ok", "none (data.test_path is not set)", ""),
        (
            *(Cells(drawn_for_want=True), "data.path", "warning", "none named, so it would train on DRAWN cells"),
            "--set data.path=PATH, or BLOODCELL_DATA in slurm/site.env",
        ),
        (
            *(Cells(problem="/d/a.npz: no such file"), "data.test_path", "error", "/d/a.npz: no such file"),
            "put the cells there, or name others: --set data.test_path=PATH, or BLOODCELL_TEST_SET in slurm/site.env",
        ),
        (Cells(problem="/d holds nothing; add some"), "data.path", "error", "/d holds nothing", "add some"),
    ],
)
def test_cells_judged(found: Cells, key: str, level: str, text: str, fix: str) -> None:
    (line,) = judge_cells("data", found, key)
    assert (line.name, line.level, line.text, line.fix) == ("data", level, text, fix)


B0, SIZE = FILES["efficientnetb0"]


@pytest.fixture
def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of the name and the size of EfficientNetB0's."""
    with open(tmp_path / B0, "wb") as file:
        file.truncate(int(SIZE) + 1)
    return tmp_path


def environ(folder: Path) -> dict[str, str]:
    return {"BLOODCELL_WEIGHTS": str(folder), "KERAS_HOME": str(folder / "keras")}


def test_weights_that_are_there(staged: Path) -> None:
    found = look_at_weights("imagenet", "efficientnetb0", None, environ(staged))
    assert (found.path, found.size, found.is_right) == (str(staged / B0), int(SIZE) + 1, None)
    asked: list[tuple[str, Path]] = []

    def has_right_hash(backbone: str, path: Path) -> bool:
        asked.append((backbone, path))
        return False

    assert look_at_weights("auto", "efficientnetb0", str(staged), {}, has_right_hash).is_right is False
    assert asked == [("efficientnetb0", staged / B0)]


@pytest.mark.parametrize(
    ("asked", "backbone"),
    [("imagenet", "convnextbase"), ("none", "efficientnetb0"), ("auto", "cnn"), ("/nowhere.h5", "cnn")],
)
def test_weights_that_are_not_there_or_not_wanted(asked: str, backbone: str, staged: Path) -> None:
    found = look_at_weights(asked, backbone, None, environ(staged))
    assert found == Weights(asked=asked, backbone=backbone, folder=str(staged))


def test_weights_of_a_run_are_its_model(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(b"12345")
    found = look_at_weights(str(tmp_path), "cnn", None, {}, lambda *_: pytest.fail("ImageNet's hash is not its"))
    assert (found.path, found.size) == (str(tmp_path / "model.keras"), 5)


def test_weights_that_cannot_be_read(staged: Path) -> None:
    def has_right_hash(backbone: str, path: Path) -> bool:
        raise UserError("b0.h5: cannot be read (Input/output error); check its permissions")

    found = look_at_weights("imagenet", "efficientnetb0", None, environ(staged), has_right_hash)
    assert found.problem == "b0.h5: cannot be read (Input/output error); check its permissions"
    os.remove(staged / B0)
    (staged / B0).mkdir()
    assert find_weights("efficientnetb0", None, environ(staged)) is None
    assert look_at_weights(str(staged / ("x" * 300)), "cnn", None, {}).problem is not None  # too long a name


FETCH = "bloodcell-dist weights fetch efficientnetb0 --dest '/my weights', on a machine with internet"


@pytest.mark.parametrize(
    ("changes", "level", "text", "fix"),
    [
        ({"asked": "none"}, "ok", "none asked for: efficientnetb0 from scratch", ""),
        ({"asked": "auto", "backbone": "cnn"}, "ok", "there are none for cnn: from scratch", ""),
        ({"backbone": "cnn"}, "error", "there are no ImageNet weights for cnn", "--set model.weights=none"),
        ({}, "warning", f"{B0} is not in /my weights: the run needs internet on its first node", FETCH),
        (
            {"asked": "auto"},
            "warning",
            "no ImageNet weights of efficientnetb0 here, so it would train from scratch",
            FETCH,
        ),
        ({"path": "/b0.h5", "size": 16_800_000}, "ok", "/b0.h5, 16.8 MB", ""),
        ({"path": "/b0.h5", "size": 16_800_000, "is_right": True}, "ok", "/b0.h5, 16.8 MB, hash checked", ""),
        ({"path": "/b0.h5", "size": 16_800_000, "is_right": False}, "error", "/b0.h5 has a wrong hash", FETCH),
        ({"path": "/b0.h5", "size": 1_000_000}, "error", "/b0.h5 has 1.0 MB, too little: cut off", FETCH),
        ({"path": "/b0.h5", "size": 1_000_000, "is_right": True}, "ok", "/b0.h5, 1.0 MB, hash checked", ""),
        ({"asked": "/a.h5", "path": "/a.h5", "size": 100_000}, "ok", "/a.h5, 0.1 MB", ""),
        (
            *({"asked": "/a.h5"}, "error", "/a.h5: no such file"),
            "another model.weights: a file, a run's folder, imagenet",
        ),
        ({"problem": "/b0.h5: Permission denied"}, "error", "cannot be read: /b0.h5: Permission denied", None),
    ],
)
def test_weights_judged(changes: dict[str, Any], level: str, text: str, fix: str | None) -> None:
    known = {"asked": "imagenet", "backbone": "efficientnetb0", "folder": "/my weights"}
    (line,) = judge_weights(Weights.model_validate(known | changes))
    assert (line.name, line.level, line.text) == ("weights", level, text)
    assert fix is None or line.fix == fix


@pytest.mark.slow
def test_names_sizes_and_folders_are_those_of_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known without Keras, for the sake of speed, is what Keras says."""
    from bloodcell_dist.models import imagenet
    from bloodcell_dist.models.backbones import BACKBONES

    assert set(FILES) == set(imagenet.HAS_IMAGENET)
    for backbone, (name, size) in FILES.items():
        assert imagenet.weights_file(backbone).name == name
        shape = {"input_shape": (None, None, 3), "include_top": False, "weights": None}
        bytes_of_weights = 4 * BACKBONES[backbone].constructor(**shape).count_params()
        assert 0.95 * bytes_of_weights < size <= bytes_of_weights
    for given in (None, "~/weights"):
        for environ in ({}, {"BLOODCELL_WEIGHTS": "~/w"}, {"KERAS_HOME": str(tmp_path)}, {"KERAS_HOME": "/proc/none"}):
            assert weights.weight_folders(given, environ) == imagenet.folders(given, environ)
    assert weight_folders(None, {"KERAS_HOME": "/proc/none"})[1] == Path("/tmp/.keras/models")
