"""What workers tell one another: three real processes, which run this file, and one alone."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell_dist.cluster.lifeline import connect, listen
from bloodcell_dist.cluster.workers import Workers

SIZE = 3

VALUES: list[Any] = [None, True, 7, 0.1, "größer", [], {"a": [1, None, {"b": "c"}]}, math.nan, -math.inf]

FLAGS: list[tuple[int, ...]] = [(), (0,), (2,), (0, 1, 2)]
"""The ranks that set it."""


def arrays(rank: int) -> list[np.ndarray]:
    """Of several types and shapes, some of which differ from rank to rank."""
    return [
        np.array([rank, 255], np.uint8),
        np.array([[1.5, np.nan, -0.0]], np.float32) * np.float32(rank + 1),
        np.array(rank, np.int64),
        np.array([], np.float16),
        np.zeros((0, 3), np.int32),
        np.array([True, False] * rank, bool),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(20)[::7],
        np.array(["a", "größer"]),
    ]


def rows(rank: int) -> list[np.ndarray]:
    """As many as the rank says, so that the first one has none."""
    return [np.full((rank, 2), rank, np.float32), np.arange(rank)]


def columns(rank: int) -> list[np.ndarray]:
    return [np.full((2, rank + 1), rank, np.int32)]


def found_by(workers: Workers) -> dict[str, Any]:
    """What all collectives give."""
    rank = workers.rank
    found: dict[str, Any] = {
        "place": (rank, workers.world_size, workers.is_chief),
        "share": [workers.share(value if rank == 0 else object()) for value in VALUES],
        "any": [workers.any(rank in ranks) for ranks in FLAGS],
        "each": [workers.each(value) for value in (rank, rank / 3, f"größer {rank}", [rank, None])],
        "exchange": workers.exchange(arrays(rank)),
        "exchange of nothing": workers.exchange([]),
        "gather rows": workers.gather(rows(rank)),
        "gather columns": workers.gather(columns(rank), axis=1),
        "gather nothing": workers.gather([]),
    }
    with pytest.raises(ValueError, match="allow_pickle"):
        workers.exchange([np.array([None])])  # no code comes from another process
    time.sleep(0.3 if rank == 1 else 0)
    found["came"] = time.monotonic()
    workers.barrier()
    return found | {"went on": time.monotonic()}


def be_rank(rank: int, folder: Path, address: str) -> None:
    if rank == 0:
        listener = listen(SIZE, "localhost")
        print(listener.address.decode(), flush=True)
        line = listener.accept(30)
    else:
        line = connect(address.encode(), rank, SIZE, "localhost", speaks=False, wait_s=30)
    (folder / str(rank)).write_bytes(pickle.dumps(found_by(Workers(lifeline=line))))
    line.leave()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, __file__, str(folder)]
    ranks = [subprocess.Popen([*command, "0", ""], stdout=subprocess.PIPE, text=True)]
    try:
        assert ranks[0].stdout is not None
        address = ranks[0].stdout.readline().strip()
        ranks += [subprocess.Popen([*command, str(rank), address], text=True) for rank in range(1, SIZE)]
        assert [process.wait(60) for process in ranks] == [0] * SIZE
    finally:
        for process in ranks:
            process.kill()
            with process:
                pass
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(SIZE)]


def check_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """To the bit, and of the same types and shapes."""
    assert [(a.dtype, a.shape, a.tobytes()) for a in found] == [(a.dtype, a.shape, a.tobytes()) for a in expected]


# ---- three


def test_each_knows_its_place(three: list[dict[str, Any]]) -> None:
    assert [found["place"] for found in three] == [(0, 3, True), (1, 3, False), (2, 3, False)]


def test_all_get_the_chiefs_values(three: list[dict[str, Any]]) -> None:
    for found in three:
        assert list(map(repr, found["share"])) == list(map(repr, VALUES))  # NaN is not equal to itself


def test_a_flag_of_one_is_told_to_all(three: list[dict[str, Any]]) -> None:
    assert [found["any"] for found in three] == [[False, True, True, True]] * SIZE


def test_all_get_the_values_of_all(three: list[dict[str, Any]]) -> None:
    ranks = range(SIZE)
    values = [[*ranks], [rank / 3 for rank in ranks], [f"größer {rank}" for rank in ranks], [[r, None] for r in ranks]]
    assert [found["each"] for found in three] == [values] * SIZE


def test_all_get_the_arrays_of_all(three: list[dict[str, Any]]) -> None:
    for found in three:
        assert len(found["exchange"]) == SIZE
        for rank in range(SIZE):
            check_same(found["exchange"][rank], arrays(rank))
        assert found["exchange of nothing"] == [[]] * SIZE
        assert found["gather nothing"] == []


def test_arrays_are_joined_in_order_of_rank(three: list[dict[str, Any]]) -> None:
    for found in three:
        check_same(found["gather rows"], [np.array([[1, 1], [2, 2], [2, 2]], np.float32), np.array([0, 0, 1])])
        check_same(found["gather columns"], [np.array([[0, 1, 1, 2, 2, 2]] * 2, np.int32)])


def test_nobody_passes_a_barrier_before_the_last_has_come(three: list[dict[str, Any]]) -> None:
    last = max(found["came"] for found in three)
    assert all(last <= found["went on"] for found in three)


# ---- alone


def test_alone_everything_is_as_it_was_given() -> None:
    workers = Workers()
    assert (workers.rank, workers.world_size, workers.is_chief, workers.lifeline) == (0, 1, True, None)
    given = object()
    assert workers.share(given) is given
    assert workers.each("x") == ["x"]
    assert [workers.any(flag) for flag in (False, True)] == [False, True]
    (found,) = workers.exchange(arrays(2))
    check_same(found, arrays(2))
    check_same(workers.gather(rows(2)), rows(2))
    check_same(workers.gather(columns(2), axis=1), columns(2))
    assert (workers.exchange([]), workers.gather([])) == ([[]], [])
    workers.barrier()


if __name__ == "__main__":
    be_rank(int(sys.argv[2]), Path(sys.argv[1]), sys.argv[3])
