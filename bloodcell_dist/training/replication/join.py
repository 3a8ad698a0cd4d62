"""How a process takes its devices, meets the others, and becomes part of one of the four ways to run."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from bloodcell_dist.cluster.devices import gpus_of, threads_of
from bloodcell_dist.cluster.environment import ProcessInfo
from bloodcell_dist.cluster.fitting import fitting_strategy
from bloodcell_dist.cluster.lifeline import Ending, Lifeline, connect, listen
from bloodcell_dist.cluster.meeting import ADDRESS_LIMIT, Address
from bloodcell_dist.cluster.rendezvous import Network, agreed_address, find_network, make_tf_config, nccl_variables
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.errors import UserError
from bloodcell_dist.installed import has_horovod
from bloodcell_dist.training.replication import hvd, strategies
from bloodcell_dist.training.replication.base import Replication
from bloodcell_dist.training.replication.single import SingleDevice

log = logging.getLogger(__name__)

WAIT_S = 600.0
"""For the others: ranks that share a few cores, or read the package from a slow disk, start minutes apart."""

SAY_AFTER_S = 30.0


@dataclass(frozen=True)
class Joined:
    """A process that has met the others.

    Attributes:
        workers: all of them.
        num_gpus: that this process has for itself.
        strategy: of `tf.distribute`, where TF_CONFIG names several workers: it has to be made before anything else.
        problem: why this process cannot take part; known before the others could have been told.
    """

    workers: Workers
    num_gpus: int = 0
    strategy: Any = None
    problem: UserError | None = None

    def go_by(self, timeout_s: float, record: Callable[[Ending], None]) -> None:
        """Count a rank as lost after so long; `record` is told, after the terminal, what ends the process."""
        lifeline = self.workers.lifeline
        if lifeline is None:
            return
        lifeline.timeout_s, tell = timeout_s, lifeline.on_end

        def tell_and_record(ending: Ending) -> None:
            tell(ending)
            record(ending)

        lifeline.on_end = tell_and_record


def join(process: ProcessInfo, environ: Mapping[str, str], asked: str = "auto") -> Joined:
    """Take this process's devices and meet the others of its launcher. Call it before TensorFlow has been used.

    Args:
        process: who this is.
        environ: of this process.
        asked: the setting distribute.strategy, which decides where the launcher does not (srun).

    Raises:
        UserError: this Horovod does not fit the launcher.
        TrainingFailed: the others did not come.
    """
    gpus, problem = _take_devices(process, environ)
    strategy, lifeline = None, None
    if process.world_size > 1 and process.launcher == "slurm":
        return _join_step(process, environ, asked, gpus, problem)
    if process.world_size > 1 and process.launcher in ("horovod", "openmpi"):
        with _telling("Horovod"):
            hvd.init(process)
            lifeline = _lifeline(process, lambda address: hvd.tell_address(address, ADDRESS_LIMIT))
    elif process.world_size > 1 and process.launcher == "tf_config":
        with _telling("TF_CONFIG, " + ", ".join(process.workers)):
            strategy = strategies.meet()
            lifeline = _lifeline(process, lambda address: strategies.tell_address(strategy, address, ADDRESS_LIMIT))
    return Joined(Workers(process, lifeline), gpus, strategy, problem)


def _join_step(
    process: ProcessInfo, environ: Mapping[str, str], asked: str, num_gpus: int, problem: UserError | None
) -> Joined:
    """Among the tasks of a Slurm step: the lifeline comes first, and brings what Horovod or TensorFlow need."""
    with _telling("srun"):
        address = agreed_address(process, environ)
        lifeline = _lifeline(process, lambda _: address.encode(), agreed=address)
    workers = Workers(process, lifeline)
    if workers.any(problem is not None):
        return Joined(workers, num_gpus, None, problem or UserError("another rank cannot take part; it says why"))
    network = find_network(workers)
    _tell_network(network, process)
    name, _ = fitting_strategy(process, num_gpus, asked, horovod=has_horovod())
    if workers.share(name) == "horovod":
        hvd.meet(workers, network, environ)
        strategy = None
    else:
        os.environ["TF_CONFIG"] = make_tf_config(workers, network)
        strategy = strategies.meet()
    return Joined(workers, num_gpus, strategy)


def _tell_network(network: Network, process: ProcessInfo) -> None:
    """Choose the interface for NCCL, unless the user has, and say it."""
    for key, value in nccl_variables(network, process.node_rank).items():
        os.environ.setdefault(key, value)
    if len(network.addresses) > 1:
        log.info(
            "network: nodes %s, here by %s; NCCL by %s",
            ", ".join(network.addresses),
            network.interface(process.node_rank) or "an unknown interface",
            os.environ.get("NCCL_SOCKET_IFNAME", "its own choice"),
        )


def replicate(
    joined: Joined, name: str, *, devices: int | None = None, gradient_compression: str = "none"
) -> Replication:
    """The way to run of this name for a joined process; `resolve` has seen to it that it fits the launcher."""
    workers = joined.workers
    replication: Replication
    if name == "mirrored":
        replication = strategies.mirrored(workers.process, devices)
    elif name == "multiworker":
        replication = strategies.Mirrored(name, joined.strategy, workers.process, workers.lifeline)
    elif name == "horovod":
        replication = hvd.Horovod(workers.process, workers.lifeline)
    else:
        tf.config.set_visible_devices(tf.config.get_visible_devices("GPU")[:1], "GPU")
        replication = SingleDevice(workers.process, workers.lifeline)
    replication.compression = tf.float16 if gradient_compression == "float16" else None
    return replication


def _take_devices(process: ProcessInfo, environ: Mapping[str, str]) -> tuple[int, UserError | None]:
    """Let TensorFlow see this process's share of the GPUs, with memory as needed, and of the cores."""
    gpus = tf.config.list_physical_devices("GPU")
    problem = None
    try:
        mine = [gpus[number] for number in gpus_of(process, len(gpus), environ)]
    except UserError as error:
        mine, problem = [], error
    if len(mine) != len(gpus):
        tf.config.set_visible_devices(mine, "GPU")
    for gpu in mine:
        tf.config.experimental.set_memory_growth(gpu, True)
    threads = threads_of(process, len(os.sched_getaffinity(0)), os.cpu_count() or 1)
    if threads is not None and "TF_NUM_INTRAOP_THREADS" not in environ:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    return len(mine), problem


def _lifeline(
    process: ProcessInfo, tell_address: Callable[[bytes | None], bytes], agreed: Address | None = None
) -> Lifeline:
    """The lifeline between workers that can tell each other a few bytes already, or have agreed on an address."""
    if process.is_chief:
        listener = listen(process.world_size, process.hostname, agreed=agreed)
        tell_address(listener.address)
        return listener.accept(WAIT_S)
    speaks = process.rank == 1 or process.local_rank == 0  # one word on each node when the chief is lost
    address = tell_address(None)
    return connect(address, process.rank, process.world_size, process.hostname, speaks=speaks, wait_s=WAIT_S)


@contextlib.contextmanager
def _telling(by: str) -> Iterator[None]:
    """Say that it waits, if the others take long to come."""
    timer = threading.Timer(SAY_AFTER_S, lambda: log.info("waits for the other processes (%s)", by))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
