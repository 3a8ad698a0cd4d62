"""What Slurm 22.05 prints, read; and what it means for a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bloodcell_dist.doctor import slurm
from bloodcell_dist.doctor.facts import ToolFailed
from bloodcell_dist.doctor.slurm import (
    Slurm,
    fields_of,
    judge_slurm,
    look_at_slurm,
    preemption,
    seconds_of,
    signal_in,
)

JOB = (
    "JobId=1 JobName=a b.sh UserId=root(0) Account=(null) JobState=RUNNING Requeue=1 Restarts=0 RunTime=00:01:30 "
    "TimeLimit=00:10:00 TimeMin=N/A Partition=low AllocNode:Sid=localhost:0 NodeList=n[1-2] "
    "Command=/tmp/x=y.sh Power= \n"
)
CONFIG = """\
Configuration data as of 2026-11-25T09:09:02
KillWait                = 20 sec
PreemptMode             = GANG,SUSPEND
PreemptType             = preempt/partition_prio
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at head is UP
"""
PARTITION = "PartitionName=low AllowGroups=ALL GraceTime=0 PreemptMode=REQUEUE State=UP\n"
SCRIPT = "#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --signal=B:USR1@300\necho\n"
INSIDE = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}


class Scontrol:
    """Answers as scontrol does; `failing` names what it does not answer."""

    def __init__(self, *failing: str, **other: str) -> None:
        self._failing = failing
        self._answers = {"config": CONFIG, "job": JOB, "partition": PARTITION, "batch_script": SCRIPT} | other

    def __call__(self, command: Sequence[str]) -> str:
        assert command[0] == "scontrol"
        if command[2] in self._failing:
            raise ToolFailed("scontrol: slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
        return self._answers[command[2]]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The programs that are there; a test may take some away."""
    there = {"sbatch", "scontrol"}
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}" if name in there else None)
    return there


def test_what_slurm_says_of_a_job(programs: set[str]) -> None:
    assert look_at_slurm(INSIDE, Scontrol()) == Slurm(
        there=True,
        job="1",
        nodes="n[1-2]",
        left_s=510,
        requeue=True,
        signal="B:USR1@300",
        script=True,
        kill_wait_s=20,
        preempt="requeue",
    )


def test_outside_a_job(programs: set[str]) -> None:
    assert look_at_slurm({}, Scontrol("job", "batch_script", "partition")) == Slurm(
        there=True, kill_wait_s=20, preempt="suspend"
    )


@pytest.mark.parametrize(
    ("environ", "scontrol", "changed"),
    [
        (INSIDE, Scontrol("batch_script"), {"script": False, "signal": None}),
        (INSIDE, Scontrol(batch_script="#!/bin/sh\n"), {"script": True, "signal": None}),
        (INSIDE | {"SBATCH_SIGNAL": "TERM@60"}, Scontrol("batch_script"), {"signal": "TERM@60"}),
        (INSIDE, Scontrol("partition"), {"preempt": "suspend"}),
        (INSIDE, Scontrol(job=JOB.replace("Requeue=1", "Requeue=0")), {"requeue": False}),
        (INSIDE, Scontrol(job=JOB.replace("TimeLimit=00:10:00", "TimeLimit=UNLIMITED")), {"left_s": None}),
        (
            INSIDE,
            Scontrol("config"),
            {"problem": "scontrol: slurm_load_jobs error: Unable to contact slurm controller (connect failure)"},
        ),
        (INSIDE, Scontrol("job"), {"job": "1", "kill_wait_s": None}),
    ],
)
def test_what_slurm_does_not_say(
    programs: set[str], environ: Mapping[str, str], scontrol: Scontrol, changed: dict[str, Any]
) -> None:
    found = look_at_slurm(environ, scontrol).model_dump()
    assert found | changed == found


def test_in_a_container_without_slurm(programs: set[str]) -> None:
    programs.clear()
    assert look_at_slurm(INSIDE, Scontrol("config")) == Slurm(there=False, job="1", nodes="n[1-2]")
    assert look_at_slurm({}, Scontrol("config")) == Slurm()


def test_fields() -> None:
    assert fields_of(JOB)["Command"] == "/tmp/x=y.sh" and fields_of(JOB)["TimeLimit"] == "00:10:00"
    assert fields_of(CONFIG)["KillWait"] == "20 sec"
    assert fields_of("A=1 A=2\n") == {"A": "1"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:01:30", 90), ("2-01:00:00", 176400), ("UNLIMITED", None), ("Partition_Limit", None), ("", None)],
)
def test_times(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("script", "signal"),
    [
        (SCRIPT, "B:USR1@300"),
        ("#!/bin/sh\n#SBATCH --requeue --signal USR1@60 # why\n", "USR1@60"),
        ("#!/bin/sh\n# a comment\n\n#SBATCH --signal=10\n", "10"),
        ("#!/bin/sh\n##SBATCH --signal=10\n", None),
        ("#!/bin/sh\nset -e\n#SBATCH --signal=10\n", None),
        ("", None),
    ],
)
def test_the_signal_of_a_script(script: str, signal: str | None) -> None:
    assert signal_in(script) == signal


@pytest.mark.parametrize(
    ("config", "partition", "mode"),
    [
        ({"PreemptType": "preempt/none", "PreemptMode": "REQUEUE"}, {}, "off"),
        ({"PreemptMode": "REQUEUE"}, {"PreemptMode": "OFF"}, "off"),
        ({"PreemptMode": "REQUEUE"}, {}, "requeue"),
        ({"PreemptMode": "GANG,SUSPEND"}, {}, "suspend"),
        ({}, {"PreemptMode": "CANCEL"}, "cancel"),
        ({}, {}, None),
    ],
)
def test_preemption(config: dict[str, str], partition: dict[str, str], mode: str | None) -> None:
    assert preemption(config, partition) == mode


WELL: dict[str, Any] = {
    **{"there": True, "job": "12_3", "nodes": "n[1-2]", "left_s": 90061, "requeue": True, "signal": "B:USR1@300"},
    **{"script": True, "kill_wait_s": 30, "preempt": "requeue"},
}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            WELL,
            [
                ("slurm", "ok", "job 12_3 on n[1-2], 25:01:01 left, signal B:USR1@300, may be requeued"),
                ("kill wait", "ok", "30 s to save a checkpoint when the job is cancelled"),
                ("preemption", "ok", "preempted jobs are requeued"),
            ],
        ),
        ({}, [("slurm", "ok", "no sbatch here; `bloodcell-dist train` needs none")]),
        (
            {"there": True, "kill_wait_s": 60, "preempt": "off"},
            [
                ("slurm", "ok", "sbatch is here; this is no job"),
                ("kill wait", "ok", "60 s to save a checkpoint when the job is cancelled"),
                ("preemption", "ok", "jobs are not preempted"),
            ],
        ),
        ({"job": "7"}, [("slurm", "ok", "job 7")]),
        (
            {"job": "7", "problem": "scontrol: no"},
            [("slurm", "warning", "job 7; Slurm does not answer (scontrol: no)")],
        ),
        ({"there": True, "problem": "it"}, [("slurm", "warning", "Slurm does not answer (it)")]),
        (
            WELL | {"signal": None, "requeue": False, "kill_wait_s": None, "preempt": None},
            [
                (
                    "slurm",
                    "warning",
                    "no #SBATCH --signal in the batch script: the time limit would cost what came after ",
                ),
                ("slurm", "warning", "the job may not be requeued: it would not come back"),
            ],
        ),
        ({"job": "7", "signal": None, "script": False}, [("slurm", "ok", "job 7")]),  # of salloc
        (
            {"kill_wait_s": 29, "preempt": "cancel"},
            [
                ("slurm", "ok", "no sbatch here"),
                ("kill wait", "warning", "KillWait is 29 s: a cancelled job may not finish its checkpoint"),
                ("preemption", "warning", "a preempted job of this partition is cancelled, and does not come back"),
            ],
        ),
        (
            {"there": True, "preempt": "suspend"},
            [("slurm", "ok", "sbatch is here"), ("preemption", "ok", "preempted jobs are suspended")],
        ),
    ],
)
def test_what_it_means_for_a_job(found: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    lines = judge_slurm(Slurm(**found))
    assert [(line.name, line.level) for line in lines] == [(name, level) for name, level, _ in expected]
    assert all(line.text.startswith(text) for line, (_, _, text) in zip(lines, expected, strict=True))
