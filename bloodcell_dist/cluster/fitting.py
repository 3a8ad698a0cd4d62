"""Which of the four ways to run fits what the launcher has started."""

from __future__ import annotations

from bloodcell_dist.cluster.environment import STARTED, ProcessInfo


def fitting_strategy(
    process: ProcessInfo, num_gpus: int, asked: str = "auto", *, horovod: bool = True
) -> tuple[str, str]:
    """The way to run (`single`, `mirrored`, `multiworker`, `horovod`) that a launcher and the GPUs ask for, and why.

    Args:
        process: among those of its launcher.
        num_gpus: that it has for itself.
        asked: the setting distribute.strategy; it decides only where both Horovod and MultiWorkerMirroredStrategy fit,
            as under srun.
        horovod: whether it is installed.
    """
    count = process.world_size
    if count == 1:
        if num_gpus > 1:
            return "mirrored", f"one process with {num_gpus} GPUs"
        return "single", "one process on one device"
    if process.launcher == "tf_config":
        return "multiworker", f"TF_CONFIG names {count} workers"
    started = f"{count} processes, {STARTED[process.launcher]}"
    if process.launcher != "slurm":
        return "horovod", started
    if asked in ("horovod", "multiworker"):
        return asked, started
    if not horovod:
        return "multiworker", f"{started}, and no Horovod is installed"
    if num_gpus > 1:
        return "multiworker", f"{started}, with {num_gpus} GPUs each"
    return "horovod", started


def remedy(asked: str, fitting: str) -> str:
    """How to get the way to run that was asked for, or else what would run."""
    start = {
        "horovod": "start it with `horovodrun -np N python -m bloodcell_dist.train` or with srun",
        "multiworker": "start one process per node with srun, or give each a TF_CONFIG that names all workers",
        "mirrored": "start one process, it uses all GPUs of its node",
        "single": "start one process",
    }
    return f"{start[asked]}, or set distribute.strategy={fitting} or auto"
