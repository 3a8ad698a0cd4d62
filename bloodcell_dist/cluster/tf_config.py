"""TF_CONFIG: the addresses of all workers, and which of them a process is."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from bloodcell_dist.errors import UserError

_FIX = (
    'expected {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, with '
    'one "chief" beside the workers or without; correct TF_CONFIG, or unset it to run one process alone'
)


class Place(NamedTuple):
    """A process among the workers that TF_CONFIG names; without a cluster there are none, and the rank is 0."""

    rank: int
    workers: tuple[str, ...]
    """`host:port` by rank; the chief, if there is one, comes first."""
    hosts: tuple[str, ...]
    """Without the ports."""


def read_tf_config(text: str) -> Place:
    """The place that TF_CONFIG gives. Raises UserError, also for parameter servers and evaluators."""
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise _refused(f"{text!r} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise _refused(f"{text!r} is no JSON object")
    chiefs, workers = _cluster(config.get("cluster") or {})
    rank = _task(config.get("task"), len(chiefs), len(workers))
    addresses = (*chiefs, *workers)
    return Place(rank, addresses, tuple(_host(address) for address in addresses))


def _cluster(cluster: Any) -> tuple[list[str], list[str]]:
    """The addresses of the chief and of the other workers."""
    if not isinstance(cluster, dict):
        raise _refused(f"cluster={cluster!r} is no JSON object")
    for kind, addresses in cluster.items():
        _check_kind(kind)
        if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
            raise _refused(f"cluster.{kind}={addresses!r} is no list of addresses")
    chiefs, workers = cluster.get("chief", []), cluster.get("worker", [])
    if len(chiefs) > 1:
        raise _refused(f"cluster.chief={chiefs!r} has more than one address")
    return chiefs, workers


def _task(task: Any, num_chiefs: int, num_workers: int) -> int:
    """The rank of a task: the chief comes before the workers. Without a cluster the task has index 0."""
    if not isinstance(task, dict) or "type" not in task or "index" not in task:
        raise _refused(f"task={task!r} does not have a type and an index")
    kind, index = task["type"], task["index"]
    _check_kind(kind)
    count = (num_chiefs if kind == "chief" else num_workers) if num_chiefs + num_workers else 1
    if type(index) is not int or not 0 <= index < count:
        raise _refused(f"task.index={index!r} is no number from 0 on below {count}, the size of cluster.{kind}")
    return index + (num_chiefs if kind == "worker" else 0)


def _check_kind(kind: Any) -> None:
    if kind not in ("chief", "worker"):
        raise _refused(f"tasks of type {kind!r} are unknown here; there are no parameter servers and no evaluators")


def _host(address: str) -> str:
    """`n1` of `n1:2222`, `::1` of `[::1]:2222`."""
    match = re.fullmatch(r"(?:\[([^][]+)\]|([^][:\s]+)):[0-9]+", address)
    if not match:
        raise _refused(f"address {address!r} is no host:port")
    return match[1] or match[2]


def _refused(problem: str) -> UserError:
    return UserError(f"TF_CONFIG: {problem}; {_FIX}")
