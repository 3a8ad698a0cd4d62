"""What the machine and its job tell of memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bloodcell_dist import memory

MEMINFO = "MemTotal:       24000 kB\nMemFree:        100 kB\nMemAvailable:   20000 kB\n"


def group(folder: Path, limit: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("9000000\n")
    (folder / "memory.stat").write_text("anon 1\ninactive_file 4000000\nactive_file 7\n")
    return folder


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", 20000 << 10), ("15000000", 10_000_000), ("99000000000", 20000 << 10), (None, 20000 << 10)],
)
def test_the_machine_or_the_job_sets_the_limit(tmp_path: Path, limit: str | None, expected: int) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    cgroup = group(tmp_path / "cgroup", limit) if limit else tmp_path / "nowhere"
    assert memory.available_bytes(tmp_path, cgroup) == expected


def test_where_nobody_tells_nothing_is_known(tmp_path: Path) -> None:
    assert memory.available_bytes(tmp_path, tmp_path) is None
    assert memory.peak_bytes(tmp_path) == 0


def test_the_peak_of_this_process_grows_with_what_it_takes() -> None:
    assert memory.available_bytes() is not None
    before = memory.peak_bytes()
    taken = np.ones(200_000_000, np.uint8)
    assert memory.peak_bytes() >= before > 10_000_000
    assert memory.peak_bytes() >= taken.nbytes


@pytest.mark.parametrize(
    ("script", "visible", "expected"),
    [
        ("echo 81000; echo 40000", None, 40000 << 20),
        ('[ "$4" = 3,5 ] && echo 70000', "3,5", 70000 << 20),
        ("echo '[N/A]'", None, None),
        ("echo no driver; exit 9", None, None),
        ("exit 0", None, None),
    ],
)
def test_the_fullest_gpu_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, visible: str | None, expected: int | None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert memory.free_on_gpus({"CUDA_VISIBLE_DEVICES": visible} if visible else {}) == expected


def test_without_the_tool_nothing_is_known_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert memory.free_on_gpus({}) is None
