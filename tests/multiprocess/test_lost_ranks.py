"""A rank that is killed or stopped brings the others down, named and in time; the same command goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bloodcell_dist.rundir import RunDir

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

TIMEOUT_S = 8.0
SETTINGS = (
    "data.source=synthetic",
    "data.synthetic_examples=400",
    "data.image_size=48",
    "model.backbone=cnn",
    "optimizer.ema_decay=null",
    "train.global_batch_size=24",
    "train.epochs=40",
    "checkpoint.every_steps=2",
    "evaluate.bootstrap=0",
    f"distribute.timeout_s={TIMEOUT_S:g}",
)


def command(run: Path, cache: Path, *more: str) -> list[str]:
    overrides = [part for setting in (*SETTINGS, f"data.cache_dir={cache}", *more) for part in ("--set", setting)]
    return ["-m", "bloodcell_dist.train", "--run-dir", str(run), *overrides]


def wait_for_step(run: Path, step: int, launched: Any) -> None:
    deadline = time.monotonic() + 240
    while not any(path.name >= f"step-{step:08d}" for path in (run / "checkpoints").glob("step-*")):
        assert any(process.poll() is None for process in launched.processes), launched.text
        assert time.monotonic() < deadline, launched.text
        time.sleep(0.02)


def is_running(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("kind", "victim", "name"),
    [
        *[("horovod", 1, "KILL"), ("multiworker", 1, "KILL"), ("multiworker", 0, "STOP")],
        pytest.param("horovod", 1, "STOP", marks=pytest.mark.thorough),
        pytest.param("multiworker", 1, "STOP", marks=pytest.mark.thorough),
        pytest.param("multiworker", 0, "KILL", marks=pytest.mark.thorough),
    ],
)
def test_the_others_end_in_time_and_the_same_command_goes_on(
    kind: str, victim: int, name: str, launch: Callable[..., Any], world: Any, ranks: Any, tmp_path: Path
) -> None:
    run, cache = RunDir(tmp_path / "run"), tmp_path / "cache"
    launched = launch(world(kind, 2), command(run.path, cache))
    wait_for_step(run.path, 5, launched)
    processes = ranks(run.path)
    assert set(processes) == {0, 1}

    os.kill(processes[victim], getattr(signal, f"SIG{name}"))
    started = time.monotonic()
    while is_running(processes[1 - victim]):
        assert time.monotonic() < started + 60, launched.text
        time.sleep(0.02)
    seconds = time.monotonic() - started
    print(f"{kind}, SIG{name} of rank {victim}: the other ended after {seconds:.1f} s")
    survivors = [process for process in launched.processes if process.pid != processes[victim]]
    statuses = {process.wait(60) for process in survivors}  # under horovodrun, the launcher's
    launched.kill()
    assert seconds < (TIMEOUT_S if name == "STOP" else 2)
    assert statuses == ({3} if kind == "multiworker" else {1})
    message = rf"rank {victim} on \S+ \(process {processes[victim]}\) was lost"
    assert len(re.findall(message, launched.text)) == 1, launched.text
    status = json.loads(run.status.read_text())
    assert status["exit_status"] == 3 and re.match(message, status["message"])
    assert f"rank {victim} on" in run.log.read_text()

    if name == "KILL":
        return  # going on is the same after either
    last = max(int(path.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*"))
    again = launch(world(kind, 2), command(run.path, cache, "checkpoint.every_steps=1"))
    wait_for_step(run.path, last + 2, again)
    assert f"continues after step {last} of" in again.text
    again.kill()
