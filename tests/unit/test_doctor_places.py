"""Folders: really written to, and judged by room, permission, locks and clock."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bloodcell_dist import locks
from bloodcell_dist.doctor import places
from bloodcell_dist.doctor.places import Place, judge_file_clock, judge_place, look_at_place, outside


def test_a_folder_that_is_well(tmp_path: Path) -> None:
    found = look_at_place(tmp_path)
    space = os.statvfs(tmp_path)
    assert (found.path, found.folder, found.problem, found.locks) == (str(tmp_path), str(tmp_path), None, True)
    assert found.free_bytes == pytest.approx(space.f_bavail * space.f_frsize, rel=0.1)
    assert abs(found.clock_s) < 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_to_be_made(tmp_path: Path) -> None:
    found = look_at_place(tmp_path / "a" / "b")
    assert (found.path, found.folder, found.problem) == (str(tmp_path / "a" / "b"), str(tmp_path), None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert look_at_place(tmp_path / "file" / "run").problem == f"{tmp_path / 'file'} is no folder"


def test_a_folder_of_others() -> None:
    """/proc refuses new files, to root too."""
    assert look_at_place("/proc/self").problem in ("No such file or directory", "Permission denied")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert look_at_place(tmp_path).problem == "No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    assert look_at_place(tmp_path).locks is False


@pytest.mark.parametrize(("ahead_s", "least", "most"), [(100.0, -100.0, -99.0), (-50.0, 49.0, 50.0)])
def test_a_clock_that_is_wrong(
    ahead_s: float, least: float, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's is set wrong, so the file system's differs by as much."""
    right = time.time
    monkeypatch.setattr(places.time, "time", lambda: right() + ahead_s)
    assert least - 1 <= look_at_place(tmp_path).clock_s <= most


@pytest.mark.parametrize(("moment", "expected"), [(1.0, 0.0), (2.0, 0.0), (1.5, 0.0), (2.5, 0.5), (0.0, -1.0)])
def test_outside_an_interval(moment: float, expected: float) -> None:
    assert outside(moment, 1.0, 2.0) == expected


GB = 10**9


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("ok", "/runs, writable, 90 GB free")]),
        ({"path": "/runs/a"}, [("ok", "/runs/a (to be made in /runs), writable, 90 GB free")]),
        ({"free_bytes": 5 * GB}, [("ok", "/runs, writable, 5 GB free")]),
        ({"free_bytes": int(4.9 * GB)}, [("warning", "/runs has 4.9 GB free")]),
        ({"free_bytes": 1 * GB}, [("warning", "/runs has 1.0 GB free")]),
        ({"free_bytes": int(0.9 * GB)}, [("error", "/runs has 0.9 GB free")]),
        ({"free_bytes": int(0.9 * GB), "needed": False}, [("warning", "/runs has 0.9 GB free")]),
        ({"free_files": 10_000}, [("ok", "/runs, writable, 90 GB free")]),
        ({"free_files": 9_999}, [("warning", "/runs has room for 9,999 more files (inodes)")]),
        ({"free_files": 99}, [("error", "/runs has room for 99 more files (inodes)")]),
        ({"free_files": 99, "needed": False}, [("warning", "/runs has room for 99 more files (inodes)")]),
        ({"locks": False}, [("warning", "/runs has no file locks (flock): two jobs could write to one run")]),
        ({"problem": "Permission denied"}, [("error", "/runs cannot be written: Permission denied")]),
        (
            {"problem": "Permission denied", "needed": False},
            [("warning", "/runs cannot be written: Permission denied")],
        ),
        (
            {"free_bytes": 0, "locks": False},
            [
                ("error", "/runs has 0.0 GB free"),
                ("warning", "/runs has no file locks (flock): two jobs could write to one run"),
            ],
        ),
    ],
)
def test_room_and_permission(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    known = {"path": "/runs", "folder": "/runs", "free_bytes": 90 * GB, "free_files": None}
    found = Place.model_validate(known | changes)
    lines = judge_place("run folder", found, "--run-dir DIR")
    assert [(line.level, line.text) for line in lines] == expected
    assert all(line.name == "run folder" and (line.level == "ok" or "--run-dir DIR" in line.fix) for line in lines)


@pytest.mark.parametrize(
    ("clock_s", "level", "text"),
    [
        (0.0, "ok", "this machine and the file system agree to a second"),
        (-1.0, "ok", "this machine and the file system agree to a second"),
        (1.6, "warning", "files in /runs are dated 2 s ahead of this machine"),
        (-30.0, "warning", "files in /runs are dated 30 s behind this machine"),
        (3600.0, "error", "files in /runs are dated 3,600 s ahead of this machine"),
    ],
)
def test_the_clock_of_a_file_system(clock_s: float, level: str, text: str) -> None:
    (line,) = judge_file_clock(Place(path="/runs", folder="/runs", clock_s=clock_s))
    assert (line.name, line.level, line.text) == ("clock", level, text)
