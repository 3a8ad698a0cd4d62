"""What only several nodes have: differences, clocks that disagree, a network, and how fast it sums gradients."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import Field

from bloodcell_dist.doctor.facts import Facts
from bloodcell_dist.doctor.findings import Finding, error, listed, ok, warning
from bloodcell_dist.doctor.places import GRAVE_SKEW_S, SKEW_S

SLOW_GPU_MB_S = 1000
"""Below it a network is slower than 10-gigabit Ethernet, and ConvNeXtBase's gradients (350 MB) take a second or so."""

SLOW_CPU_MB_S = 20


class Node(Facts):
    """What has to be the same on all nodes of a run.

    Attributes:
        name: of the node.
        versions: of Python and the packages, by name; `missing` where one is.
        gpus: that each process sees.
        driver: of the GPUs.
        cores: of the machine.
        checksums: SHA-256 by name of the set.
    """

    name: str
    versions: dict[str, str] = Field(default_factory=dict)
    gpus: int = 0
    driver: str = "none"
    cores: int = 0
    checksums: dict[str, str] = Field(default_factory=dict)


class Allreduce(Facts):
    """How gradients are summed.

    Attributes:
        by: name of the strategy, as in distribute.strategy.
        replicas: that take part.
        on_gpu: whether the vectors lie on GPUs.
        latency_s: of one number.
        seconds: of each try, by bytes of the vector.
        right: whether the sums were what they should be.
    """

    by: str
    replicas: int
    on_gpu: bool
    latency_s: float
    seconds: dict[int, tuple[float, ...]]
    right: bool

    def bus_mb_s(self, size: int) -> float:
        """What goes over each link, 10^6 bytes per second, whatever the number of replicas: 2 (n - 1) / n of a vector.

        As in NCCL's tests (nccl-tests, PERFORMANCE.md).
        """
        return 2 * (self.replicas - 1) / self.replicas * size / statistics.median(self.seconds[size]) / 1e6


def judge_nodes(nodes: Sequence[Node]) -> list[Finding]:
    """Differences from the first node, that of rank 0; nothing about one node."""
    if len(nodes) < 2:
        return []
    first, lines = nodes[0], []
    packages = dict.fromkeys(name for node in nodes for name in node.versions)
    for name in packages:
        lines += _differing(nodes, name, [node.versions.get(name, "missing") for node in nodes], grave=True)
    lines += _differing(nodes, "GPUs for each process", [str(node.gpus) for node in nodes], grave=True)
    lines += _differing(nodes, "driver", [node.driver for node in nodes])
    lines += _differing(nodes, "cores", [str(node.cores) for node in nodes])
    for name in first.checksums:
        lines += _differing(nodes, f"{name} (SHA-256)", [node.checksums.get(name, "none")[:12] for node in nodes], True)
    alike = f"{listed([node.name for node in nodes])}: same versions, GPUs, driver, cores"
    return lines or [ok("nodes", alike + (", cells" if first.checksums else ""))]


def _differing(nodes: Sequence[Node], what: str, values: Sequence[str], grave: bool = False) -> list[Finding]:
    odd = {value: [node.name for node, has in zip(nodes, values, strict=True) if has == value] for value in values[1:]}
    odd.pop(values[0], None)
    if not odd:
        return []
    others = ", ".join(f"{value} on {listed(names)}" for value, names in odd.items())
    text = f"{what}: {values[0]} on {nodes[0].name}, {others}"
    places = listed([name for names in odd.values() for name in names])
    if grave:
        return [error("nodes", text, f"the same environment, GPUs and files on all; or sbatch --exclude={places}")]
    return [warning("nodes", text, "nodes of one kind, by sbatch --constraint; the slowest sets the pace")]


def judge_clocks(offsets: Sequence[tuple[str, float]]) -> list[Finding]:
    """How far each node's clock is ahead of the first one's, at least, in seconds."""
    odd = {node: offset for node, offset in offsets if abs(offset) > SKEW_S}
    if not odd:
        return [ok("clocks", "the nodes agree to a second")] if len({node for node, _ in offsets}) > 1 else []
    worst = max(odd.values(), key=abs)
    text = f"{listed(list(odd))}: {abs(worst):,.0f} s {'ahead of' if worst > 0 else 'behind'} {offsets[0][0]}"
    grave = error if abs(worst) > GRAVE_SKEW_S else warning
    return [grave("clocks", text, "tell the administrators: chrony or ntpd does not run there")]


def judge_network(nodes: Sequence[tuple[str, str, str]]) -> list[Finding]:
    """Name, address and interface of each node; nothing about one node."""
    if len(nodes) < 2:
        return []
    lost = [name for name, _, interface in nodes if interface == "lo"]
    if lost:
        text = f"{listed(lost)}: no interface has the address at which rank 0 is reached"
        return [warning("network", text, "export NCCL_SOCKET_IFNAME and HOROVOD_GLOO_IFACE, as `ip addr` names it")]
    return [ok("network", listed([f"{name} by {interface} ({address})" for name, address, interface in nodes]))]


def judge_allreduce(found: Allreduce, places: Sequence[str]) -> list[Finding]:
    """Its speed. `places`: the node of each rank."""
    if not found.right:
        text = f"the sum over {found.replicas} replicas is wrong ({found.by})"
        return [error("all-reduce", text, "scripts/install_horovod.sh --force; NCCL_DEBUG=INFO shows what NCCL does")]
    speeds = {size: found.bus_mb_s(size) for size in sorted(found.seconds)}
    told = ", ".join(f"{size / 2**20:.0f} MiB at {speed:,.0f} MB/s" for size, speed in speeds.items())
    counts = {node: places.count(node) for node in places}
    ranks = listed([f"{count} on {node}" if count > 1 else node for node, count in counts.items()])
    text = f"{told}, latency {found.latency_s * 1e3:.1f} ms ({found.by}, {found.replicas} replicas: {ranks})"
    if max(speeds.values()) < (SLOW_GPU_MB_S if found.on_gpu else SLOW_CPU_MB_S):
        fix = (
            "a faster network (see the line above, NCCL_SOCKET_IFNAME, NCCL_IB_DISABLE), or nodes nearer to each other"
        )
        return [warning("all-reduce", f"slow: {text}", fix)]
    return [ok("all-reduce", text)]
