"""How many processes, on how many nodes, with what: as the launcher and Slurm tell it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bloodcell_dist.cluster.devices import gpus_in_words
from bloodcell_dist.cluster.environment import STARTED, Launcher, ProcessInfo
from bloodcell_dist.doctor.facts import Facts
from bloodcell_dist.doctor.findings import Finding, error, explained, ok, warning

_NO_GPUS = ("", "-1", "NoDevFiles", "none", "void")


class Layout(Facts):
    """The tasks of a run; at the head of a job those that it is about to start.

    Attributes:
        launcher: that has started this process; none at the head of a job.
        job: number of the Slurm job; None outside.
        num_nodes: with tasks.
        tasks_per_node: at most.
        cpus_per_task: asked for; None if nobody did.
        gpus_asked: for this node; None where nobody could ask, outside a job.
        gpus_visible: that CUDA_VISIBLE_DEVICES lets this process see; None if it is not set.
        start_by: $BLOODCELL_LAUNCHER: auto, pmix, multiworker, horovodrun.
        problem: why the launcher's variables make no sense.
    """

    launcher: Launcher = "none"
    job: str | None = None
    num_nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    gpus_asked: int | None = None
    gpus_visible: int | None = None
    start_by: str = "auto"
    problem: str | None = None

    @property
    def has_several(self) -> bool:
        """Whether several processes train together on a node."""
        return self.tasks_per_node > 1

    @property
    def needs_mpi(self) -> bool:
        """Whether Horovod is to start by MPI."""
        return self.launcher == "openmpi" or self.start_by == "pmix"


def layout_of(process: ProcessInfo, environ: Mapping[str, str], problem: str | None = None) -> Layout:
    """What this process's launcher says, else what the job around it is about to start."""
    job = environ.get("SLURM_JOB_ID")
    start_by = environ.get("BLOODCELL_LAUNCHER") or "auto"
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    tasks, nodes = process.local_size, process.num_nodes
    if job is not None and process.launcher == "none":
        nodes = _number(environ.get("SLURM_JOB_NUM_NODES") or environ.get("SLURM_NNODES")) or 1
        tasks = 1 if start_by == "multiworker" else _tasks_per_node(environ)
    gpus_visible = None if visible is None else _count(visible)
    return Layout(
        launcher=process.launcher,
        job=job,
        num_nodes=nodes,
        tasks_per_node=tasks,
        cpus_per_task=_number(environ.get("SLURM_CPUS_PER_TASK")),
        gpus_asked=gpus_visible if job is None else _gpus_of_job(environ, gpus_visible or 0),
        gpus_visible=gpus_visible,
        start_by=start_by,
        problem=problem,
    )


def judge_layout(layout: Layout, gpus_seen: int, strategy: str) -> list[Finding]:
    """Whether tasks, GPUs and the setting distribute.strategy fit together.

    Several tasks of a node need a GPU each; one takes them all.
    """
    tasks, gpus = layout.tasks_per_node, layout.gpus_asked or gpus_seen
    if layout.launcher in ("slurm", "openmpi") and layout.gpus_visible == 1:
        gpus = tasks  # it has given each its own
    if layout.problem is not None:
        return [explained("tasks", layout.problem, "start all by one launcher: srun, horovodrun or mpirun")]
    if strategy in ("single", "mirrored") and tasks * layout.num_nodes > 1:
        text = f"distribute.strategy={strategy} is for one process, not for {_tasks(layout)}"
        return [error("tasks", text, "--set distribute.strategy=auto, or one task on one node")]
    if layout.has_several and 0 < gpus < tasks:
        fix = f"a task per GPU: --ntasks-per-node={gpus}; or one task per node, which takes all"
        return [error("tasks", f"{tasks} tasks per node would share {gpus_in_words(gpus)}", fix)]
    if layout.has_several and gpus > tasks:
        fix = f"a task per GPU: --ntasks-per-node={gpus}; or one task per node, which takes all"
        return [warning("tasks", f"{tasks} tasks per node use {tasks} of {gpus_in_words(gpus)}", fix)]
    each = ", a GPU each" if layout.has_several and gpus else f", with {gpus_in_words(gpus)}" if gpus else ""
    started = "" if layout.launcher == "none" else f", {STARTED[layout.launcher]}"
    return [ok("tasks", f"{_tasks(layout)}{each}{started}")]


def _tasks(layout: Layout) -> str:
    tasks = "1 task" if layout.tasks_per_node == 1 else f"{layout.tasks_per_node} tasks"
    if layout.num_nodes == 1:
        return tasks
    return f"{tasks} on each of {layout.num_nodes} nodes"


def _tasks_per_node(environ: Mapping[str, str]) -> int:
    """The largest of `2(x2),1`."""
    text = environ.get("SLURM_TASKS_PER_NODE") or environ.get("SLURM_NTASKS_PER_NODE") or "1"
    return max([1, *(int(count) for count in re.findall(r"(?:^|,)([0-9]+)", text))])


def _gpus_of_job(environ: Mapping[str, str], otherwise: int) -> int:
    """GPUs of the job on this node: a count (`2`, `a100:2`), or a list of them (`0,1`, `0-3`)."""
    count = _number(environ.get("SLURM_GPUS_ON_NODE"))
    if count is not None:
        return count
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if name in environ:
            return _count(environ[name])
    per_node = re.findall(r"(?:^|[:,])([0-9]+)(?=$|,)", environ.get("SLURM_GPUS_PER_NODE", ""))
    return sum(map(int, per_node)) if per_node else otherwise


def _count(devices: str) -> int:
    """The length of a list of devices: numbers, ranges of them, or UUIDs."""
    names = [name.strip() for name in devices.split(",")]
    ends = [re.fullmatch(r"([0-9]+)-([0-9]+)", name) for name in names if name not in _NO_GPUS]
    return sum(int(end[2]) - int(end[1]) + 1 if end else 1 for end in ends)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch("[0-9]+", text) else None
