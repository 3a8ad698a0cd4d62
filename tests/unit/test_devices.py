"""Which GPUs and how many threads a process takes among others on its node."""

from __future__ import annotations

import pytest

from bloodcell_dist.cluster.devices import gpus_of, threads_of
from bloodcell_dist.cluster.environment import Launcher, ProcessInfo
from bloodcell_dist.errors import UserError

BOUND = {"CUDA_VISIBLE_DEVICES": "3"}


def process(launcher: Launcher, local_rank: int, local_size: int) -> ProcessInfo:
    """One of so many on the first of two nodes."""
    return ProcessInfo(launcher, local_rank, 2 * local_size, local_rank, local_size, 0, 2, "n1")


@pytest.mark.parametrize(
    ("launcher", "local_rank", "local_size", "num_gpus", "environ", "expected"),
    [
        # alone on its node: all
        ("none", 0, 1, 0, {}, []),
        ("none", 0, 1, 1, {}, [0]),
        ("none", 0, 1, 4, {}, [0, 1, 2, 3]),
        ("tf_config", 0, 1, 2, {}, [0, 1]),
        ("horovod", 0, 1, 2, {}, [0, 1]),
        # without GPUs there is nothing to share
        ("horovod", 1, 2, 0, {}, []),
        ("tf_config", 1, 2, 0, {}, []),
        # one each, by local rank
        ("horovod", 0, 2, 2, {}, [0]),
        ("horovod", 1, 2, 2, {}, [1]),
        ("openmpi", 2, 3, 8, {}, [2]),
        ("slurm", 1, 2, 2, {}, [1]),
        ("horovod", 1, 2, 2, {"CUDA_VISIBLE_DEVICES": "4,6"}, [1]),
        # the launcher has given each its own
        ("openmpi", 1, 2, 1, BOUND, [0]),
        ("tf_config", 1, 2, 1, BOUND, [0]),
        ("slurm", 3, 4, 1, {}, [0]),
    ],
)
def test_the_gpus_of_a_process(
    launcher: Launcher, local_rank: int, local_size: int, num_gpus: int, environ: dict[str, str], expected: list[int]
) -> None:
    assert gpus_of(process(launcher, local_rank, local_size), num_gpus, environ) == expected


@pytest.mark.parametrize(
    ("launcher", "local_size", "num_gpus", "message"),
    [
        ("horovod", 3, 2, r"3 processes on n1, which has 2 GPUs; start 2 per node \(horovodrun -np 4\)"),
        ("openmpi", 2, 1, r"2 processes on n1, which has 1 GPU; start 1 per node \(horovodrun -np 2\)"),
        ("slurm", 3, 2, "3 processes on n1, which has 2 GPUs; start 2 per node"),
        ("tf_config", 2, 1, "TF_CONFIG names 2 workers on n1, which would share its 1 GPU; name one worker per node"),
        ("tf_config", 2, 4, "TF_CONFIG names 2 workers on n1, which would share its 4 GPUs; name one worker per node"),
    ],
)
def test_processes_do_not_share_a_gpu(launcher: Launcher, local_size: int, num_gpus: int, message: str) -> None:
    for local_rank in range(local_size):  # also those for which there would be one
        with pytest.raises(UserError, match=message):
            gpus_of(process(launcher, local_rank, local_size), num_gpus, {})


@pytest.mark.parametrize(
    ("launcher", "local_size", "usable_cores", "all_cores", "expected"),
    [
        ("horovod", 1, 8, 8, None),  # alone: TensorFlow takes all
        ("horovod", 1, 2, 8, None),
        ("horovod", 2, 8, 8, 4),
        ("horovod", 3, 8, 8, 2),
        ("horovod", 8, 8, 8, 1),
        ("horovod", 5, 2, 2, 1),  # more processes than cores
        ("horovod", 2, 4, 8, 2),  # the job's cores, which all its processes see
        ("slurm", 2, 4, 8, None),  # bound to cores of its own
        ("openmpi", 2, 4, 8, None),
        ("openmpi", 2, 8, 8, 4),
    ],
)
def test_the_threads_of_a_process(
    launcher: Launcher, local_size: int, usable_cores: int, all_cores: int, expected: int | None
) -> None:
    assert threads_of(process(launcher, 0, local_size), usable_cores, all_cores) == expected


def test_a_job_of_one_gpu_is_not_one_gpu_per_process() -> None:
    """Slurm names the job's GPUs to all that horovodrun starts."""
    with pytest.raises(UserError, match="2 processes on n1, which has 1 GPU; start 1 per node"):
        gpus_of(process("horovod", 0, 2), 1, BOUND)
