"""Who am I among the processes of this run: what the launcher wrote into the environment.

A pure function of the environment. Where launchers are nested the innermost decides: `horovodrun` and `mpirun` work
inside a Slurm job, and the Slurm variables seen there belong to the daemons that started the ranks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bloodcell_dist.cluster.hostlist import expand_hostlist
from bloodcell_dist.cluster.tf_config import read_tf_config
from bloodcell_dist.errors import UserError

Launcher = Literal["none", "horovod", "openmpi", "slurm", "tf_config"]

STARTED: dict[Launcher, str] = {
    "none": "started without a launcher",
    "horovod": "started by horovodrun",
    "openmpi": "started by mpirun",
    "slurm": "started by srun",
    "tf_config": "placed by TF_CONFIG",
}
"""What each launcher has done, in words that follow a process or its number."""
_FIXES: dict[Launcher, str] = {
    "horovod": "start the run with horovodrun, or unset the variables HOROVOD_RANK to HOROVOD_CROSS_SIZE",
    "openmpi": "start the run with mpirun, or unset the variables that begin with OMPI_COMM_WORLD_",
    "slurm": "start the run with srun, or unset SLURM_STEP_ID to run one process alone",
}
_HOROVOD = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
_OPENMPI = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")

# From here on steps are Slurm's own: the batch script, the shell of salloc. One process, whatever the job's size.
_FIRST_SPECIAL_STEP = 0xFFFF_FFF0


@dataclass(frozen=True)
class ProcessInfo:
    """The place of a process among the workers of its run; all ranks count from 0.

    Attributes:
        launcher: what told it.
        rank: among all workers, 0 to world_size - 1; 0 is the chief.
        world_size: workers.
        local_rank: among the workers of this node, 0 to local_size - 1.
        local_size: workers on this node.
        node_rank: of this node, 0 to num_nodes - 1; see `process_info` for what each launcher knows of it.
        num_nodes: nodes with workers.
        hostname: this node's name as the launcher calls it, else as given.
        hostnames: of the nodes in order, where the launcher tells them (Slurm, TF_CONFIG).
        workers: `host:port` by rank, with TF_CONFIG only.
    """

    launcher: Launcher
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    node_rank: int
    num_nodes: int
    hostname: str
    hostnames: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the files and reports."""
        return self.rank == 0

    def __str__(self) -> str:
        return (
            f"rank {self.rank} of {self.world_size} on {self.hostname} (local rank {self.local_rank} of "
            f"{self.local_size}, node {self.node_rank} of {self.num_nodes}), {STARTED[self.launcher]}"
        )


def process_info(environ: Mapping[str, str], hostname: str) -> ProcessInfo:
    """Who this process is, by the first that speaks: Horovod, TF_CONFIG, Open MPI, a Slurm step, none.

    A batch script, or a shell of salloc, is one process without a launcher. `horovodrun` tells the node's number among
    the hosts that have this local rank, which is the node's number where all hosts have equally many workers. Open MPI
    does not tell it: ranks are taken to be placed in equal blocks, node by node, as `mpirun` does by default. Only
    Slurm and TF_CONFIG are exact with unequal nodes.

    Args:
        environ: of this process.
        hostname: of this machine, for where the launcher does not tell it.

    Raises:
        UserError: a variable is missing beside its siblings, is no number, or contradicts another.
    """
    if any(f"HOROVOD_{name}" in environ for name in _HOROVOD):
        return _horovod(_Variables(environ, _FIXES["horovod"]), hostname)
    if environ.get("TF_CONFIG", "").strip():
        return _tf_config(environ["TF_CONFIG"], hostname)
    if any(f"OMPI_COMM_WORLD_{name}" in environ for name in _OPENMPI):
        return _openmpi(_Variables(environ, _FIXES["openmpi"]), hostname)
    slurm = _Variables(environ, _FIXES["slurm"])
    if "SLURM_STEP_ID" in environ and slurm.number("SLURM_STEP_ID") < _FIRST_SPECIAL_STEP:
        return _slurm(slurm, hostname)
    return _alone("none", hostname)


@dataclass(frozen=True)
class _Variables:
    """A launcher's variables, checked; `fix` ends the messages."""

    environ: Mapping[str, str]
    fix: str

    def first(self, *names: str) -> str:
        """The first of these names that is set, as launchers' versions differ."""
        for name in names:
            if name in self.environ:
                return name
        raise UserError(f"{names[0]} is not set, though others of its launcher are; {self.fix}")

    def number(self, name: str) -> int:
        text = self.environ[self.first(name)]
        if not re.fullmatch("[0-9]+", text):
            raise UserError(f"{name}={text!r} is not a whole number from 0 on; {self.fix}")
        return int(text)

    def place(self, rank: str, *sizes: str) -> tuple[int, int]:
        """A rank and the first of these sizes that is set."""
        size = self.first(*sizes)
        return self.below(rank, self.number(size), f"{size}={self.environ[size]}"), self.number(size)

    def below(self, name: str, limit: int, described: str) -> int:
        """The number called `name`, which has to be smaller than the limit."""
        value = self.number(name)
        if value >= limit:
            raise UserError(f"{name}={value} is not below {described}; {self.fix}")
        return value


def _alone(launcher: Launcher, hostname: str) -> ProcessInfo:
    return ProcessInfo(launcher, 0, 1, 0, 1, 0, 1, hostname)


def _horovod(variables: _Variables, hostname: str) -> ProcessInfo:
    return ProcessInfo(
        "horovod",
        *variables.place("HOROVOD_RANK", "HOROVOD_SIZE"),
        *variables.place("HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
        *variables.place("HOROVOD_CROSS_RANK", "HOROVOD_CROSS_SIZE"),
        hostname=variables.environ.get("HOROVOD_HOSTNAME", hostname),
    )


def _openmpi(variables: _Variables, hostname: str) -> ProcessInfo:
    """OMPI_COMM_WORLD_NODE_RANK is of no use: it is a rank on the node, not the node's number."""
    rank, world_size = variables.place("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    local_rank, local_size = variables.place("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
    node = rank // local_size, -(-world_size // local_size)  # rounded up: a guess where nodes are unequal
    hostname = variables.environ.get("PMIX_HOSTNAME", hostname)
    return ProcessInfo("openmpi", rank, world_size, local_rank, local_size, *node, hostname)


def _slurm(variables: _Variables, hostname: str) -> ProcessInfo:
    place = variables.place("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    node_rank, num_nodes = variables.place("SLURM_NODEID", "SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    local_size = _tasks_per_node(variables, num_nodes)[node_rank]
    local_rank = variables.below("SLURM_LOCALID", local_size, f"{local_size}, the number of tasks on its node")
    hostname, nodes = variables.environ.get("SLURMD_NODENAME", hostname), _slurm_nodes(variables.environ, num_nodes)
    return ProcessInfo("slurm", *place, local_rank, local_size, node_rank, num_nodes, hostname, nodes)


def _tasks_per_node(variables: _Variables, num_nodes: int) -> list[int]:
    """`2(x2),1` is 2, 2, 1."""
    name = variables.first("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    text = variables.environ[name]
    matches = [re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part) for part in text.split(",")]
    tasks = [int(match[1]) for match in matches if match for _ in range(int(match[2] or 1))]
    if not all(matches) or len(tasks) != num_nodes:
        raise UserError(
            f"{name}={text!r} does not tell the tasks of {num_nodes} nodes, as 2(x2),1 does; {variables.fix}"
        )
    return tasks


def _slurm_nodes(environ: Mapping[str, str], num_nodes: int) -> tuple[str, ...]:
    """The step's nodes; none where only those of a larger job are told."""
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if name in environ:
            nodes = expand_hostlist(environ[name], name)
            return nodes if len(nodes) == num_nodes else ()
    return ()


def _tf_config(text: str, hostname: str) -> ProcessInfo:
    """The place that TF_CONFIG gives; without a cluster, one process."""
    rank, workers, hosts = read_tf_config(text)
    if not workers:
        return _alone("tf_config", hostname)
    nodes, here = tuple(dict.fromkeys(hosts)), hosts[rank]
    local = hosts[:rank].count(here), hosts.count(here)
    return ProcessInfo("tf_config", rank, len(hosts), *local, nodes.index(here), len(nodes), here, nodes, workers)


ALONE = _alone("none", "localhost")
"""A process that knows of no others."""
