"""What differs between nodes, clocks, the network, and the speed of an all-reduce."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from bloodcell_dist.cluster.rendezvous import Network
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.doctor.between import (
    Allreduce,
    Node,
    judge_allreduce,
    judge_clocks,
    judge_network,
    judge_nodes,
)


def node(name: str, **changes: Any) -> Node:
    known = {
        **{"versions": {"Python": "3.11.7", "keras": "3.15.1"}, "gpus": 4, "driver": "550.54.14", "cores": 64},
        "checksums": {"data": "ab" * 32},
    }
    return Node.model_validate({"name": name} | known | changes)


def test_a_node_whose_address_no_interface_has_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from bloodcell_dist.doctor import measure

    monkeypatch.setattr(measure, "find_network", lambda workers: Network(("203.0.113.1", "203.0.113.2"), (0,)))
    (first,) = measure.name_network(Workers(), "n1")[:1]
    (found,) = judge_network([first, ("n2", "203.0.113.2", "eth0")])
    assert (found.level, found.text) == ("warning", "n1: no interface has the address at which rank 0 is reached")


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node("n1")], []),
        ([node("n1"), node("n2")], [("ok", "n1, n2: same versions, GPUs, driver, cores, cells")]),
        ([node("n1", checksums={}), node("n2")], [("ok", "n1, n2: same versions, GPUs, driver, cores")]),
        (
            [node("n1"), node("n2", versions={"Python": "3.11.7", "keras": "3.14.0"}), node("n3")],
            [("error", "keras: 3.15.1 on n1, 3.14.0 on n2")],
        ),
        (
            [node("n1"), node("n2", versions={"Python": "3.12.1"})],
            [("error", "Python: 3.11.7 on n1, 3.12.1 on n2"), ("error", "keras: 3.15.1 on n1, missing on n2")],
        ),
        (
            [node("n1"), node("n2", gpus=3), node("n3", gpus=3)],
            [("error", "GPUs for each process: 4 on n1, 3 on n2, n3")],
        ),
        ([node("n1"), node("n2", driver="470.57.02")], [("warning", "driver: 550.54.14 on n1, 470.57.02 on n2")]),
        (
            [node("n1"), node("n2", cores=32), node("n3", cores=48)],
            [("warning", "cores: 64 on n1, 32 on n2, 48 on n3")],
        ),
        (
            [node("n1"), node("n2", checksums={"data": "cd" * 32})],
            [("error", "data (SHA-256): abababababab on n1, cdcdcdcdcdcd on n2")],
        ),
        (
            [node("n1"), node("n2", checksums={})],
            [("error", "data (SHA-256): abababababab on n1, none on n2")],
        ),
    ],
)
def test_nodes_that_differ(nodes: list[Node], expected: list[tuple[str, str]]) -> None:
    lines = judge_nodes(nodes)
    assert [(line.level, line.text) for line in lines] == expected
    assert all(line.name == "nodes" for line in lines)


def test_the_fix_names_the_odd_nodes() -> None:
    (line,) = judge_nodes([node("n1"), node("n2", gpus=3), node("n3")])
    assert line.fix.endswith("sbatch --exclude=n2")


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([("n1", 0.0)], []),
        ([("n1", 0.0), ("n1", 0.0)], []),
        ([("n1", 0.0), ("n2", 1.0)], [("ok", "the nodes agree to a second")]),
        ([("n1", 0.0), ("n2", 1.2), ("n3", -20.4)], [("warning", "n2, n3: 20 s behind n1")]),
        ([("n1", 0.0), ("n1", 0.0), ("n2", 31.0), ("n2", 31.0)], [("error", "n2: 31 s ahead of n1")]),
        ([("n1", 0.0), ("n2", -3600.0)], [("error", "n2: 3,600 s behind n1")]),
    ],
)
def test_clocks(offsets: Sequence[tuple[str, float]], expected: list[tuple[str, str]]) -> None:
    assert [(line.level, line.text) for line in judge_clocks(offsets)] == expected


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("n1", "127.0.0.1", "lo")], []),
        (
            [("n1", "10.0.0.1", "eth0"), ("n2", "10.0.0.2", "ib0")],
            [("ok", "n1 by eth0 (10.0.0.1), n2 by ib0 (10.0.0.2)")],
        ),
        (
            [("n1", "10.0.0.1", "eth0"), ("n2", "10.0.0.2", "lo")],
            [("warning", "n2: no interface has the address at which rank 0 is reached")],
        ),
    ],
)
def test_network(nodes: list[tuple[str, str, str]], expected: list[tuple[str, str]]) -> None:
    assert [(line.level, line.text) for line in judge_network(nodes)] == expected


MIB = 2**20


def allreduce(small_s: float, large_s: float, **changes: Any) -> Allreduce:
    known = {"by": "horovod", "replicas": 4, "on_gpu": False, "latency_s": 0.0012, "right": True}
    return Allreduce.model_validate(known | {"seconds": {MIB: (small_s,), 16 * MIB: (9.0, large_s, 0.0)}} | changes)


def test_bus_bandwidth_is_that_of_nccls_tests() -> None:
    """2 (n - 1) / n of a vector: 1.5 of 1,048,576 bytes in a millisecond; the middle one of several tries."""
    assert allreduce(0.001, 1.0).bus_mb_s(MIB) == pytest.approx(1572.864)
    assert allreduce(0.001, 1.0, replicas=2).bus_mb_s(MIB) == pytest.approx(1048.576)
    assert allreduce(0.001, 0.5).bus_mb_s(16 * MIB) == pytest.approx(50.331648)


@pytest.mark.parametrize(
    ("found", "places", "level", "text"),
    [
        (
            *(allreduce(0.001, 0.01), ["n1", "n1", "n2", "n2"], "ok"),
            "1 MiB at 1,573 MB/s, 16 MiB at 2,517 MB/s, latency 1.2 ms (horovod, 4 replicas: 2 on n1, 2 on n2)",
        ),
        (
            *(allreduce(0.1, 1.0, by="multiworker"), ["n1", "n2", "n3", "n4"], "ok"),
            "1 MiB at 16 MB/s, 16 MiB at 25 MB/s, latency 1.2 ms (multiworker, 4 replicas: n1, n2, n3 and 1 more)",
        ),
        (allreduce(0.1, 2.0), ["n1"], "warning", "slow: 1 MiB at 16 MB/s, 16 MiB at 13 MB/s"),
        (allreduce(0.1, 0.1, on_gpu=True), ["n1"], "warning", "slow: 1 MiB at 16 MB/s, 16 MiB at 252 MB/s"),
        (allreduce(0.1, 0.02, on_gpu=True), ["n1"], "ok", "1 MiB at 16 MB/s, 16 MiB at 1,258 MB/s"),
        (allreduce(0.001, 0.01, right=False), ["n1"], "error", "the sum over 4 replicas is wrong (horovod)"),
    ],
)
def test_allreduce(found: Allreduce, places: list[str], level: str, text: str) -> None:
    (line,) = judge_allreduce(found, places)
    assert (line.name, line.level) == ("all-reduce", level)
    assert line.text.startswith(text)


class Others(Workers):
    """Rank 0 of two: the other's clock is `ahead_s` ahead, and each message takes half a second."""

    world_size = 2  # type: ignore[assignment]

    def __init__(self, ahead_s: float) -> None:
        super().__init__()
        self._ahead_s = ahead_s
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def barrier(self) -> None:
        self.seconds += 0.5

    def each(self, value: Any) -> list[Any]:
        other = self.seconds + self._ahead_s
        self.seconds += 0.5
        return [value, other]


@pytest.mark.parametrize(
    ("ahead_s", "offset"), [(0.0, 0.0), (0.5, 0.0), (-0.5, 0.0), (2.0, 1.5), (-2.0, -1.5), (100.0, 99.5)]
)
def test_clocks_are_read_between_two_messages(ahead_s: float, offset: float) -> None:
    """What the messages take is no skew."""
    from bloodcell_dist.doctor.measure import measure_clocks

    others = Others(ahead_s)
    assert measure_clocks(others, others.now) == pytest.approx([0.0, offset])


def test_a_sum_over_logical_devices_is_right_and_timed() -> None:
    """In a process of its own: logical devices cannot be made where TensorFlow has been used."""
    code = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from bloodcell_dist.cluster.environment import ALONE
from bloodcell_dist.doctor import measure
from bloodcell_dist.training.replication import Joined, replicate
from bloodcell_dist.cluster.workers import Workers
measure.SIZES = {False: (2**20,)}
replication = replicate(Joined(Workers(ALONE)), "mirrored", devices=2)
print(measure.measure_allreduce(replication, "mirrored").model_dump_json())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = Allreduce.model_validate(json.loads(done.stdout))
    assert (found.by, found.replicas, found.on_gpu, found.right) == ("mirrored", 2, False, True)
    assert list(found.seconds) == [MIB] and len(found.seconds[MIB]) == 5
    assert 0 < found.latency_s < 1 and found.bus_mb_s(MIB) > 0


def test_a_wrong_sum_is_noticed() -> None:
    from bloodcell_dist.cluster.environment import ALONE
    from bloodcell_dist.doctor import measure
    from bloodcell_dist.training.replication import SingleDevice

    replication = SingleDevice(ALONE, None)
    replication.num_replicas = 2  # of which it sums one
    assert not measure.measure_allreduce(replication, "single").right
