"""Tasks, nodes and GPUs as the launcher and Slurm tell them, and whether they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bloodcell_dist.cluster.environment import process_info
from bloodcell_dist.doctor.layout import Layout, judge_layout, layout_of

# As Slurm 22.05 sets them in the batch script of 2 nodes x 2 tasks with 2 GPUs per node.
BATCH = {
    "SLURM_JOB_ID": "1",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_CPUS_PER_TASK": "4",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURM_JOB_GPUS": "0,1",
    "CUDA_VISIBLE_DEVICES": "0,1",
}
STEP = BATCH | {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "n[1-2]",
}
HOROVOD = {
    **{"HOROVOD_RANK": "1", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "4"},
    **{"HOROVOD_CROSS_RANK": "0", "HOROVOD_CROSS_SIZE": "1"},
}


def without(names: str) -> dict[str, str]:
    return {name: value for name, value in BATCH.items() if name not in names.split()}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {}),
        ({"CUDA_VISIBLE_DEVICES": "2"}, {"gpus_asked": 1, "gpus_visible": 1}),
        ({"CUDA_VISIBLE_DEVICES": ""}, {"gpus_asked": 0, "gpus_visible": 0}),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, {"gpus_asked": 0, "gpus_visible": 0}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1f,MIG-2e"}, {"gpus_asked": 2, "gpus_visible": 2}),
        (BATCH, {"job": "1", "num_nodes": 2, "tasks_per_node": 2, "cpus_per_task": 4, "gpus_asked": 2}),
        (BATCH | {"SLURM_TASKS_PER_NODE": "1,3(x2)"}, {"tasks_per_node": 3}),
        (without("SLURM_TASKS_PER_NODE"), {"tasks_per_node": 2}),
        (without("SLURM_TASKS_PER_NODE SLURM_NTASKS_PER_NODE"), {"tasks_per_node": 1}),
        (BATCH | {"BLOODCELL_LAUNCHER": "multiworker"}, {"tasks_per_node": 1, "start_by": "multiworker"}),
        (BATCH | {"BLOODCELL_LAUNCHER": ""}, {"tasks_per_node": 2, "start_by": "auto"}),
        (without("SLURM_GPUS_ON_NODE") | {"SLURM_JOB_GPUS": "0-3,6"}, {"gpus_asked": 5}),
        (without("SLURM_GPUS_ON_NODE SLURM_JOB_GPUS") | {"SLURM_GPUS_PER_NODE": "a100:4"}, {"gpus_asked": 4}),
        (without("SLURM_GPUS_ON_NODE SLURM_JOB_GPUS") | {"SLURM_GPUS_PER_NODE": "3"}, {"gpus_asked": 3}),
        (without("SLURM_GPUS_ON_NODE SLURM_JOB_GPUS"), {"gpus_asked": 2}),
        (without("SLURM_GPUS_ON_NODE SLURM_JOB_GPUS CUDA_VISIBLE_DEVICES"), {"gpus_asked": 0, "gpus_visible": None}),
        (STEP, {"launcher": "slurm", "num_nodes": 2, "tasks_per_node": 2, "gpus_asked": 2}),
        (STEP | {"SLURM_STEP_GPUS": "1", "CUDA_VISIBLE_DEVICES": "0"}, {"gpus_asked": 2, "gpus_visible": 1}),
        (HOROVOD, {"launcher": "horovod", "tasks_per_node": 4, "num_nodes": 1, "job": None, "gpus_asked": None}),
        (BATCH | HOROVOD, {"launcher": "horovod", "tasks_per_node": 4, "num_nodes": 1, "job": "1"}),
    ],
)
def test_what_the_environment_tells(environ: Mapping[str, str], expected: dict[str, Any]) -> None:
    layout = layout_of(process_info(environ, "here"), environ)
    assert layout.model_dump() | expected == layout.model_dump()


@pytest.mark.parametrize(
    ("layout", "seen", "strategy", "level", "text"),
    [
        ({}, 0, "auto", "ok", "1 task"),
        ({}, 2, "auto", "ok", "1 task, with 2 GPUs"),
        ({"tasks_per_node": 4, "launcher": "horovod"}, 4, "auto", "ok", "4 tasks, a GPU each, started by horovodrun"),
        ({"tasks_per_node": 2, "num_nodes": 2}, 0, "auto", "ok", "2 tasks on each of 2 nodes"),
        (
            {"num_nodes": 2, "job": "1", "gpus_asked": 1},
            0,
            "multiworker",
            "ok",
            "1 task on each of 2 nodes, with 1 GPU",
        ),
        ({"tasks_per_node": 8}, 4, "auto", "error", "8 tasks per node would share 4 GPUs"),
        ({"tasks_per_node": 2, "gpus_asked": 1}, 4, "auto", "error", "2 tasks per node would share 1 GPU"),
        ({"tasks_per_node": 2, "gpus_asked": 4}, 0, "auto", "warning", "2 tasks per node use 2 of 4 GPUs"),
        (
            {"tasks_per_node": 2},
            0,
            "mirrored",
            "error",
            "distribute.strategy=mirrored is for one process, not for 2 tasks",
        ),
        (
            {"num_nodes": 3},
            0,
            "single",
            "error",
            "distribute.strategy=single is for one process, not for 1 task on each of 3 nodes",
        ),
        ({}, 2, "mirrored", "ok", "1 task, with 2 GPUs"),
        # srun --gpus-per-task=1, where Slurm may count the GPUs of the task or of the node
        (
            {"tasks_per_node": 4, "launcher": "slurm", "gpus_asked": 1, "gpus_visible": 1},
            1,
            "auto",
            "ok",
            "4 tasks, a GPU each, started by srun",
        ),
        (
            {"tasks_per_node": 2, "launcher": "slurm", "gpus_asked": 2, "gpus_visible": 1},
            1,
            "auto",
            "ok",
            "2 tasks, a GPU each, started by srun",
        ),
        ({"problem": "HOROVOD_RANK is no number; unset it"}, 0, "auto", "error", "HOROVOD_RANK is no number"),
    ],
)
def test_tasks_against_gpus_and_strategy(
    layout: dict[str, Any], seen: int, strategy: str, level: str, text: str
) -> None:
    (finding,) = judge_layout(Layout(**layout), seen, strategy)
    assert (finding.name, finding.level, finding.text) == ("tasks", level, text)


def test_the_fix_names_the_number_of_tasks() -> None:
    (finding,) = judge_layout(Layout(tasks_per_node=8), 4, "auto")
    assert "--ntasks-per-node=4" in finding.fix
