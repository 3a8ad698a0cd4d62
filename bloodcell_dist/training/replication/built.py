"""What the installed Horovod can do; for `bloodcell-dist doctor`."""

from __future__ import annotations


def horovod_parts() -> frozenset[str]:
    """Of tensorflow, gloo, mpi and nccl those that it was built with. Raises ImportError if it cannot be loaded."""
    import horovod.tensorflow as hvd

    built = {"tensorflow": True, "gloo": hvd.gloo_built(), "mpi": hvd.mpi_built(), "nccl": hvd.nccl_built()}
    return frozenset(part for part, is_there in built.items() if is_there)
