"""Turns that take turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from bloodcell_dist.cluster.workers import Workers

T = TypeVar("T")

TURN_S = 1.0
"""How long a turn should take: long against the clock and the start of a feed, short against a busy neighbour."""

MOST = 1000


def interleaved(turns: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each turn returns in every round. Compile before: nothing is left out."""
    found: dict[str, list[T]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            found[name].append(turn())
    return found


def calls_per_turn(seconds: float, least: int = 1) -> int:
    """How many calls of so many seconds make a turn; at least `least`."""
    return max(least, min(MOST, math.ceil(TURN_S / max(seconds, 1e-9))))


def agreed_calls(workers: Workers, seconds: float, least: int = 1) -> int:
    """`calls_per_turn` of the slowest worker, on all. A collective."""
    return calls_per_turn(slowest(workers, seconds), least)


def slowest(workers: Workers, seconds: float) -> float:
    """The most of all workers. A collective."""
    return max(workers.each(seconds))


def timed(workers: Workers, work: Callable[[], object]) -> float:
    """Seconds of the slowest worker for work that all begin at once; `work` waits for its device. A collective."""
    workers.barrier()
    begun = time.perf_counter()
    work()
    return slowest(workers, time.perf_counter() - begun)
