"""GPUs and CPU cores: seen against asked."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from bloodcell_dist.doctor.facts import Ask, Facts, ToolFailed, ask
from bloodcell_dist.doctor.findings import Finding, error, ok, warning
from bloodcell_dist.doctor.layout import Layout

OLDEST_DRIVER = "525.60.13"
"""For CUDA 12 (minor version compatibility), which TensorFlow 2.18 is built with."""

_PROC = Path("/proc/driver/nvidia")
_INSTALL = "pip install 'tensorflow[and-cuda]==2.18.*'; in a container: apptainer exec --nv"


class Gpus(Facts):
    """The GPUs of this machine.

    Attributes:
        names: of each that the driver shows this process.
        driver: its version; None without one.
        problem: why nvidia-smi, which is there, shows none.
        by_tensorflow: how many TensorFlow sees; None where it was not asked.
    """

    names: tuple[str, ...] = ()
    driver: str | None = None
    problem: str | None = None
    by_tensorflow: int | None = None


class Cores(Facts):
    """CPU cores: those that this process may run on, and all of the machine."""

    usable: int
    all: int


def look_at_gpus(by_tensorflow: int | None = None, ask: Ask = ask, proc: Path = _PROC) -> Gpus:
    """By nvidia-smi, which shows those of the job only, else by what the driver says of itself."""
    names, problem = [], None
    with contextlib.suppress(OSError):
        names = [_name_in(file.read_text()) for file in sorted(proc.glob("gpus/*/information"))]
    try:
        names = names_in(ask(["nvidia-smi", "-L"]))
    except ToolFailed as failure:
        problem = str(failure)
    return Gpus(names=tuple(names), driver=_driver(proc), problem=problem, by_tensorflow=by_tensorflow)


def names_in(listing: str) -> list[str]:
    """The GPUs in what `nvidia-smi -L` prints; where one is cut into MIG devices, those."""
    gpus = re.findall(r"^GPU [0-9]+: (.*?)(?: \(UUID.*)?$", listing, re.MULTILINE)
    parts = re.findall(r"^\s+(MIG .*?)\s+Device", listing, re.MULTILINE)
    return parts if len(parts) > len(gpus) else gpus


def _name_in(information: str) -> str:
    found = re.search(r"^Model:\s*(.*)$", information, re.MULTILINE)
    return found[1].strip() if found else "GPU"


def _driver(proc: Path) -> str | None:
    with contextlib.suppress(OSError):
        found = re.search(r"\b([0-9]+\.[0-9]+(?:\.[0-9]+)?)\b", (proc / "version").read_text())
        return found and found[1]
    return None


def look_at_cores() -> Cores:
    """The affinity of this process."""
    return Cores(usable=len(os.sched_getaffinity(0)), all=os.cpu_count() or 1)


def number_seen(found: Gpus, layout: Layout) -> int:
    """How many GPUs this process can use, as far as is known."""
    if found.by_tensorflow is not None:
        return found.by_tensorflow
    return len(found.names) if layout.gpus_visible is None else min(len(found.names), layout.gpus_visible)


def judge_gpus(found: Gpus, layout: Layout) -> list[Finding]:
    """Seen against asked, and the driver's age."""
    seen, here = number_seen(found, layout), len(found.names)
    asked = layout.gpus_asked or 0
    if asked and layout.gpus_visible and layout.launcher == "slurm":
        asked = min(asked, layout.gpus_visible)  # each task of the step may have been given its own
    who = "nvidia-smi" if found.by_tensorflow is None else "TensorFlow"
    elsewhere = (
        "another node, by sbatch --exclude=NODE, and tell the administrators; in a container: apptainer exec --nv"
    )
    if asked and not here and not seen:
        reason = f" ({found.problem})" if found.problem else ""
        return [error("gpus", f"{asked} asked for, none seen{reason}", elsewhere)]
    lines = _judge_driver(found, seen)
    if here and not seen and found.by_tensorflow is not None and layout.gpus_visible != 0:
        grave, want = (error, f"{asked} asked for, ") if asked else (warning, "")
        lines.append(grave("gpus", f"{want}the driver shows {here}, TensorFlow sees none", _INSTALL))
    elif asked > seen:
        lines.append(error("gpus", f"{asked} asked for, {who} sees {seen}", elsewhere))
    elif layout.job is not None and not asked and here:
        text = f"{here} on this node, but the job asked for none: it trains on {'them' if seen else 'CPUs'} anyhow"
        lines.append(warning("gpus", text, f"sbatch --gpus-per-node={here}"))
    if lines:
        return lines
    if not seen:
        return [ok("gpus", "none seen, none asked for" if layout.job or not here else "none wanted by this process")]
    kinds = ", ".join(dict.fromkeys(found.names[:seen] if here >= seen else found.names))
    about = "; ".join(filter(None, [kinds, found.driver and f"driver {found.driver}"]))
    return [ok("gpus", f"{seen} seen{f', {asked} asked for' if asked else ''}{f' ({about})' if about else ''}")]


def _judge_driver(found: Gpus, seen: int) -> list[Finding]:
    if found.driver is None or _version(found.driver) >= _version(OLDEST_DRIVER):
        return []
    if seen and found.by_tensorflow is not None:
        return []  # it works, by NVIDIA's package for forward compatibility
    grave = warning if found.by_tensorflow is None else error
    text = f"driver {found.driver} is older than {OLDEST_DRIVER}, which CUDA 12 needs"
    return [grave("gpu driver", text, "nodes with a newer driver, or a module or container with cuda-compat 12")]


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def judge_cores(found: Cores, layout: Layout) -> list[Finding]:
    """What each task of the node has."""
    bound = layout.launcher == "slurm" and found.usable < found.all
    tasks = 1 if bound else layout.tasks_per_node
    each, asked = max(1, found.usable // tasks), layout.cpus_per_task
    shared = f", {found.usable} shared by {tasks} tasks" if tasks > 1 else ""
    if asked is not None and each < asked:
        fix = "tell the administrators: Slurm counts cores that the job may not use"
        if layout.launcher != "none":
            fix = f"srun --cpus-per-task={asked}: it does not take it from sbatch"
        return [warning("cores", f"{each} for each task, {asked} asked for{shared}", fix)]
    if each == 1:
        fix = "sbatch --cpus-per-task=8" if layout.job else "fewer processes, or a machine with more cores"
        return [warning("cores", f"1 for each task{shared}: loading and drawing wait for one another", fix)]
    return [ok("cores", f"{each} for each task{shared}" if layout.has_several else f"{each}")]
