"""Which of a node's GPUs and CPU cores a process takes; pure arithmetic over what it sees."""

from __future__ import annotations

from collections.abc import Mapping

from bloodcell_dist.cluster.environment import ProcessInfo
from bloodcell_dist.errors import UserError


def gpus_of(process: ProcessInfo, num_gpus: int, environ: Mapping[str, str]) -> list[int]:
    """The numbers of the visible GPUs that a process takes: all if it is alone on its node, else one, by local rank.

    Where the launcher has given each process a GPU of its own, a process sees that one only.

    Raises UserError where processes would share a GPU.
    """
    if process.local_size == 1 or num_gpus == 0:
        return list(range(num_gpus))
    if process.launcher == "tf_config" and num_gpus > 1:
        raise UserError(
            f"TF_CONFIG names {process.local_size} workers on {process.hostname}, which would share its {num_gpus} "
            "GPUs; name one worker per node, it uses all GPUs"
        )
    bound = "CUDA_VISIBLE_DEVICES" in environ or process.launcher == "slurm"
    if num_gpus == 1 and bound:
        return [0]
    if process.local_size > num_gpus:
        raise UserError(
            f"{process.local_size} processes on {process.hostname}, which has {_count(num_gpus)}; start "
            f"{num_gpus} per node (horovodrun -np {num_gpus * process.num_nodes})"
        )
    return [process.local_rank]


def threads_of(process: ProcessInfo, usable_cores: int, all_cores: int) -> int | None:
    """Threads for a process's operations; None leaves it to TensorFlow, which takes all the cores it may use.

    Several processes on a node that may use all its cores would otherwise each start a thread per core. Where the
    launcher has bound each to cores of its own (Slurm), they are few enough already.

    Args:
        process: who this is.
        usable_cores: that this process may run on.
        all_cores: of the node.
    """
    if process.local_size == 1 or usable_cores < all_cores:
        return None
    return max(1, usable_cores // process.local_size)


def _count(num_gpus: int) -> str:
    return "1 GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
