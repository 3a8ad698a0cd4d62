"""The command of the README's first page, as it is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.mark.parametrize("size", [2, pytest.param(8, marks=pytest.mark.thorough)])
def test_horovodrun_without_arguments(
    size: int, launch: Callable[..., Any], world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`horovodrun -np N python -m bloodcell_dist.train` in an empty folder, on a machine without GPU or cells."""
    monkeypatch.delenv("BLOODCELL_DATA", raising=False)
    launched = launch(world("horovod", size), ["-m", "bloodcell_dist.train"], threads=None)
    assert set(launched.wait(560)) == {0}, launched.text
    speakers = set(re.findall(r"^\[(\d)\]<stdout>", launched.text, re.MULTILINE))
    assert speakers == {"0"}  # one progress display
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "result.json").read_text())["test_accuracy"] > 0.5
    assert json.loads((run / "status.json").read_text())["exit_status"] == 0
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["launcher"], environment["workers"], environment["replicas"]) == ("horovod", size, size)
    writers = {file.name.split(".")[-3] for file in run.glob("tensorboard/*/events*")}
    assert len(writers) == 1  # process id, in TensorBoard's file names
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "environment.json", "log.txt", "metrics.jsonl", "checkpoints", "tensorboard", "plots"),
        *("result.json", "report.html", "model.keras", "status.json", "data.json", "run_id", ".lock"),
        *("cleaning.json", "cleaning.png"),
    }
    assert re.search(rf"strategy = horovod: {size} processes, started by horovodrun", launched.text)
