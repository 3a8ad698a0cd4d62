"""Atomic writes, metrics.jsonl, the run folder and its lock."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bloodcell_dist.atomic import TEMPORARY, atomic_file, atomic_folder, atomic_write_json, atomic_write_text
from bloodcell_dist.errors import UserError
from bloodcell_dist.history import append_metrics, read_metrics, rewrite_metrics
from bloodcell_dist.rundir import RunDir

HOLD = """
import sys
from pathlib import Path
from bloodcell_dist.atomic import atomic_file
from bloodcell_dist.rundir import RunDir

run = RunDir(Path(sys.argv[1]))
run.create()
with run.lock(), atomic_file(run.result) as path:
    path.write_text("half")
    print("held", flush=True)
    sys.stdin.read()
"""


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(f"{TEMPORARY}*")]


@contextmanager
def holding_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A real second process that holds the run and is in the middle of writing result.json."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


# ---- atomic writes


def test_a_file_that_is_written_has_its_content_and_ordinary_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        atomic_write_text(tmp_path / "a.txt", "cells")
    finally:
        os.umask(mask)
    assert (tmp_path / "a.txt").read_text() == "cells"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640  # what the umask allows, not 0600
    assert leftovers(tmp_path) == []


def test_a_write_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="disk on fire"), atomic_file(target) as path:
        path.write_text("half of the new")
        raise RuntimeError("disk on fire")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_the_temporary_file_keeps_the_suffix_that_writers_go_by(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "model.keras") as path:
        assert path.suffix == ".keras"
        assert path.parent == tmp_path
        path.write_bytes(b"zip")
    assert (tmp_path / "model.keras").read_bytes() == b"zip"


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        atomic_write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_json_holds_numpy_values_and_no_nan(tmp_path: Path) -> None:
    value = {
        "nan": float("nan"),
        "inf": np.float32("inf"),
        "count": np.int64(3),
        "matrix": np.array([[1.5, np.nan]]),
        "path": Path("a/b"),
        "pair": (np.float32(0.5), "x"),
        "yes": np.bool_(True),
    }
    atomic_write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "nan": None,
        "inf": None,
        "count": 3,
        "matrix": [[1.5, None]],
        "path": "a/b",
        "pair": [0.5, "x"],
        "yes": True,
    }


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "step-00000010"
    with pytest.raises(OSError, match="full"), atomic_folder(target) as folder:
        (folder / "arrays.npz").write_bytes(b"half")
        assert not target.exists()
        raise OSError("full")
    assert os.listdir(tmp_path) == []
    with atomic_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("whole")
    assert (target / "deep" / "file").read_text() == "whole"
    assert os.listdir(tmp_path) == ["step-00000010"]


def test_a_folder_replaces_the_one_before_it(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "step") as folder:
            (folder / text).write_text(text)
    assert os.listdir(tmp_path / "step") == ["new"]
    assert os.listdir(tmp_path) == ["step"]


def test_a_failed_write_of_a_folder_keeps_the_one_before_it(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "step") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "step") as folder:
        raise RuntimeError
    assert os.listdir(tmp_path / "step") == ["old"]
    assert os.listdir(tmp_path) == ["step"]


# ---- metrics.jsonl


def test_metrics_are_appended_and_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    append_metrics(path, {"epoch": 0, "val_auc": float("nan")})
    append_metrics(path, {"epoch": 1, "val_auc": np.float32(0.5)})
    assert read_metrics(path) == [{"epoch": 0, "val_auc": None}, {"epoch": 1, "val_auc": 0.5}]


@pytest.mark.parametrize(
    ("torn", "kept"),
    [
        (b'{"epoch": 1, "val_lo', [0]),
        (b'{"epoch"', [0]),
        (b"\0\0\0\0", [0]),  # what some file systems leave after a power cut
        (b'{"epoch": 1}', [0, 1]),  # only the end of the line is missing
        (b"1", [0]),  # JSON, but no row
    ],
)
def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path, torn: bytes, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"epoch": 0}\n' + torn)
    assert [row["epoch"] for row in read_metrics(path)] == kept
    append_metrics(path, {"epoch": 7})
    append_metrics(path, {"epoch": 8})
    assert [row["epoch"] for row in read_metrics(path)] == [*kept, 7, 8]
    assert path.read_bytes().count(b"\n") == len(kept) + 2


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 0}\n{"epo\n{"epoch": 2}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl: line 2 is not a JSON object; remove that line"):
        read_metrics(path)


def test_epochs_that_are_trained_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for epoch in range(4):
        append_metrics(path, {"epoch": epoch})
    with open(path, "ab") as file:
        file.write(b'{"epoch": 4, ')
    rewrite_metrics(path, keep_epochs_below=2)
    assert path.read_text() == '{"epoch": 0}\n{"epoch": 1}\n'
    rewrite_metrics(tmp_path / "none.jsonl", keep_epochs_below=2)
    assert read_metrics(tmp_path / "none.jsonl") == []


# ---- the run folder


def test_a_run_keeps_its_id_for_life(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "deep" / "run one")
    run.create()
    first = run.run_id
    assert len(first) == 32
    assert int(first, 16) >= 0
    run.create()
    assert RunDir(run.path).run_id == first
    other = RunDir(tmp_path / "other")
    other.create()
    assert other.run_id != first


def test_the_names_of_a_run_folder_are_fixed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    paths = [
        run.config, run.environment, run.log, run.metrics, run.checkpoints, run.tensorboard, run.plots,
        run.result, run.report, run.model, run.status,
    ]  # fmt: skip
    assert [path.name for path in paths] == [
        "config.yaml", "environment.json", "log.txt", "metrics.jsonl", "checkpoints", "tensorboard", "plots",
        "result.json", "report.html", "model.keras", "status.json",
    ]  # fmt: skip
    assert {path.parent for path in paths} == {tmp_path}


def test_an_empty_folder_and_one_with_the_launchers_output_are_taken(tmp_path: Path) -> None:
    (tmp_path / "slurm-12.out").write_text("")
    (tmp_path / f"{TEMPORARY}1").write_text("killed while it was created")
    RunDir(tmp_path).create()
    assert sorted(os.listdir(tmp_path)) == [".lock", "checkpoints", "plots", "run_id", "slurm-12.out"]


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    (tmp_path / "cells.npz").write_text("")
    with pytest.raises(UserError, match=r"no file run_id.*holds cells.npz and 1 more; give a new or empty folder"):
        RunDir(tmp_path).create()
    assert sorted(os.listdir(tmp_path)) == ["cells.npz", "thesis.tex"]


def make_file(path: Path) -> Path:
    path.write_text("")
    return path


def make_below_a_file(path: Path) -> Path:
    return make_file(path) / "run"


def make_where_nothing_can_be(path: Path) -> Path:
    return Path("/proc/self/run")  # not even root can make a folder there


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_file, "File exists"),
        (make_below_a_file, "Not a directory"),
        (make_where_nothing_can_be, "No such file or directory"),
    ],
)
def test_what_cannot_be_a_run_folder_gets_one_message(
    tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    path = make(tmp_path / "x")
    with pytest.raises(UserError) as caught:
        RunDir(path).create()
    assert str(caught.value) == (
        f"{path}: cannot be used as a run folder ({reason}); give a folder that you may write to"
    )


@contextmanager
def as_somebody() -> Iterator[None]:
    """Root may write everywhere, so while inside it is nobody."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("attempt", [RunDir.create, RunDir.check])
def test_a_folder_without_permission_gets_one_message(tmp_path: Path, attempt: Callable[[RunDir], None]) -> None:
    path = tmp_path / "x"
    path.mkdir(mode=0o500)
    with as_somebody(), pytest.raises(UserError, match=r"x: cannot be used as a run folder \(Permission denied\)"):
        attempt(RunDir(path))


def test_a_folder_that_is_no_run_has_no_id(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder \(run_id: No such file or directory\)"):
        _ = RunDir(tmp_path).run_id


# ---- the lock


def test_a_living_run_refuses_a_second_process_by_name_and_a_dead_one_does_not(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with holding_process(run.path) as process:
        for attempt in (run.create, lambda: run.lock().__enter__()):
            with pytest.raises(UserError) as caught:
                attempt()
            assert f"in use by process {process.pid} on {socket.gethostname()} (since 2" in str(caught.value)
        assert len(leftovers(run.path)) == 1  # refused, so the file in the making was not swept
        process.kill()
        process.wait()
        assert len(leftovers(run.path)) == 1
        with run.lock():
            assert leftovers(run.path) == []
            assert json.loads(run.lock_file.read_text())["pid"] == os.getpid()
    assert not run.result.exists()


def test_the_lock_is_free_again_after_its_block(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.create()
    with pytest.raises(RuntimeError), run.lock():
        raise RuntimeError
    with run.lock():
        pass


def test_a_holder_that_has_not_written_its_name_yet_is_unknown(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.create()
    with open(run.lock_file, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        with pytest.raises(UserError, match="in use by process unknown on unknown"):
            run.create()


def test_leftovers_in_all_folders_are_swept(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.create()
    half = run.checkpoints / f"{TEMPORARY}1"
    half.mkdir()
    (half / "arrays.npz").write_bytes(b"half")
    (run.plots / f"{TEMPORARY}2.png").write_bytes(b"half")
    (run.plots / "curves.png").write_bytes(b"whole")
    run.create()
    assert leftovers(tmp_path) == []
    assert (run.plots / "curves.png").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)  # no file system without locks is at hand
    run = RunDir(tmp_path)
    run.create()
    (tmp_path / f"{TEMPORARY}1").write_text("perhaps of a living process")
    with caplog.at_level(logging.WARNING), run.lock():
        assert leftovers(tmp_path) == [f"{TEMPORARY}1"]
    assert "no file locks" in caplog.text
    assert run.run_id
