"""How the tasks of a Slurm step find one another: what they agree on, and real lifelines on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bloodcell_dist.cluster import meeting
from bloodcell_dist.cluster.environment import ProcessInfo, process_info
from bloodcell_dist.cluster.lifeline import connect, listen
from bloodcell_dist.cluster.meeting import Address
from bloodcell_dist.cluster.rendezvous import (
    LOOPBACK,
    NUM_PORTS,
    PORTS,
    Network,
    agreed_address,
    find_network,
    horovod_variables,
    make_tf_config,
    nccl_variables,
)
from bloodcell_dist.cluster.tf_config import read_tf_config
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.errors import TrainingFailed

JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
    "BLOODCELL_TOKEN": "0123456789abcdef" * 2,
}


def task(rank: int, **others: str) -> dict[str, str]:
    """The environment of a task, as srun makes it."""
    node, local = divmod(rank, 2)
    own = {"SLURM_PROCID": rank, "SLURM_NODEID": node, "SLURM_LOCALID": local, "SLURMD_NODENAME": f"gpu0{7 + node}"}
    return {**JOB, **{name: str(value) for name, value in own.items()}, **others}


def agreed(rank: int, **others: str) -> Address:
    environ = task(rank, **others)
    return agreed_address(process_info(environ, "here"), environ)


# ---- what they agree on


def test_all_ranks_of_a_step_work_out_the_same() -> None:
    first, *others = [agreed(rank) for rank in range(4)]
    assert others == [first] * 3
    assert first.hosts == ["gpu07", "10.0.0.7", "127.0.0.1"]


@pytest.mark.parametrize(
    "other",
    [
        {"SLURM_JOB_ID": "4712"},
        {"SLURM_STEP_ID": "1"},
        {"SLURM_RESTART_COUNT": "1"},
        {"BLOODCELL_TOKEN": "fedcba9876543210" * 2},
        {"BLOODCELL_TOKEN": ""},
        {"SLURM_JOB_ID": "471", "SLURM_STEP_ID": "10"},  # the same digits
    ],
)
def test_another_step_another_life_and_another_secret_give_another_address(other: dict[str, str]) -> None:
    one, another = agreed(0), agreed(0, **other)
    assert one.token != another.token
    assert not set(one.ports) & set(another.ports)  # by chance, one in some hundred would share one


def test_ports_are_distinct_and_below_those_that_linux_hands_out() -> None:
    counts = set()
    for job in range(300):
        address = agreed(0, SLURM_JOB_ID=str(job))
        assert len(set(address.ports)) == len(address.ports)
        assert set(address.ports) <= set(PORTS)
        counts.add(len(address.ports))
    assert PORTS[0] >= 1024 and PORTS[-1] < 32768
    assert max(counts) == NUM_PORTS and min(counts) >= NUM_PORTS - 1


def test_the_secret_is_not_on_the_network_and_the_token_cannot_be_worked_out_from_the_ports() -> None:
    tokens = {agreed(0, BLOODCELL_TOKEN=secret).token for secret in ("a" * 32, "b" * 32)}
    assert len(tokens) == 2
    assert all(len(token) == 32 and JOB["BLOODCELL_TOKEN"] not in token for token in tokens)


@pytest.mark.parametrize(
    ("hostnames", "environ", "hosts"),
    [
        (("n1", "n2"), {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}, ["n1", "10.0.0.1", LOOPBACK]),
        (("n1", "n2"), {}, ["n1", LOOPBACK]),
        ((), {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}, ["10.0.0.1", LOOPBACK]),
        ((), {}, [LOOPBACK]),
        (("n1",), {"SLURM_LAUNCH_NODE_IPADDR": LOOPBACK}, ["n1", LOOPBACK]),
    ],
)
def test_where_rank_0_is_looked_for(hostnames: tuple[str, ...], environ: dict[str, str], hosts: list[str]) -> None:
    assert agreed_address(ProcessInfo("slurm", 1, 2, 0, 1, 1, 2, "n2", hostnames), environ).hosts == hosts


# ---- what Horovod needs


def places(nodes: Sequence[int]) -> list[ProcessInfo]:
    """The processes of a step with this node of each rank."""
    return [
        ProcessInfo(
            *("slurm", rank, len(nodes), nodes[:rank].count(node), nodes.count(node)),
            *(node, len(set(nodes)), f"n{node}"),
        )
        for rank, node in enumerate(nodes)
    ]


def network_of(nodes: Sequence[int]) -> Network:
    return Network(tuple(f"10.0.0.{1 + node}" for node in range(len(set(nodes)))), tuple(nodes))


@pytest.mark.parametrize(
    ("nodes", "local", "cross"),
    [
        # (rank, size) within the node, and among the nodes that have this local rank
        ([0, 0, 1, 1], [(0, 2), (1, 2), (0, 2), (1, 2)], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([0, 0, 0, 1], [(0, 3), (1, 3), (2, 3), (0, 1)], [(0, 2), (0, 1), (0, 1), (1, 2)]),
        ([0, 1, 1, 1], [(0, 1), (0, 3), (1, 3), (2, 3)], [(0, 2), (1, 2), (0, 1), (0, 1)]),
        ([0, 0, 1, 2, 2], [(0, 2), (1, 2), (0, 1), (0, 2), (1, 2)], [(0, 3), (0, 2), (1, 3), (2, 3), (1, 2)]),
        ([0, 0, 0], [(0, 3), (1, 3), (2, 3)], [(0, 1), (0, 1), (0, 1)]),
        ([0, 1], [(0, 1), (0, 1)], [(0, 2), (1, 2)]),
        ([0, 1, 0, 1], [(0, 2), (0, 2), (1, 2), (1, 2)], [(0, 2), (1, 2), (0, 2), (1, 2)]),  # --distribution=cyclic
    ],
)
def test_horovod_is_told_what_horovodrun_would_tell(
    nodes: list[int], local: list[tuple[int, int]], cross: list[tuple[int, int]]
) -> None:
    found = [horovod_variables(process, network_of(nodes), 1234) for process in places(nodes)]

    def numbers(*names: str) -> list[tuple[int, ...]]:
        return [tuple(int(variables[f"HOROVOD_{name}"]) for name in names) for variables in found]

    assert numbers("RANK", "SIZE") == [(rank, len(nodes)) for rank in range(len(nodes))]
    assert numbers("LOCAL_RANK", "LOCAL_SIZE") == local
    assert numbers("CROSS_RANK", "CROSS_SIZE") == cross
    assert [variables["HOROVOD_HOSTNAME"] for variables in found] == [f"n{node}" for node in nodes]
    for variables in found:
        assert variables["HOROVOD_GLOO_RENDEZVOUS_ADDR"] == "10.0.0.1"
        assert variables["HOROVOD_GLOO_RENDEZVOUS_PORT"] == "1234"
        assert (variables["HOROVOD_CONTROLLER"], variables["HOROVOD_CPU_OPERATIONS"]) == ("gloo", "gloo")
        assert process_info(variables, "x").launcher == "horovod"  # they are those by which a rank knows itself


@pytest.mark.parametrize("nodes", [[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 2, 2], [0, 0, 0], [0, 1]])
def test_horovod_itself_counts_the_same(nodes: list[int]) -> None:
    hosts = pytest.importorskip("horovod.runner.common.util.hosts", reason="Horovod is not installed")
    slots = [hosts.HostInfo(f"n{node}", nodes.count(node)) for node in sorted(set(nodes))]
    for process, slot in zip(places(nodes), hosts.get_host_assignments(slots, len(nodes), len(nodes)), strict=True):
        variables = horovod_variables(process, network_of(nodes), 1)
        for name in ("rank", "size", "local_rank", "local_size", "cross_rank", "cross_size", "hostname"):
            assert variables[f"HOROVOD_{name.upper()}"] == str(getattr(slot, name)), name


def test_the_interface_is_the_one_with_the_node_s_address() -> None:
    own = meeting.interface_addresses()
    address, name = next(iter(own.items()))
    network = Network(("203.0.113.1", address), (0, 1))
    assert network.interface(1) == name
    assert network.interface(0) is None  # an address that is none of this machine's
    assert horovod_variables(places([0, 1])[1], network, 1)["HOROVOD_GLOO_IFACE"] == name


def test_nccl_gets_an_interface_where_there_are_several_nodes() -> None:
    address, name = next(iter(meeting.interface_addresses().items()))
    assert nccl_variables(Network((address, "203.0.113.1"), (0, 1)), 0) == {"NCCL_SOCKET_IFNAME": f"={name}"}
    assert nccl_variables(Network((LOOPBACK,), (0, 0)), 0) == {}


# ---- real lifelines


def in_threads(nodes: Sequence[int], work: Callable[[Workers], Any], address: Address) -> list[Any]:
    """What `work` gives at each rank; the ranks are threads that met at an agreed address."""

    def be(process: ProcessInfo) -> Any:
        if process.is_chief:
            line = listen(len(nodes), "n0", agreed=address).accept(30)
        else:
            line = connect(address.encode(), process.rank, len(nodes), process.hostname, speaks=False, wait_s=30)
        found = work(Workers(process, line))
        line.leave()
        return found

    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(be, places(nodes)))


def free_address(hosts: Sequence[str] = (LOOPBACK,), count: int = 3) -> Address:
    """With ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        ports = [held.getsockname()[1] for held in sockets]
    return Address(list(hosts), ports, os.urandom(16).hex())


@pytest.mark.parametrize("nodes", [[0, 0], [0, 0, 0]])
def test_on_one_node_the_network_is_the_loopback(nodes: list[int]) -> None:
    found = in_threads(nodes, find_network, free_address([*meeting.interface_addresses()][-1:]))
    assert found == [Network((LOOPBACK,), tuple(nodes))] * len(nodes)


@pytest.mark.parametrize("nodes", [[0, 1], [0, 0, 1], [0, 1, 1], [0, 1, 0, 1]])
def test_between_nodes_the_network_is_what_the_connections_go_over(nodes: list[int]) -> None:
    """Nodes by name only: to this machine, by its address on the network, if it has one."""
    host = [*meeting.interface_addresses()][-1]
    found = in_threads(nodes, find_network, free_address([host]))
    assert found == [Network((host, host), tuple(nodes))] * len(nodes)


def test_each_node_gets_the_address_at_which_its_ranks_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank r comes from 127.0.0.1r, a machine's own network with as many addresses as one likes."""
    create = socket.create_connection

    def come_from(place: tuple[str, int], timeout_s: float) -> socket.socket:
        return create(place, timeout_s, (f"127.0.0.1{threading.current_thread().name}", 0))

    monkeypatch.setattr(socket, "create_connection", come_from)

    address = free_address(["127.0.0.9"])
    nodes = [0, 1, 2]
    found: dict[int, Network] = {}

    def be(process: ProcessInfo) -> None:
        if process.is_chief:
            line = listen(3, "n0", agreed=address).accept(30)
        else:
            line = connect(address.encode(), process.rank, 3, "n", speaks=False, wait_s=30)
        found[process.rank] = find_network(Workers(process, line))
        line.leave()

    threads = [threading.Thread(target=be, args=(process,), name=str(process.rank)) for process in places(nodes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert found == dict.fromkeys(nodes, Network(("127.0.0.9", "127.0.0.11", "127.0.0.12"), (0, 1, 2)))


def test_alone_there_is_one_node() -> None:
    assert find_network(Workers()) == Network((LOOPBACK,), (0,))


def test_tf_config_names_every_rank_at_its_node() -> None:
    nodes = [0, 0, 0, 1]
    network = network_of(nodes)
    texts = in_threads(nodes, lambda workers: make_tf_config(workers, network), free_address())
    found = [read_tf_config(text) for text in texts]
    assert [place.rank for place in found] == [0, 1, 2, 3]
    assert found[0].hosts == ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2")
    assert {place.workers for place in found} == {found[0].workers}
    assert len(set(found[0].workers)) == 4
    process = process_info({"TF_CONFIG": texts[3]}, "x")
    assert (process.rank, process.local_size, process.node_rank, process.num_nodes) == (3, 1, 1, 2)


class SamePort(Workers):
    """A worker whose neighbour was handed the same port."""

    def each(self, value: Any) -> list[Any]:
        return [value, value]


def test_two_ranks_with_the_same_port_do_not_begin() -> None:
    with pytest.raises(
        TrainingFailed, match=r"two workers got the same port \(10.0.0.1:\d+, 10.0.0.1:\d+\); run the s"
    ):
        make_tf_config(SamePort(), network_of([0, 0]))
    assert json.loads(make_tf_config(SamePort(), network_of([0, 1])))["task"] == {"type": "worker", "index": 0}


def test_a_lifeline_tells_both_ends_of_its_connections() -> None:
    def ends(workers: Workers) -> dict[int, tuple[str, str]]:
        assert workers.lifeline is not None
        return workers.lifeline.addresses()

    both = (LOOPBACK, LOOPBACK)
    assert in_threads([0, 0, 0], ends, free_address()) == [{1: both, 2: both}, {0: both}, {0: both}]


# ---- real processes, and strangers

RANK = """
import os, sys
from bloodcell_dist.cluster import meeting
from bloodcell_dist.cluster.environment import process_info
from bloodcell_dist.cluster.lifeline import connect, listen
from bloodcell_dist.cluster.rendezvous import agreed_address, find_network
from bloodcell_dist.cluster.workers import Workers

meeting.WELCOME_S = 0.3  # so long a stranger that says nothing holds a rank up
process = process_info(os.environ, "localhost")
address = agreed_address(process, os.environ)
if process.is_chief:
    listener = listen(process.world_size, process.hostname, agreed=address)
    print(meeting.Address.decode(listener.address).ports, flush=True)
    line = listener.accept(30)
else:
    line = connect(address.encode(), process.rank, process.world_size, process.hostname, speaks=False, wait_s=30)
print(find_network(Workers(process, line)).addresses, flush=True)
line.leave()
"""


def start_step(num_tasks: int) -> tuple[list[Task], Address]:
    """The tasks of a step on this one machine, as srun would start them."""
    job = {
        "SLURM_JOB_ID": str(int.from_bytes(os.urandom(4), "big")),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURMD_NODENAME": "localhost",
        "SLURM_STEP_NUM_TASKS": str(num_tasks),
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_TASKS_PER_NODE": str(num_tasks),
        "SLURM_NODEID": "0",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "HOROVOD", "TF_CONFIG"))}
    environs = [
        kept
        | job
        | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "PYTHONPATH": str(Path(__file__).parents[2])}
        for rank in range(num_tasks)
    ]
    address = agreed_address(process_info(environs[0], "x"), environs[0])
    return [Task(environ) for environ in environs], address


class Task(subprocess.Popen[str]):
    """A rank that begins when it is told to: `begin`."""

    def __init__(self, environ: dict[str, str]) -> None:
        text = f"import sys; sys.stdin.readline()\n{RANK}"
        pipe = subprocess.PIPE
        super().__init__([sys.executable, "-c", text], env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@contextlib.contextmanager
def step(num_tasks: int) -> Iterator[tuple[list[Task], Address]]:
    tasks, address = start_step(num_tasks)
    try:
        yield tasks, address
    finally:
        for process in tasks:
            process.kill()
            process.communicate()


def finish(tasks: list[Task]) -> list[str]:
    """Begin all, and what each printed; all have to succeed."""
    for process in reversed(tasks):  # the chief last
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.communicate(timeout=60) for process in tasks]
    assert [(process.returncode, errors) for process, (_, errors) in zip(tasks, found, strict=True)] == [(0, "")] * len(
        tasks
    )
    return [out for out, _ in found]


def test_tasks_of_a_step_meet_by_what_slurm_tells_them() -> None:
    with step(3) as (tasks, address):
        chief, *others = finish(tasks)
    assert chief == f"[{address.ports[0]}]\n('127.0.0.1',)\n"
    assert others == ["('127.0.0.1',)\n"] * 2


def silent(_: socket.socket) -> None:
    pass


def ssh(visitor: socket.socket) -> None:
    visitor.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def rude(visitor: socket.socket) -> None:
    visitor.close()


@contextlib.contextmanager
def stranger(port: int, greet: Callable[[socket.socket], None]) -> Iterator[list[socket.socket]]:
    """Another program's server at this port; whom it has heard of."""
    visitors: list[socket.socket] = []
    server = socket.create_server(("", port))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = server.accept()
                visitors.append(visitor)
                greet(visitor)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield visitors
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()
        for visitor in visitors:
            visitor.close()


@pytest.mark.parametrize("greet", [silent, ssh, rude])
def test_a_stranger_at_an_agreed_port_does_not_disturb(greet: Callable[[socket.socket], None]) -> None:
    with step(2) as (tasks, address), stranger(address.ports[0], greet) as visitors:
        chief, other = finish(tasks)
    assert chief == f"[{address.ports[1]}]\n('127.0.0.1',)\n"
    assert other == "('127.0.0.1',)\n"
    assert visitors  # the rank has been there


def test_another_run_at_an_agreed_port_does_not_disturb() -> None:
    """It even speaks the same language."""
    with step(2) as (tasks, address):
        theirs = Address([LOOPBACK], address.ports[:1], "0" * 32)
        door = listen(2, "elsewhere", agreed=theirs)
        failures: list[str] = []

        def wait() -> None:
            with pytest.raises(TrainingFailed) as caught:
                door.accept(3)
            failures.append(str(caught.value))

        thread = threading.Thread(target=wait)
        thread.start()
        chief, _ = finish(tasks)
        thread.join()
    assert chief.startswith(f"[{address.ports[1]}]\n")
    assert failures and "rank 1 did not connect" in failures[0]


def test_where_no_agreed_port_is_free_the_chief_says_so() -> None:
    address = free_address(count=2)
    with contextlib.ExitStack() as stack:
        for port in address.ports:
            stack.enter_context(socket.create_server(("", port)))
        with pytest.raises(TrainingFailed) as caught:
            listen(2, "n0", agreed=address)
    assert str(caught.value) == (
        f"none of the ports {address.ports[0]}, {address.ports[1]} is free for the other ranks; start it again"
    )


def test_a_rank_that_finds_nobody_names_all_places() -> None:
    address = free_address([LOOPBACK, "127.0.0.2"])
    with pytest.raises(TrainingFailed) as caught:
        connect(address.encode(), 3, 4, "n2", speaks=False, wait_s=0.1)
    one, two, three = address.ports
    assert f"cannot reach rank 0 at 127.0.0.1, 127.0.0.2, port {one} or {two} or {three} (" in str(caught.value)


def test_the_door_that_was_agreed_on_keeps_the_token() -> None:
    address = free_address(["n1"])
    listener = listen(2, "n1", agreed=address)
    assert Address.decode(listener.address) == address._replace(ports=address.ports[:1])
    with pytest.raises(TrainingFailed):
        listener.accept(0.01)
