"""GPUs and cores: what the tools print, and seen against asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bloodcell_dist.doctor.devices import (
    Cores,
    Gpus,
    judge_cores,
    judge_gpus,
    look_at_cores,
    look_at_gpus,
    names_in,
    number_seen,
)
from bloodcell_dist.doctor.facts import ToolFailed
from bloodcell_dist.doctor.layout import Layout

TWO = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5a0a1c2e-0000-0000-0000-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-5a0a1c2e-0000-0000-0000-000000000001)
"""
PARTS = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5a0a1c2e-0000-0000-0000-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 3g.20gb     Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
"""
VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Feb 22 01:44:30 UTC 2024\nGCC version:  gcc 12.2.0\n"


@pytest.mark.parametrize(
    ("listing", "names"),
    [
        (TWO, ["NVIDIA A100-SXM4-40GB"] * 2),
        (PARTS, ["MIG 3g.20gb"] * 2),
        ("No devices found.\n", []),
        ("", []),
    ],
)
def test_what_nvidia_smi_prints(listing: str, names: list[str]) -> None:
    assert names_in(listing) == names


def test_looking_by_nvidia_smi_or_by_the_driver(tmp_path: Path) -> None:
    def no_tool(command: Sequence[str]) -> str:
        raise ToolFailed("there is no nvidia-smi here")

    assert look_at_gpus(0, no_tool, tmp_path) == Gpus(problem="there is no nvidia-smi here", by_tensorflow=0)
    for number in range(3):
        (tmp_path / f"gpus/{number}").mkdir(parents=True)
        (tmp_path / f"gpus/{number}/information").write_text("Model: \t\t NVIDIA L4\nIRQ:   16\n")
    (tmp_path / "version").write_text(VERSION.format("550.54.14"))
    assert look_at_gpus(None, no_tool, tmp_path).names == ("NVIDIA L4",) * 3
    found = look_at_gpus(None, lambda command: TWO, tmp_path)  # a job sees its own GPUs only
    assert (found.names, found.driver) == (("NVIDIA A100-SXM4-40GB",) * 2, "550.54.14")


@pytest.mark.parametrize(
    ("names", "by_tensorflow", "visible", "number"),
    [(0, None, None, 0), (4, None, None, 4), (4, None, 2, 2), (1, None, 2, 1), (4, 3, 4, 3), (4, 0, None, 0)],
)
def test_gpus_that_a_process_can_use(names: int, by_tensorflow: int | None, visible: int | None, number: int) -> None:
    assert number_seen(Gpus(names=("x",) * names, by_tensorflow=by_tensorflow), Layout(gpus_visible=visible)) == number


def gpus(count: int = 0, **others: Any) -> Gpus:
    return Gpus(names=("NVIDIA H100",) * count, **others)


JOB: dict[str, Any] = {"job": "1", "gpus_asked": 2, "gpus_visible": 2}


@pytest.mark.parametrize(
    ("found", "layout", "name", "level", "text"),
    [
        (gpus(), {}, "gpus", "ok", "none seen, none asked for"),
        (gpus(by_tensorflow=0), {}, "gpus", "ok", "none seen, none asked for"),
        (gpus(2, driver="550.54.14"), {}, "gpus", "ok", "2 seen (NVIDIA H100; driver 550.54.14)"),
        (gpus(2, by_tensorflow=2), JOB, "gpus", "ok", "2 seen, 2 asked for (NVIDIA H100)"),
        (gpus(4), JOB, "gpus", "ok", "2 seen, 2 asked for (NVIDIA H100)"),
        (
            gpus(problem="there is no nvidia-smi here"),
            JOB,
            "gpus",
            "error",
            "2 asked for, none seen (there is no nvidia-smi here)",
        ),
        (gpus(), {"gpus_asked": 1, "gpus_visible": 1}, "gpus", "error", "1 asked for, none seen"),
        (gpus(by_tensorflow=0), JOB, "gpus", "error", "2 asked for, none seen"),
        (gpus(1), JOB, "gpus", "error", "2 asked for, nvidia-smi sees 1"),
        (gpus(2, by_tensorflow=1), JOB, "gpus", "error", "2 asked for, TensorFlow sees 1"),
        (gpus(2, by_tensorflow=0), JOB, "gpus", "error", "2 asked for, the driver shows 2, TensorFlow sees none"),
        (gpus(2, by_tensorflow=0), {}, "gpus", "warning", "the driver shows 2, TensorFlow sees none"),
        (gpus(2, by_tensorflow=0), {"gpus_visible": 0, "gpus_asked": 0}, "gpus", "ok", "none wanted by this process"),
        (gpus(2), {"job": "1", "gpus_asked": 0}, "gpus", "warning", "2 on this node, but the job asked for none"),
        (gpus(2, by_tensorflow=1), JOB | {"launcher": "slurm", "gpus_visible": 1}, "gpus", "ok", "1 seen, 1 asked for"),
        (gpus(2, driver="470.57.02"), {}, "gpu driver", "warning", "driver 470.57.02 is older than 525.60.13"),
        (gpus(2, driver="525.60.13"), {}, "gpus", "ok", "2 seen"),
        (gpus(2, driver="525.105"), {}, "gpus", "ok", "2 seen"),
        (gpus(2, driver="470.57.02", by_tensorflow=2), {}, "gpus", "ok", "2 seen"),
    ],
)
def test_gpus_against_what_was_asked(found: Gpus, layout: dict[str, Any], name: str, level: str, text: str) -> None:
    (finding,) = judge_gpus(found, Layout(**layout))
    assert (finding.name, finding.level) == (name, level)
    assert finding.text.startswith(text)


def test_an_old_driver_explains_what_tensorflow_does_not_see() -> None:
    lines = judge_gpus(gpus(2, driver="470.57.02", by_tensorflow=0), Layout(**JOB))
    assert [(line.name, line.level) for line in lines] == [("gpu driver", "error"), ("gpus", "error")]


@pytest.mark.parametrize(
    ("usable", "all_cores", "layout", "level", "text"),
    [
        (8, 8, {}, "ok", "8"),
        (1, 8, {}, "warning", "1 for each task"),
        (8, 8, {"tasks_per_node": 2, "launcher": "horovod"}, "ok", "4 for each task, 8 shared by 2 tasks"),
        (
            2,
            2,
            {"tasks_per_node": 2, "launcher": "horovod"},
            "warning",
            "1 for each task, 2 shared by 2 tasks: loading",
        ),
        (
            2,
            2,
            {"tasks_per_node": 8, "launcher": "horovod"},
            "warning",
            "1 for each task, 2 shared by 8 tasks: loading",
        ),
        (16, 64, {"tasks_per_node": 2, "job": "1", "cpus_per_task": 8}, "ok", "8 for each task, 16 shared by 2 tasks"),
        (
            8,
            64,
            {"tasks_per_node": 2, "job": "1", "cpus_per_task": 8},
            "warning",
            "4 for each task, 8 asked for, 8 shared",
        ),
        (8, 64, {"tasks_per_node": 2, "launcher": "slurm", "cpus_per_task": 8}, "ok", "8 for each task"),
        (
            1,
            64,
            {"tasks_per_node": 2, "launcher": "slurm", "cpus_per_task": 8},
            "warning",
            "1 for each task, 8 asked for",
        ),
        (1, 64, {"job": "1", "cpus_per_task": 1}, "warning", "1 for each task: loading"),
    ],
)
def test_cores_of_a_task(usable: int, all_cores: int, layout: dict[str, Any], level: str, text: str) -> None:
    (finding,) = judge_cores(Cores(usable=usable, all=all_cores), Layout(**layout))
    assert (finding.name, finding.level) == ("cores", level)
    assert finding.text == text if level == "ok" else finding.text.startswith(text)


def test_cores_are_those_of_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    assert look_at_cores() == Cores(usable=len(before), all=os.cpu_count() or 1)
    try:
        os.sched_setaffinity(0, [min(before)])
        assert look_at_cores().usable == 1
    finally:
        os.sched_setaffinity(0, before)
