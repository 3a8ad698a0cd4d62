"""`bloodcell-dist doctor` among the ranks that horovodrun starts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

Line = dict[str, str]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a run of 24 cells that a doctor has no complaint about."""
    for name in ("BLOODCELL_DATA", "BLOODCELL_SCRATCH", "BLOODCELL_RUNS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "cells.npz", images=images, labels=np.arange(24) % 8)
    return ["--set", "data.path=cells.npz", "--set", "model.backbone=cnn", "--set", "data.cache_dir=cache"]


def lines_of(text: str) -> list[Line]:
    """What rank 0 printed, which has to be JSON; and no other rank anything."""
    assert not re.search(r"^\[1\]<stdout>", text, re.MULTILINE), text
    found: list[Line] = json.loads("".join(re.findall(r"^\[0\]<stdout>:(.*\n)", text, re.MULTILINE)))
    return found


def named(lines: list[Line], name: str) -> Line:
    (line,) = [line for line in lines if line["name"] == name]
    return line


def test_two_ranks_measure_their_sum(
    launch: Callable[..., Any], world: Any, options: list[str], tmp_path: Path
) -> None:
    command = ["-m", "bloodcell_dist.cli", "doctor", "--json"]
    launched = launch(world("horovod", 2), [*command, *options])
    assert set(launched.wait()) == {0}, launched.text
    lines = lines_of(launched.text)
    assert "error" not in {line["level"] for line in lines}
    measured = named(lines, "all-reduce")
    pattern = r"1 MiB at ([\d,]+) MB/s, 16 MiB at ([\d,]+) MB/s, latency ([\d.]+) ms \(horovod, 2 replicas: 2 on \S+\)"
    found = re.fullmatch(pattern, measured["text"].removeprefix("slow: "))
    assert found, measured
    assert all(float(figure.replace(",", "")) > 0 for figure in found.groups())
    assert named(lines, "tasks")["text"] == "2 tasks, started by horovodrun"
    assert named(lines, "horovod")["text"].startswith("0.28.1 with TensorFlow, Gloo")
    assert named(lines, "data")["text"] == f"{tmp_path / 'cells.npz'}, npz, 24 cells"
    assert re.fullmatch("[0-9a-f]{64} cells.npz", named(lines, "sha-256")["text"])
    assert len({line["name"] for line in lines}) == len(lines)  # what both ranks have found is told once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.npz"]  # it leaves nothing behind


@pytest.mark.parametrize(
    ("what", "name", "text"),
    [
        ("hangs", "all-reduce", "the sum of gradients did not end within 5 s"),
        ("dies", "ranks", r"rank 1 on \S+ \(process \d+\) was lost: its process is gone .*"),
        ("fails", "ranks", r"rank 1 on \S+: the sum of gradients failed: no route to host"),
    ],
)
def test_what_was_found_is_told_though_a_rank_fails(
    what: str, name: str, text: str, launch: Callable[..., Any], world: Any, options: list[str]
) -> None:
    launched = launch(world("horovod", 2), [Path(__file__).with_name("ailing.py"), what, *options])
    assert 0 not in launched.wait(120)
    lines = lines_of(launched.text)
    assert {"python", "packages", "horovod", "data", "run folder"} <= {line["name"] for line in lines}
    assert lines[-1]["name"] == name and re.fullmatch(text, lines[-1]["text"])
    assert lines[-1]["level"] == "error" and lines[-1]["fix"]
