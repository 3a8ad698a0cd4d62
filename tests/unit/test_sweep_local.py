"""`sweep run --local`: members one after another, by a drawn training that tells how it was called, and for real."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import bloodcell_dist

ROOT = Path(bloodcell_dist.__file__).resolve().parents[1]

Run = Callable[..., subprocess.Popen[str]]

# In place of Python: `PROGRAM -m bloodcell_dist.train ARGUMENTS --run-dir RUN`. What it does is in a file named like
# the run; `wait` saves on a signal as a training does.
PROGRAM = """\
#!/bin/bash
run=${@: -1}
name=${run##*/}
printf '%s\\0' "$PWD" "$@" >"$CALLS/$name"
echo "this is $name"
case $(cat "$CALLS/$name.does" 2>/dev/null) in
wait)
    trap 'exit 75' INT TERM USR1
    touch "$CALLS/$name.waits"
    for _ in {1..1000}; do sleep 0.02; done
    ;;
save) exit 75 ;;
fail)
    echo 'bloodcell-dist: data.path=/gone.npz: no such file' >&2
    exit 2
    ;;
die) kill -KILL $$ ;;
esac
"""

START = f"""\
import sys
sys.path.insert(0, {str(ROOT)!r})
from bloodcell_dist.cli import main
if sys.argv[1]:
    sys.executable = sys.argv[1]
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """The folder in which the drawn training writes down its calls."""
    folder = tmp_path / "calls"
    folder.mkdir()
    return folder


@pytest.fixture
def run(tmp_path: Path, calls: Path) -> Run:
    """run(): start the sweep of seed0, seed1, seed2 in the folder `work` of this test."""
    program, spec, work = tmp_path / "python", tmp_path / "x.yaml", tmp_path / "work"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    spec.write_text("name: x\ngrid: {train.seed: [0, 1, 2]}\n")
    work.mkdir()
    given = {name: value for name, value in os.environ.items() if not name.startswith(("BLOODCELL", "SLURM"))}

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", START, str(program), "sweep", "run", str(spec), "--local", *arguments],
            cwd=work,
            env={**given, "CALLS": str(calls)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def called(calls: Path) -> list[str]:
    return sorted(path.name for path in calls.iterdir() if not path.suffix)


def record(tmp_path: Path, index: int) -> list[str]:
    """The lines of a member's record, without their times, which are checked."""
    lines = (tmp_path / "work/sweeps/x/jobs" / str(index)).read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ", line) for line in lines)
    return [line.split(" ", 1)[1] for line in lines]


def finish(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "work/sweeps/x/runs" / name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"format": 1}')


def test_each_is_trained_with_its_arguments(run: Run, calls: Path, tmp_path: Path) -> None:
    ended(run())
    assert called(calls) == ["seed0", "seed1", "seed2"]
    for index in range(3):
        folder = tmp_path / "work/sweeps/x"
        where, *arguments = (calls / f"seed{index}").read_text().split("\0")[:-1]
        assert where == str(tmp_path / "work")
        planned = (folder / "arguments" / str(index)).read_text().split("\0")[:-1]
        assert arguments == ["-m", "bloodcell_dist.train", *planned]
        (log,) = (folder / "logs").glob(f"*{index}.*")
        assert log.read_text() == f"this is seed{index}\n"
        first, last = record(tmp_path, index)
        assert first.startswith("start job=local restart=0 nodes=") and last == "end status=0 done"


def test_one_that_fails_holds_up_no_other(run: Run, calls: Path, tmp_path: Path) -> None:
    (calls / "seed0.does").write_text("fail")
    (calls / "seed1.does").write_text("die")
    status, out, err = ended(run())
    assert called(calls) == ["seed0", "seed1", "seed2"]
    assert status == 3 and len(err.splitlines()) == 1 and "members failed" in err
    assert "seed0: failed, exit status 2" in out and "seed1: failed, exit status 137" in out
    assert "data.path=/gone.npz: no such file" in out  # the reason, in the report
    assert record(tmp_path, 0)[-1] == "end status=2 stopped: bad input"
    assert record(tmp_path, 1)[-1].startswith("end status=137 ")


def test_finished_ones_are_left_out(run: Run, calls: Path, tmp_path: Path) -> None:
    finish(tmp_path, "seed1")
    (tmp_path / "work/sweeps/x/.lock").touch()
    _, out, _ = ended(run())
    assert called(calls) == ["seed0", "seed2"] and "seed1 is finished" in out


def test_one_that_saves_and_stops_stops_the_sweep(run: Run, calls: Path, tmp_path: Path) -> None:
    (calls / "seed1.does").write_text("save")
    status, _, err = ended(run())
    assert (status, called(calls)) == (75, ["seed0", "seed1"])
    assert err == "bloodcell-dist: stopped at seed1; run the same command again to go on\n"
    assert record(tmp_path, 1)[-1] == "end status=75 stopped with a checkpoint"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_stops_the_sweep(run: Run, calls: Path, tmp_path: Path, number: int) -> None:
    (calls / "seed1.does").write_text("wait")
    process = run()
    wait_for(calls / "seed1.waits")
    process.send_signal(number)
    status, _, err = ended(process)
    assert (status, called(calls)) == (75, ["seed0", "seed1"]) and "stopped at seed1" in err
    assert record(tmp_path, 1)[-1] == "end status=75 stopped with a checkpoint"


def test_the_same_command_goes_on(run: Run, calls: Path, tmp_path: Path) -> None:
    (calls / "seed1.does").write_text("save")
    ended(run())
    finish(tmp_path, "seed0")
    for path in calls.iterdir():
        path.unlink()
    ended(run())
    assert called(calls) == ["seed1", "seed2"]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.02)


@pytest.mark.slow
def test_two_train_and_one_cannot(tmp_path: Path) -> None:
    """For real: drawn cells, and a member whose cells are not there."""
    spec = tmp_path / "tiny.yaml"
    spec.write_text(
        """
        name: tiny
        settings:
          data.image_size: 32
          data.synthetic_examples: 200
          data.cache_dir: "off"
          model.backbone: cnn
          train.max_steps: 2
          train.global_batch_size: 8
          train.xla: "off"
          evaluate.bootstrap: 0
        grid: {data.source: [synthetic], train.seed: [0, 1]}
        also: [{settings: {data.source: npz, data.path: /gone/cells.npz}}]
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", START, "", "sweep", "run", str(spec), "--local", "--out", str(tmp_path / "it's 50%")],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(timeout=400)
    folder = tmp_path / "it's 50%"
    assert process.returncode == 3, out + err
    assert len(err.splitlines()) == 1 and "/gone/cells.npz" in err
    plan = json.loads((folder / "members.json").read_text())
    names = [one["name"] for one in plan["members"]]
    assert [(folder / "runs" / name / "result.json").exists() for name in names] == [True, True, False]
    assert (
        len({one["group"] for one in plan["members"][:2]}) == 1 and len({one["group"] for one in plan["members"]}) == 2
    )
    with open(folder / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "done", "failed"]
    assert "/gone/cells.npz" in rows[2]["reason"]
    assert 0 <= float(rows[0]["val_accuracy"]) <= 1
    for ending in ("html", "md", "json"):
        assert "/gone/cells.npz" in (folder / f"comparison.{ending}").read_text()
