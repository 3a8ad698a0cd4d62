"""Ensembles of finished runs: what is refused, what is read how often, how they are named. No networks."""

from __future__ import annotations

import json
import os
import re
import shutil
import weakref
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell_dist.config import dump_yaml, replace
from bloodcell_dist.errors import UserError
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.serving import ensemble
from bloodcell_dist.serving.ensemble import Member, Pictures, average, look_at_runs, predict_members
from bloodcell_dist.serving.evaluations import folder_name, refuse_other
from bloodcell_dist.settings import Settings

CLASSES = ("basophil", "monocyte", "platelet")


def make_run(folder: Path, *, class_names: Sequence[str] = CLASSES, run_id: str | None = None) -> Path:
    """A finished run as far as a look can tell: its model file is a zip archive."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_yaml(Settings()))
    result = {"class_names": class_names, "run_id": run_id or folder.name}
    (folder / "result.json").write_text(json.dumps(result))
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    return folder


def member(path: str, *, image_size: int = 96, crop: int | None = None) -> Member:
    settings = replace(Settings(), {"data.image_size": image_size, "data.crop": crop})
    return Member(RunDir(Path(path)), f"id of {path}", settings, CLASSES)


def pictures(image_size: int, *, count: int = 4, shift: int = 0) -> Pictures:
    images = np.zeros((count, image_size, image_size, 3), np.uint8)
    return Pictures(images, [str(i) for i in range(count)], (np.arange(count) + shift) % 3)


def test_probabilities_are_averaged_with_equal_weights() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(3), (5, 7)).astype(np.float32)
    found = average(list(rows))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, rows.astype(np.float64).mean(axis=0), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(average([rows[0]]), rows[0])  # one run: to the bit


def test_runs_are_looked_at_without_their_networks(tmp_path: Path) -> None:
    folders = [str(make_run(tmp_path / name)) for name in ("a", "b")]
    one, two = look_at_runs(folders)
    assert (one.path, two.run_id, two.name) == (folders[0], "b", "b")
    assert (one.class_names, one.geometry) == (CLASSES, (96, None))


def test_the_same_run_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "a")
    other = make_run(tmp_path / "b")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for again in ("a", "./a/", "link", str(folder)):
        text = rf"{re.escape(str(Path(again)))}: this run is given twice \(as {folder} before\); give each run once"
        with pytest.raises(UserError, match=text):
            look_at_runs([str(folder), str(other), again])


def test_a_copy_of_a_run_is_refused(tmp_path: Path) -> None:
    folder, copy = make_run(tmp_path / "a", run_id="123abc"), tmp_path / "copy"
    shutil.copytree(folder, copy)
    text = rf"{copy}: is a copy of {folder} \(both have the run id 123abc\); give each run once"
    with pytest.raises(UserError, match=text):
        look_at_runs([str(folder), str(copy)])


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("basophil", "platelet", "monocyte"), "label 1 is monocyte in {a} and platelet in {b}"),
        (("basophil", "monocyte", "PLT"), "only {a} has platelet and only {b} has PLT"),
        ((*CLASSES, "ig", "neutrophil"), "only {b} has ig, neutrophil"),
    ],
)
def test_other_classes_are_refused(tmp_path: Path, names: Sequence[str], difference: str) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", class_names=names)
    text = (
        f"{a} and {b} cannot be averaged, their classes differ: {difference.format(a=a, b=b)}; "
        "give runs that were trained with the same data.class_names"
    )
    with pytest.raises(UserError, match=re.escape(text)):
        look_at_runs([str(a), str(b)])


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.yaml", r"b: is not a run folder \(no config.yaml\); give the folder of a finished run"),
        ("result.json", r"b: this run is not finished \(no result.json\); run its training command again"),
        ("model.keras", r"b/model.keras: cannot be read as a Keras model"),
    ],
)
def test_a_look_names_what_is_missing(tmp_path: Path, missing: str, message: str) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (b / missing).unlink()
    with pytest.raises(UserError, match=message):
        look_at_runs([str(a), str(b)])


def test_a_look_finds_a_torn_model_file(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a") / "model.keras"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="a/model.keras: cannot be read as a Keras model"):
        look_at_runs([str(tmp_path / "a")])


def test_pictures_are_read_once_for_each_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [member("a"), member("b", image_size=32), member("c"), member("d", crop=200)]
    monkeypatch.setattr(
        Member,
        "probabilities",
        lambda self, images: np.full((len(images), 3), ord(self.path) + images.shape[1] / 1000, np.float32),
    )
    loads: list[tuple[int, int | None]] = []
    told: list[str] = []

    def load(image_size: int, crop: int | None) -> Pictures:
        loads.append((image_size, crop))
        return pictures(image_size)

    first, found = predict_members(members, load, lambda one, cells, rows: told.append(one.path))
    assert loads == [(96, None), (32, None), (96, 200)]
    assert told == ["a", "c", "b", "d"]
    assert first.images.shape == (4, 96, 96, 3)
    assert [rows[0, 0] for rows in found] == pytest.approx([97.096, 98.032, 99.096, 100.096])


@pytest.mark.parametrize("other", [{"count": 5}, {"shift": 1}])
def test_cells_that_changed_in_between_are_refused(monkeypatch: pytest.MonkeyPatch, other: dict[str, int]) -> None:
    monkeypatch.setattr(Member, "probabilities", lambda self, images: np.ones((len(images), 3), np.float32) / 3)
    text = "the cells were read at 96 and at 32 pixels, and their names or labels differ: the files changed in between"
    with pytest.raises(UserError, match=text):
        predict_members(
            [member("a"), member("b", image_size=32)],
            lambda size, crop: pictures(size) if size == 96 else pictures(size, **other),
        )


def test_one_network_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Heavy:
        """In a reference cycle, as Keras' models are."""

        def __init__(self, folder: Path) -> None:
            self.itself = self
            alive.add(self)
            assert len(alive) == 1

        def probabilities(self, images: np.ndarray) -> np.ndarray:
            return np.zeros((len(images), 3), np.float32)

    monkeypatch.setattr(ensemble, "Predictor", Heavy)
    predict_members([member(name) for name in "abc"], lambda size, crop: pictures(size))
    assert not alive


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (["a"], "test"),
        (["a", "b"], "test[+]b"),
        (["x/fold0", "x/fold1", "y/fold2", "fold3/"], "test[+]fold1[+]fold2[+]fold3"),
        (["a", "b", "c", "d", "e"], "test[+]b[+]c[+]2more-[0-9a-f]{8}"),
        (["a", "b" * 120], "test[+]b{95}-[0-9a-f]{8}"),
        (["a" * 120], "test"),
    ],
)
def test_the_default_folder_is_named_after_the_other_runs(runs: list[str], expected: str) -> None:
    assert re.fullmatch(expected, folder_name("test", [member(run) for run in runs]))


def test_long_ensembles_do_not_share_a_folder() -> None:
    one, two, again = (folder_name("test", [member(name) for name in names]) for names in ("abcde", "abcdf", "abced"))
    assert one != two
    assert one == again  # the same runs in another order


SINGLE = {"run": "runs/a", "data": "/cells.npz"}
PAIR = {
    "runs": ["runs/a", "runs/b"],
    "members": [{"run_id": f"id of runs/{name}"} for name in "ba"],
    "data": "/cells.npz",
}


@pytest.mark.parametrize(
    ("found", "runs"),
    [
        (SINGLE, ["runs/a"]),
        (SINGLE, ["elsewhere/runs/a"]),  # counted from another working folder
        ({**SINGLE, "run": "."}, ["runs/a"]),
        ({"data": "/cells.npz"}, ["runs/a"]),
        (PAIR, ["runs/a", "runs/b"]),
        ({}, ["runs/a", "runs/b"]),
    ],
)
def test_the_same_evaluation_may_be_made_again(tmp_path: Path, found: dict[str, Any], runs: list[str]) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    refuse_other(tmp_path, "/cells.npz", [member(run) for run in runs])


@pytest.mark.parametrize(
    ("found", "runs", "words"),
    [
        (SINGLE, ["runs/b"], "runs/a, not of runs/b"),
        ({**SINGLE, "run": "/x/runs/a"}, ["/y/runs/a"], "/x/runs/a, not of /y/runs/a"),
        (SINGLE, ["runs/a", "runs/b"], "runs/a, not of runs/a + runs/b"),
        (PAIR, ["runs/a"], "runs/a + runs/b, not of runs/a"),
        (PAIR, ["runs/a", "runs/c"], "runs/a + runs/b, not of runs/a + runs/c"),
        ({**PAIR, "data": "/other.npz"}, ["runs/a", "runs/b"], "/other.npz, not of /cells.npz"),
    ],
)
def test_another_evaluation_is_not_overwritten(
    tmp_path: Path, found: dict[str, Any], runs: list[str], words: str
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    text = f"{tmp_path}: holds the evaluation of {words}; give another folder with --out"
    with pytest.raises(UserError, match=re.escape(text)):
        refuse_other(tmp_path, "/cells.npz", [member(run) for run in runs])


def test_an_empty_place_is_free(tmp_path: Path) -> None:
    refuse_other(tmp_path / "new", "/cells.npz", [member("a")])
