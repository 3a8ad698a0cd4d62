"""Horovod: one process per device, started by `horovodrun`, `mpirun` or `srun`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from bloodcell_dist.cluster.environment import ProcessInfo
from bloodcell_dist.cluster.lifeline import Lifeline
from bloodcell_dist.cluster.rendezvous import Network, horovod_variables
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.errors import TrainingFailed, UserError
from bloodcell_dist.training.replication.single import SingleDevice

# Ranks that share few cores import TensorFlow minutes apart, and horovodrun gives them 30 s.
_MEETING_S = 600
# One rank may compile much longer than the others. A lost rank is noticed by the lifeline; this is for one that lives
# but does not come to its collective, a fault of the program.
_STALL = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "300", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "1800"}
# When a rank has ended, Horovod's thread in the others complains of its connections, beside the message that tells why.
_QUIET = {"HOROVOD_LOG_LEVEL": "fatal"}


class Horovod(SingleDevice):
    """A replica per worker; gradients are summed by NCCL, MPI or Gloo, as Horovod was built."""

    name = "horovod"

    def __init__(self, process: ProcessInfo, lifeline: Lifeline | None) -> None:
        super().__init__(process, lifeline)
        self.num_replicas = self.world_size

    def _reduce(self, flat: tf.Tensor) -> tf.Tensor:
        import horovod.tensorflow as hvd

        return hvd.allreduce(flat, op=hvd.Sum, name="gradients")

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Give every replica the chief's values, by Horovod's broadcast tree. A collective."""
        import horovod.tensorflow as hvd

        if self.world_size > 1:
            hvd.broadcast_variables(list(variables), root_rank=0)


def init(process: ProcessInfo) -> None:
    """Meet the other processes. Raises UserError where Horovod is missing or does not fit the launcher."""
    os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"] = str(_MEETING_S)
    for name, value in (_STALL | _QUIET).items():
        os.environ.setdefault(name, value)
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise UserError(
            f"{process.launcher} started {process.world_size} processes, but Horovod for TensorFlow is not installed "
            f"({str(error).splitlines()[0]}); run scripts/install_horovod.sh"
        ) from None
    try:
        hvd.init()
    except Exception as error:  # Horovod raises what its C++ part says, of several types
        raise TrainingFailed(f"Horovod could not start: {error}") from error
    if (hvd.rank(), hvd.size()) != (process.rank, process.world_size):
        raise UserError(
            f"the launcher ({process.launcher}) says rank {process.rank} of {process.world_size}, Horovod "
            f"{hvd.rank()} of {hvd.size()}: this Horovod was built without what the launcher needs (mpirun needs MPI); "
            "start with horovodrun, or build it anew with scripts/install_horovod.sh"
        )


def horovod_parts() -> frozenset[str]:
    """Of tensorflow, gloo, mpi and nccl those that it was built with. Raises ImportError if it cannot be loaded."""
    import horovod.tensorflow as hvd

    built = {"tensorflow": True, "gloo": hvd.gloo_built(), "mpi": hvd.mpi_built(), "nccl": hvd.nccl_built()}
    return frozenset(part for part, is_there in built.items() if is_there)


def meet(workers: Workers, network: Network, environ: Mapping[str, str]) -> None:
    """Meet the other tasks of a Slurm step: by MPI where srun offers it and Horovod has it, else by Gloo. A collective.

    Gloo needs a rendezvous server, which horovodrun would have started: it runs on rank 0 for that moment.
    """
    if workers.any(not _by_mpi(environ)):
        with _rendezvous(workers, network) as port:
            os.environ.update(horovod_variables(workers.process, network, workers.share(port)) | _own(environ))
            init(workers.process)
            workers.barrier()
    else:
        init(workers.process)


def _by_mpi(environ: Mapping[str, str]) -> bool:
    """Whether the step was started with `srun --mpi=pmix`, and this Horovod was built with MPI."""
    if "PMIX_RANK" not in environ or environ.get("HOROVOD_CONTROLLER", "mpi").lower() != "mpi":
        return False
    try:
        return "mpi" in horovod_parts()
    except ImportError:
        return False  # `init` says what is missing


def _own(environ: Mapping[str, str]) -> dict[str, str]:
    """What the user has set about the network stays."""
    return {name: environ[name] for name in ("HOROVOD_GLOO_IFACE",) if name in environ}


@contextlib.contextmanager
def _rendezvous(workers: Workers, network: Network) -> Iterator[int | None]:
    """On rank 0 the port of a rendezvous server while inside."""
    if not workers.is_chief:
        yield None
        return
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()
    port = server.start()
    slots = [HostInfo(f"node{node}", network.nodes.count(node)) for node in sorted(set(network.nodes))]
    server.init(get_host_assignments(slots, workers.world_size, workers.world_size))
    try:
        yield port
    finally:
        server.stop()


def tell_address(address: bytes | None, size: int) -> bytes:
    """The chief's bytes, at most `size`, on every worker."""
    import horovod.tensorflow as hvd

    padded = tf.io.decode_raw((address or b"").ljust(size), tf.uint8)
    return bytes(hvd.broadcast(padded, root_rank=0, name="address").numpy()).rstrip()
