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
    # horovodrun binds nothing: its processes all see what the job has. Others may have been given one each.
    bound = process.launcher == "slurm" or (process.launcher != "horovod" and "CUDA_VISIBLE_DEVICES" in environ)
    if num_gpus == 1 and bound:
        return [0]
    if process.launcher == "tf_config":
        raise UserError(
            f"TF_CONFIG names {process.local_size} workers on {process.hostname}, which would share its "
            f"{gpus_in_words(num_gpus)}; name one worker per node, it uses all GPUs"
        )
    if process.local_size > num_gpus:
        raise UserError(
            f"{process.local_size} processes on {process.hostname}, which has {gpus_in_words(num_gpus)}; start "
            f"{num_gpus} per node (horovodrun -np {num_gpus * process.num_nodes})"
        )
    return [process.local_rank]


def threads_of(process: ProcessInfo, usable_cores: int, all_cores: int) -> int | None:
    """Threads for a process's operations; None leaves it to TensorFlow, which takes all the cores it may use.

    Several processes of a node would otherwise each start a thread per core. Where the launcher has bound each to cores
    of its own (Slurm, Open MPI; not horovodrun), they are few enough already.

    Args:
        process: who this is.
        usable_cores: that this process may run on.
        all_cores: of the node.
    """
    bound = process.launcher != "horovod" and usable_cores < all_cores
    if process.local_size == 1 or bound:
        return None
    return max(1, usable_cores // process.local_size)


def gpus_in_words(num_gpus: int) -> str:
    """`1 GPU`, `2 GPUs`."""
    return "1 GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
