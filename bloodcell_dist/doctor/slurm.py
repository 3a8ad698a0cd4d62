"""What Slurm will do with this job: when it ends, how it is told, whether it comes back."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping

from bloodcell_dist.doctor.facts import Ask, Facts, ToolFailed, ask
from bloodcell_dist.doctor.findings import Finding, ok, warning

KILL_WAIT_S = 30
"""Slurm's own default, within which a small checkpoint is saved."""

_SIGNAL = "--signal=B:USR1@300"


class Slurm(Facts):
    """What Slurm's programs say; None for what is not known.

    Attributes:
        there: whether there is an sbatch.
        job: this job's number.
        nodes: of the job, in Slurm's notation.
        left_s: until the time limit; None without one.
        requeue: whether the job may be requeued.
        signal: `B:USR1@300`; None if the batch script asks for none, or cannot be read.
        script: whether the batch script could be read.
        kill_wait_s: from SIGTERM to SIGKILL when a job is cancelled.
        preempt: what happens to a preempted job: off, requeue, cancel, suspend.
        problem: why Slurm's programs do not answer.
    """

    there: bool = False
    job: str | None = None
    nodes: str | None = None
    left_s: int | None = None
    requeue: bool | None = None
    signal: str | None = None
    script: bool = False
    kill_wait_s: int | None = None
    preempt: str | None = None
    problem: str | None = None


def look_at_slurm(environ: Mapping[str, str], ask: Ask = ask) -> Slurm:
    """By scontrol, which reads only."""
    job, there = environ.get("SLURM_JOB_ID"), shutil.which("sbatch") is not None
    known = Slurm(there=there, job=job, nodes=environ.get("SLURM_JOB_NODELIST"))
    if shutil.which("scontrol") is None:
        return known
    try:
        config = fields_of(ask(["scontrol", "show", "config"]))
        told = fields_of(ask(["scontrol", "show", "job", "--oneliner", job])) if job else {}
    except ToolFailed as failure:
        return known.model_copy(update={"problem": str(failure)})
    script, partition = None, {}
    with contextlib.suppress(ToolFailed):  # a job of salloc has no script; only its owner may read it
        script = ask(["scontrol", "write", "batch_script", job, "-"]) if job else None
    with contextlib.suppress(ToolFailed):
        if "Partition" in told:
            partition = fields_of(ask(["scontrol", "show", "partition", "--oneliner", told["Partition"]]))
    limit, run = seconds_of(told.get("TimeLimit", "")), seconds_of(told.get("RunTime", ""))
    wait = re.match("[0-9]+", config.get("KillWait", ""))
    return known.model_copy(
        update={
            "left_s": None if limit is None or run is None else limit - run,
            "requeue": {"1": True, "0": False}.get(told.get("Requeue", "")),
            "signal": environ.get("SBATCH_SIGNAL") or signal_in(script or ""),
            "script": script is not None,
            "kill_wait_s": int(wait[0]) if wait else None,
            "preempt": preemption(config, partition),
        }
    )


def fields_of(text: str) -> dict[str, str]:
    """The `Name=value` and `Name = value` of what scontrol prints; the first of each name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        pairs = [line.split(" = ", 1)] if " = " in line else [part.split("=", 1) for part in line.split()]
        for name, value in (pair for pair in pairs if len(pair) == 2):
            found.setdefault(name.strip(), value.strip())
    return found


def seconds_of(text: str) -> int | None:
    """Slurm's `1-02:03:04`, `02:03:04`; None for UNLIMITED and the like."""
    found = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+):([0-9]+):([0-9]+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def signal_in(script: str) -> str | None:
    """What `#SBATCH --signal` asks for; Slurm reads such lines up to the first command."""
    for line in script.splitlines():
        if found := re.match(r"#SBATCH\s.*--signal[=\s]\s*(\S+)", line):
            return found[1]
        if line.strip() and not line.startswith("#"):
            return None
    return None


def preemption(config: Mapping[str, str], partition: Mapping[str, str]) -> str | None:
    """What happens to a preempted job of this partition."""
    if config.get("PreemptType") == "preempt/none":
        return "off"
    modes = (partition.get("PreemptMode") or config.get("PreemptMode") or "").lower().split(",")
    return next((mode for mode in ("requeue", "cancel", "suspend", "off") if mode in modes), None)


def judge_slurm(found: Slurm) -> list[Finding]:
    """About the job, and about what the cluster does to jobs."""
    if found.problem is not None:
        about = f"job {found.job}; " if found.job else ""
        text = f"{about}Slurm does not answer ({found.problem})"
        return [warning("slurm", text, "see whether `scontrol ping` works on this node")]
    if found.job is None:
        text = "sbatch is here; this is no job" if found.there else "no sbatch here; `bloodcell-dist train` needs none"
        return [ok("slurm", text), *_judge_cluster(found)]
    lines = []
    if found.script and found.signal is None:
        text = "no #SBATCH --signal in the batch script: the time limit would cost what came after the last checkpoint"
        lines.append(warning("slurm", text, f"sbatch {_SIGNAL}, unless it was given there"))
    if found.requeue is False:
        lines.append(warning("slurm", "the job may not be requeued: it would not come back", "sbatch --requeue"))
    return [*(lines or [ok("slurm", _about(found))]), *_judge_cluster(found)]


def _about(found: Slurm) -> str:
    told = [f"job {found.job} on {found.nodes}" if found.nodes else f"job {found.job}"]
    told += [f"{_clock(found.left_s)} left"] if found.left_s is not None else []
    told += [f"signal {found.signal}"] if found.signal else []
    told += ["may be requeued"] if found.requeue else []
    return ", ".join(told)


def _judge_cluster(found: Slurm) -> list[Finding]:
    lines = []
    if found.kill_wait_s is not None and found.kill_wait_s < KILL_WAIT_S:
        text = f"KillWait is {found.kill_wait_s} s: a cancelled job may not finish its checkpoint"
        fix = "ask the administrators for 30 s or more; to stop a job, rather scancel --batch --signal=USR1 JOB"
        lines.append(warning("kill wait", text, fix))
    elif found.kill_wait_s is not None:
        lines.append(ok("kill wait", f"{found.kill_wait_s} s to save a checkpoint when the job is cancelled"))
    if found.preempt == "cancel":
        text = "a preempted job of this partition is cancelled, and does not come back"
        lines.append(warning("preemption", text, "another partition, or submit again: it goes on from its checkpoint"))
    elif found.preempt is not None:
        words = {"off": "jobs are not preempted", "requeue": "preempted jobs are requeued"}
        lines.append(ok("preemption", words.get(found.preempt, "preempted jobs are suspended")))
    return lines


def _clock(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
