"""The ways to run without a launcher: one device, several of one process; and what several workers share out.

Two logical CPU devices have to be made before TensorFlow is used, so a fresh process runs this file for them. Workers
are threads here: how processes talk is tested elsewhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.cluster.environment import ALONE
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.errors import UserError
from bloodcell_dist.training.replication import Joined, Replication, SingleDevice, replicate
from bloodcell_dist.training.replication.hvd import Horovod

BATCHES = np.arange(9 * 8, dtype=np.int32).reshape(9, 8)
LENGTHS = [2, 2, 1, 3, 1]

UNEVEN = np.array([1 / 3, -1e-9, 2049.0], np.float32)


def fed(replication: Replication, batches: np.ndarray = BATCHES) -> list[Any]:
    return [indices.numpy().tolist() for (indices,) in replication.feed(batches, LENGTHS)]


def shares(first: int, end: int) -> list[Any]:
    """What a worker that has these columns is fed."""
    ends = np.cumsum(LENGTHS)
    return [BATCHES[stop - length : stop, first:end].tolist() for length, stop in zip(LENGTHS, ends, strict=True)]


def mapped(replication: Replication, count: int) -> list[Any]:
    """The sums of so many batches, which tell them apart."""
    batches = [np.full(3, number, np.float32) for number in range(count)]
    return [float(result) for result in replication.map(lambda batch: tf.reduce_sum(batch), batches)]


# ---- one device


@pytest.fixture
def single() -> Replication:
    return replicate(Joined(Workers()), "single")


def test_one_device_is_one_replica(single: Replication) -> None:
    assert isinstance(single, SingleDevice)
    assert (single.name, single.num_replicas, single.local_replicas, single.compression) == ("single", 1, 1, None)
    assert (single.rank, single.world_size, single.is_chief, single.replica_id()) == (0, 1, True, 0)


def test_one_device_is_fed_the_global_batches(single: Replication) -> None:
    assert fed(single) == shares(0, 8)
    (first,) = next(single.feed(BATCHES, LENGTHS))
    assert first.dtype == tf.int32 and "CPU" in first.device
    assert list(single.feed(BATCHES[:0], [])) == []


def test_one_device_works_on_all_of_it(single: Replication) -> None:
    assert single.my_part(tf.range(6)).numpy().tolist() == [0, 1, 2, 3, 4, 5]


def test_on_one_device_sums_are_what_is_summed(single: Replication) -> None:
    single.compression = tf.float16  # nothing travels
    tensors = [tf.constant(UNEVEN), tf.zeros([2, 0]), tf.constant(1e9)]
    sums, seconds = single.allreduce(tensors)
    assert all(found is given for found, given in zip(sums, tensors, strict=True))
    assert float(seconds) == 0.0


def test_one_device_maps_in_order(single: Replication) -> None:
    for count in range(8):
        assert mapped(single, count) == [3.0 * number for number in range(count)]


def test_one_device_holds_one_copy(single: Replication) -> None:
    placed = single.place(np.arange(3))
    assert isinstance(placed, tf.Tensor)
    (value,) = single.local(single.run(lambda array, factor: array * factor, placed, 2))
    assert value.tolist() == [0, 2, 4]


def test_alone_there_is_nobody_to_broadcast_to(single: Replication) -> None:
    variable = tf.Variable([np.nan, 2.0])
    single.broadcast([variable])
    np.testing.assert_array_equal(variable.numpy(), [np.nan, 2.0])


def test_gradients_travel_as_they_are_told_to() -> None:
    assert replicate(Joined(Workers()), "single", gradient_compression="float16").compression == tf.float16


# ---- several workers


class Thread:
    """The lifeline of a worker that is a thread."""

    def __init__(self, rank: int, parts: list[bytes], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.world_size = barrier.parties
        self._parts = parts
        self._barrier = barrier

    def exchange(self, data: bytes) -> list[bytes]:
        self._parts[self.rank] = data
        self._barrier.wait(30)
        parts = list(self._parts)
        self._barrier.wait(30)
        return parts

    def share(self, data: bytes | None) -> bytes:
        assert (data is None) == (self.rank != 0)
        return self.exchange(data or b"")[0]


def on_all(world_size: int, work: Callable[[Any], Any]) -> list[Any]:
    """What work(lifeline) returns on each of so many workers."""
    parts, barrier = [b""] * world_size, threading.Barrier(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(work, [Thread(rank, parts, barrier) for rank in range(world_size)]))


def test_each_worker_is_fed_its_share() -> None:
    assert on_all(2, lambda line: fed(Horovod(ALONE, line))) == [shares(0, 4), shares(4, 8)]


def test_batches_that_cannot_be_shared_out_are_the_persons_mistake() -> None:
    line: Any = Thread(0, [], threading.Barrier(3))
    with pytest.raises(UserError, match="train.global_batch_size=8 is not divisible by 3 replicas; use 6 or 9"):
        fed(Horovod(ALONE, line))


def test_a_worker_with_one_replica_works_on_all_of_its_share() -> None:
    parts = on_all(3, lambda line: Horovod(ALONE, line).my_part(tf.range(4) + 4 * line.rank).numpy().tolist())
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("count", range(8))
def test_every_worker_gets_the_results_of_all_batches_in_order(count: int) -> None:
    assert on_all(3, lambda line: mapped(Horovod(ALONE, line), count)) == [[3.0 * n for n in range(count)]] * 3


def test_each_batch_is_worked_on_once() -> None:
    worked_on: list[list[int]] = [[], [], []]

    def work(line: Any) -> None:
        def note(batch: tf.Tensor) -> tf.Tensor:
            worked_on[line.rank].append(int(batch))
            return batch

        Horovod(ALONE, line).map(note, [np.array(number) for number in range(7)])

    on_all(3, work)
    assert worked_on == [[0, 3, 6], [1, 4], [2, 5]]


def test_all_get_the_chiefs_variables_to_the_bit() -> None:
    values: Sequence[Any] = ([[1.5, np.nan], [-0.0, 1e-40]], 7, [True, False], [])
    dtypes = (tf.float32, tf.int64, tf.bool, tf.float16)

    def work(line: Any) -> list[bytes]:
        variables = [tf.Variable(value, dtype=dtype) for value, dtype in zip(values, dtypes, strict=True)]
        if line.rank != 0:
            for variable in variables:
                variable.assign(tf.zeros_like(variable))
        SingleDevice(ALONE, line).broadcast(variables)
        return [variable.numpy().tobytes() for variable in variables]

    chief, *others = on_all(3, work)
    assert others == [chief, chief]
    assert chief[0] == np.array(values[0], np.float32).tobytes()


# ---- two devices of one process


def find_on_two_devices() -> dict[str, Any]:
    """What a process with two logical devices finds."""
    two = replicate(Joined(Workers()), "mirrored", devices=2)
    found: dict[str, Any] = {
        "size": (two.name, two.num_replicas, two.local_replicas, two.rank, two.world_size),
        "ids": [int(value) for value in two.local(two.run(two.replica_id))],
        "feed": fed(two),
        "parts": [part.tolist() for part in two.local(two.run(lambda: two.my_part(tf.range(8))))],
        "map": [mapped(two, count) for count in range(8)],
    }

    placed = two.place(np.arange(3))
    found["placed"] = [value.tolist() for value in two.local(placed)]
    found["devices"] = [value.device for value in placed.values]
    found["doubled"] = [value.tolist() for value in two.local(two.run(lambda array: array * 2, placed))]

    def tensors() -> list[tf.Tensor]:
        """Their sums over replicas that have one and two times as much."""
        replica = tf.cast(two.replica_id(), tf.float32)
        grid = tf.reshape(tf.range(4.0), [2, 2]) * (replica + 1.0)
        sums, seconds = two.allreduce([tf.constant(UNEVEN) * (replica + 1.0), grid, replica, tf.zeros([0, 3])])
        return [*sums, seconds]

    for name in ("none", "float16"):
        two.compression = tf.float16 if name == "float16" else None
        *sums, seconds = map(two.local, tf.function(lambda: two.run(tensors), autograph=False)())
        found[f"seconds, {name}"] = [float(value) for value in seconds]
        found[f"sums, {name}"] = [[value.tolist() for value in values] for values in sums]
        found[f"dtypes, {name}"] = [value.dtype.name for values in sums for value in values]

    with two.scope():
        variable = tf.Variable([1.0, 2.0])
    two.broadcast([variable])
    found["variable"] = [(copy.device, copy.numpy().tolist()) for copy in variable.values]
    return found


@pytest.fixture(scope="module")
def two() -> dict[str, Any]:
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


slow = pytest.mark.slow
CPUS = [f"/job:localhost/replica:0/task:0/device:CPU:{number}" for number in range(2)]


@slow
def test_two_devices_are_two_replicas_of_one_worker(two: dict[str, Any]) -> None:
    assert two["size"] == ["mirrored", 2, 2, 0, 1]
    assert two["ids"] == [0, 1]


@slow
def test_the_worker_is_fed_the_global_batches_and_each_replica_works_on_its_part(two: dict[str, Any]) -> None:
    assert two["feed"] == shares(0, 8)
    assert two["parts"] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@slow
def test_two_devices_map_in_order(two: dict[str, Any]) -> None:
    assert two["map"] == [[3.0 * number for number in range(count)] for count in range(8)]


@slow
def test_each_device_has_a_copy(two: dict[str, Any]) -> None:
    assert two["placed"] == [[0, 1, 2]] * 2
    assert two["devices"] == CPUS
    assert two["doubled"] == [[0, 2, 4]] * 2


@slow
def test_both_replicas_get_the_sums(two: dict[str, Any]) -> None:
    sums = [(UNEVEN + UNEVEN * np.float32(2)).tolist(), [[0.0, 3.0], [6.0, 9.0]], 1.0, []]
    assert two["sums, none"] == [[value] * 2 for value in sums]
    assert set(two["dtypes, none"]) == {"float32"}


@slow
def test_compressed_sums_are_those_of_rounded_numbers(two: dict[str, Any]) -> None:
    rounded = (UNEVEN.astype(np.float16) + (UNEVEN * np.float32(2)).astype(np.float16)).astype(np.float32)
    assert rounded[1] == 0 and rounded[2] == 6144  # too small, and not a number of float16
    sums = [rounded.tolist(), [[0.0, 3.0], [6.0, 9.0]], 1.0, []]
    assert two["sums, float16"] == [[value] * 2 for value in sums]
    assert set(two["dtypes, float16"]) == {"float32"}


@slow
def test_a_broadcast_of_one_process_changes_nothing(two: dict[str, Any]) -> None:
    assert two["variable"] == [[device, [1.0, 2.0]] for device in CPUS]


if __name__ == "__main__":
    print(json.dumps(find_on_two_devices()))
