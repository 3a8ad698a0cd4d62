"""`status_lines` and `status_json`: what run folders, the records of jobs and a squeue on PATH say together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bloodcell_dist import config
from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.errors import UserError
from bloodcell_dist.history import append_metrics
from bloodcell_dist.sweep.folder import Plan, Planned, SweepDir
from bloodcell_dist.sweep.report import status_json, status_lines

Squeue = Callable[[str], None]
RECORD = "2026-11-25T08:20:59+0000 {}\n"
START = "start job=12_{} restart=0 nodes=n{} at=none"


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDir:
    """A planned sweep of three members, submitted as job 12."""
    folder = SweepDir(tmp_path / "s w'ep")
    members = tuple(Planned(index, name, name, (), {}, "") for index, name in enumerate(("cnn", "convnext", "é <b>")))
    folder.write(Plan("three", "/", members), "name: three")
    atomic_write_json(folder.submitted, [{"array": "12", "report": "13", "members": [0, 1, 2]}])
    return folder


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    """squeue(body): a program of that name on PATH that does this."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(body: str) -> None:
        (folder / "squeue").write_text(f"#!/bin/bash\n{body}\n")
        (folder / "squeue").chmod(0o755)

    return write


def record(sweep: SweepDir, index: int, *events: str) -> None:
    sweep.record(index).write_text("".join(map(RECORD.format, events)))


def begin(sweep: SweepDir, name: str, epochs_done: int, **status: Any) -> None:
    run = sweep.run(name)
    run.path.mkdir(parents=True)
    run.write_config(config.dump_yaml(config.build_settings({"train": {"epochs": 30}}, "")))
    for epoch in range(epochs_done):
        append_metrics(run.metrics, {"epoch": epoch, "val_macro_f1": 0.5})
    atomic_write_json(run.status, {"state": "running", "exit_status": None, "message": "", **status})


def age(path: Path, seconds: float) -> None:
    """Make a file older."""
    written = path.stat().st_mtime - seconds
    os.utime(path, (written, written))


def test_the_queue_knows_who_waits_and_who_runs(sweep: SweepDir, squeue: Squeue, tmp_path: Path) -> None:
    squeue(f"echo \"$@\" >'{tmp_path / 'asked'}'; printf '12 0 RUNNING\\n12 1 PENDING\\n12 2 RUNNING\\n'")
    record(sweep, 0, START.format(0, 1), "end status=75 requeued", START.format(0, "[2-3]"))
    record(sweep, 2, START.format(2, 4))
    begin(sweep, "cnn", 2)
    assert status_lines(sweep.path) == [
        "0  cnn       training: epoch 3 of 30 on n[2-3], 1 restart",
        "1  convnext  queued",
        "2  é <b>     running on n4",
    ]
    assert "--jobs=12" in (tmp_path / "asked").read_text().split()


@pytest.mark.parametrize("body", ["echo 'Unable to contact slurm controller' >&2; exit 1", None])
def test_without_the_queues_word_the_folders_tell(sweep: SweepDir, squeue: Squeue, body: str | None) -> None:
    if body:
        squeue(body)
    record(sweep, 1, START.format(1, 1))
    begin(sweep, "convnext", 30)
    assert status_lines(sweep.path) == [
        "0  cnn       waiting",
        "1  convnext  training: epoch 30 of 30 on n1",
        "2  é <b>     waiting",
    ]


def test_a_queue_that_does_not_answer_is_done_without(
    sweep: SweepDir, squeue: Squeue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloodcell_dist.cluster.slurm_client.QUEUE_PATIENCE_S", 0.2)
    squeue("exec sleep 30")
    assert status_lines(sweep.path)[0] == "0  cnn       waiting"


def test_a_requeued_member_has_not_failed(sweep: SweepDir) -> None:
    """Though its status.json says how its last life ended."""
    begin(sweep, "cnn", 4, state="training failed", exit_status=3, message="a rank was lost")
    record(sweep, 0, START.format(0, 1), "end status=3 failed 1 of 3 times, requeued")
    (line, *_) = status_lines(sweep.path)
    assert line == (
        "0  cnn       stopped, goes on when it is started again: failed 1 of 3 times, requeued (after 4 of 30 epochs)"
    )


def test_the_status_of_an_earlier_life_is_not_that_of_the_next(sweep: SweepDir) -> None:
    begin(sweep, "cnn", 4, state="training failed", exit_status=3, message="a rank was lost")
    record(sweep, 0, START.format(0, 1), "end status=3 failed 1 of 3 times, requeued", START.format(0, 2))
    age(sweep.run("cnn").status, 60)
    assert status_lines(sweep.path)[0] == "0  cnn       training: epoch 5 of 30 on n2, 1 restart"
    age(sweep.record(0), 120)  # this life has ended, with these words
    assert status_lines(sweep.path)[0] == "0  cnn       failed: a rank was lost, 1 restart"


def test_failures_have_one_line_with_their_reason(sweep: SweepDir) -> None:
    begin(sweep, "cnn", 0, state="bad input", exit_status=2, message="data.path=<x>:\n no such file")
    record(sweep, 1, START.format(1, 1), "end status=139 stopped: ended 3 times in a row without a new checkpoint")
    assert status_lines(sweep.path)[:2] == [
        "0  cnn       failed: data.path=<x>: no such file",
        "1  convnext  failed: ended 3 times in a row without a new checkpoint",
    ]


def test_programs_get_the_same_as_json(sweep: SweepDir) -> None:
    begin(sweep, "cnn", 2)
    record(sweep, 0, START.format(0, 1))
    rows = json.loads(json.dumps(status_json(sweep.path), allow_nan=False))
    assert [row["state"] for row in rows] == ["running", "waiting", "waiting"]
    assert (rows[0]["nodes"], rows[0]["epochs_done"], rows[0]["epochs_asked"], rows[0]["restarts"]) == ("n1", 2, 30, 0)
    assert rows[2]["name"] == "é <b>"
    assert rows[0]["run_dir"] == str(sweep.run("cnn").path)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the folder of a sweep .*; give the folder that `sweep plan` made"):
        status_lines(tmp_path)
