"""How ranks that `srun` started find one another, without MPI, ssh or a shared file.

Slurm tells each task its rank, the step's nodes and nothing else. So all ranks work out the same few ports, rank 0
waits at the first that is free on its node, and the others knock until it shows the step's token. What Horovod and
TensorFlow need besides, addresses of nodes and a port, then goes over that connection.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from bloodcell_dist.cluster.environment import ProcessInfo
from bloodcell_dist.cluster.meeting import Address, interface_addresses
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.errors import TrainingFailed

TOKEN = "BLOODCELL_TOKEN"
"""Variable with a secret of the step, as slurm/lib/job.sh makes one; without it the token is the step's number only."""

PORTS = range(20000, 32000)
"""Where the agreed ports lie: below those that Linux hands out by itself, from 32768 on."""

NUM_PORTS = 8
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Network:
    """Where the nodes of a run are.

    Attributes:
        addresses: IPv4 address of each node, by node_rank; that at which another node reached it.
        nodes: node_rank of every rank.
    """

    addresses: tuple[str, ...]
    nodes: tuple[int, ...]

    def interface(self, node_rank: int) -> str | None:
        """Name of this machine's network interface with a node's address, `eth0`; None if it is not known (NAT)."""
        return "lo" if len(self.addresses) == 1 else interface_addresses().get(self.addresses[node_rank])


def agreed_address(process: ProcessInfo, environ: Mapping[str, str]) -> Address:
    """Where rank 0 of a Slurm step waits; every rank works out the same from the step's number."""
    step = [environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", TOKEN)]
    digest = hashlib.sha256("/".join(step).encode()).hexdigest()
    numbers = [int(digest[place : place + 8], 16) for place in range(0, 8 * NUM_PORTS, 8)]
    ports = list(dict.fromkeys(PORTS[number % len(PORTS)] for number in numbers))
    # The address that srun was started from is that of the first node in a batch job, should its name not resolve.
    hosts = [*process.hostnames[:1], environ.get("SLURM_LAUNCH_NODE_IPADDR", ""), LOOPBACK]
    token = hashlib.sha256(b"token" + digest.encode()).hexdigest()[:32]
    return Address([host for host in dict.fromkeys(hosts) if host], ports, token)


def find_network(workers: Workers) -> Network:
    """The addresses of all nodes, as the connections with rank 0 show them. A collective."""
    nodes = workers.each(workers.process.node_rank)
    found = {}
    if workers.lifeline is not None and workers.is_chief:
        for rank, (here, there) in workers.lifeline.addresses().items():
            if nodes[rank] != nodes[0]:  # within a node, they may be those of the loopback
                found[nodes[0]] = here
                found[nodes[rank]] = there
    addresses = [found.get(node, LOOPBACK) for node in range(max(nodes) + 1)]
    return Network(tuple(workers.share(addresses)), tuple(nodes))


def horovod_variables(process: ProcessInfo, network: Network, port: int) -> dict[str, str]:
    """What horovodrun would have set for this rank; `port`: of the rendezvous server on rank 0's node."""
    interface = network.interface(process.node_rank)
    with_this_local_rank = [
        node for node in sorted(set(network.nodes)) if network.nodes.count(node) > process.local_rank
    ]
    return {
        "HOROVOD_RANK": str(process.rank),
        "HOROVOD_SIZE": str(process.world_size),
        "HOROVOD_LOCAL_RANK": str(process.local_rank),
        "HOROVOD_LOCAL_SIZE": str(process.local_size),
        "HOROVOD_CROSS_RANK": str(with_this_local_rank.index(process.node_rank)),
        "HOROVOD_CROSS_SIZE": str(len(with_this_local_rank)),
        "HOROVOD_HOSTNAME": process.hostname,
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": network.addresses[network.nodes[0]],
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
    } | ({"HOROVOD_GLOO_IFACE": interface} if interface else {})


def make_tf_config(workers: Workers, network: Network) -> str:
    """A TF_CONFIG with every rank at a port that is free on its node. A collective."""
    ports = workers.each(_free_port())
    addresses = [f"{network.addresses[node]}:{port}" for node, port in zip(network.nodes, ports, strict=True)]
    _check_distinct(addresses)
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": workers.rank}})


def nccl_variables(network: Network, node_rank: int) -> dict[str, str]:
    """The interface for NCCL's sockets, with several nodes. Where InfiniBand has verbs, NCCL finds it for the data."""
    interface = network.interface(node_rank)
    return {"NCCL_SOCKET_IFNAME": f"={interface}"} if len(network.addresses) > 1 and interface else {}


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _check_distinct(addresses: Sequence[str]) -> None:
    """Two ranks of a node may have been handed the same port, one after the other; that is rare."""
    if len(set(addresses)) < len(addresses):
        raise TrainingFailed(f"two workers got the same port ({', '.join(addresses)}); run the same command again")
