"""The lifeline among real processes, which are killed and stopped for real."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bloodcell_dist.cluster import wire
from bloodcell_dist.cluster.lifeline import Lifeline, connect, listen
from bloodcell_dist.errors import TrainingFailed

RANK = """
import os, signal, sys, threading, time
from bloodcell_dist.cluster.lifeline import Ending, connect, listen

signal.alarm(60)  # should nothing else end it
rank, world_size, timeout_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
if rank == 0:
    listener = listen(world_size, "n0", timeout_s=timeout_s)
    print(listener.address.decode(), flush=True)
    line = listener.accept(30)
else:
    address = sys.stdin.readline().strip().encode()
    line = connect(address, rank, world_size, f"n{rank}", speaks=rank == 1, timeout_s=timeout_s, wait_s=30)


def say(ending):
    print("SAID", ending.exit_status, ending.message, flush=True)


def hang():
    os.read(os.pipe()[0], 1)  # no signal handler, no exception gets through to Python


def fail(status, message, clear=True):
    line.fail(Ending(status, message, clear))
    print("ITSELF", message, flush=True)
    sys.exit(status)


line.on_end = say
print("joined", flush=True)
"""

GONE = "its process is gone (killed, or out of memory?)"
SILENT = "nothing heard of it for 2 s (stopped, hung, or cut off from the network?)"

End = tuple[int, list[str]]
"""The exit status of a process and the lines it printed."""


class Ranks:
    """Processes that run the same text, each with its rank."""

    def __init__(self, text: str, world_size: int, timeout_s: float) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", RANK + text, str(rank), str(world_size), str(timeout_s)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world_size)
        ]

    def join(self) -> None:
        address = self.line(0)
        for rank in range(1, len(self.processes)):
            self.write(rank, address)
        for rank in range(len(self.processes)):
            assert self.line(rank) == "joined\n"

    def line(self, rank: int) -> str:
        """The next line that it prints."""
        stdout = self.processes[rank].stdout
        assert stdout is not None
        return stdout.readline()

    def write(self, rank: int, text: str) -> None:
        stdin = self.processes[rank].stdin
        assert stdin is not None
        stdin.write(text)
        stdin.flush()

    def send(self, rank: int, number: signal.Signals) -> float:
        """Send a signal, and tell when."""
        self.processes[rank].send_signal(number)
        return time.monotonic()

    def end(self, rank: int) -> End:
        stdout = self.processes[rank].stdout
        assert stdout is not None
        lines = stdout.read().splitlines()
        return self.processes[rank].wait(), lines

    def ends(self) -> list[End]:
        return [self.end(rank) for rank in range(len(self.processes))]

    def lost(self, rank: int, how: str) -> str:
        return f"SAID 3 rank {rank} on n{rank} (process {self.processes[rank].pid}) was lost: {how}"


@contextmanager
def running(text: str, world_size: int = 3, timeout_s: float = 60) -> Iterator[Ranks]:
    """Ranks that are connected."""
    ranks = Ranks(text, world_size, timeout_s)
    try:
        ranks.join()
        yield ranks
    finally:
        for process in ranks.processes:
            process.kill()
            with process:
                pass


# ---- collectives

COLLECTIVES = """
big = [bytes([65 + r]) * 20_000_000 for r in range(world_size)]
assert line.exchange(big[rank]) == big
assert line.exchange(b"") == [b"", b"", b""]
assert line.exchange(b"" if rank == 1 else b"x") == [b"x", b"", b"x"]
assert line.share(big[0] if rank == 0 else None) == big[0]
assert line.share(b"" if rank == 0 else None) == b""
for step in range(200):
    assert line.exchange(b"%d %d" % (rank, step)) == [b"%d %d" % (r, step) for r in range(3)]
line.leave()
print(threading.active_count())
try:
    line.exchange(b"")
except RuntimeError as error:
    print(error)
line.fail(Ending(1, "nobody hears this"))
"""


def test_all_ranks_get_the_same() -> None:
    with running(COLLECTIVES) as ranks:
        ends = ranks.ends()
    assert ends == [(0, ["1", f"rank {rank} has left the lifeline and can no longer exchange"]) for rank in range(3)]


def test_different_collectives_are_told_apart() -> None:
    different = """
try:
    line.leave() if rank == 2 else line.exchange(b"")
except RuntimeError as error:
    print(error, flush=True)
    fail(1, "a mistake")
"""
    with running(different) as ranks:
        ends = ranks.ends()
    assert [status for status, _ in ends] == [1, 1, 1]
    assert ends[0][1].pop() == "ITSELF a mistake"
    for _, (text,) in ends:
        assert "rank 2" in text and "leave 1" in text and "exchange 1" in text and "a mistake in the program" in text


def test_the_answer_to_an_interrupted_collective_does_not_pass_for_that_to_the_next() -> None:
    interrupted = """
if rank == 1:
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    print("ready", flush=True)
    try:
        line.exchange(b"")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
sys.stdin.readline()
line.exchange(b"")
print("done", flush=True)
hang()
"""
    with running(interrupted, 2) as ranks:
        assert ranks.line(1) == "ready\n"
        ranks.send(1, signal.SIGUSR1)
        assert ranks.line(1) == "interrupted\n"
        for rank in range(2):
            ranks.write(rank, "\n")
            assert rank == 1 or ranks.line(rank) == "done\n"
        status, lines = ranks.end(1)
    assert (status, lines[-1]) == (1, "RuntimeError: rank 1 is in exchange 2 and got the answer to exchange 1")


def test_only_rank_0_gives_data_to_share() -> None:
    wrong = """
try:
    line.share(None if rank == 0 else b"x")
except ValueError as error:
    print(error)
line.leave()
"""
    with running(wrong, 2) as ranks:
        assert ranks.ends() == [(0, ["rank 0 gives the data to share, and no other rank does"])] * 2


# ---- lost ranks


def check_loss(ends: list[End], lost: int, said: str) -> None:
    """The chief has said it or, if it is the chief that is lost, the one other that speaks."""
    speaker = 1 if lost == 0 else 0
    for rank, (status, lines) in enumerate(ends):
        assert status == (-signal.SIGKILL if rank == lost else 3)
        assert lines == ([said] if rank == speaker else [])


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_killed_rank_is_named_and_all_others_end(lost: int) -> None:
    with running("hang()") as ranks:
        started = ranks.send(lost, signal.SIGKILL)
        ends = ranks.ends()
        assert time.monotonic() - started < 2
        check_loss(ends, lost, ranks.lost(lost, GONE))


LOCKED = "lock = threading.Lock(); lock.acquire(); lock.acquire()"
EXCHANGING = "sys.stdin.readline() if rank == 1 else None; line.exchange(bytes(30_000_000))"


@pytest.mark.parametrize(("lost", "text"), [(0, LOCKED), (2, LOCKED), (1, EXCHANGING)])
def test_a_stopped_rank_is_named_and_all_others_end_within_the_time(lost: int, text: str) -> None:
    with running(text, timeout_s=2) as ranks:
        started = ranks.send(lost, signal.SIGSTOP)
        ends = {rank: ranks.end(rank) for rank in range(3) if rank != lost}
        assert 1.2 < time.monotonic() - started < 2.2  # seconds; the cores are shared with other tests
        ranks.send(lost, signal.SIGKILL)
        ends[lost] = ranks.end(lost)
        check_loss([ends[rank] for rank in range(3)], lost, ranks.lost(lost, SILENT))


def test_a_rank_that_stops_reading_is_lost_and_blocks_nobody() -> None:
    sharing = """
print(len(line.share(b"1" if rank == 0 else None)), flush=True)
if rank == 2:
    os.kill(os.getpid(), signal.SIGSTOP)
line.share(bytes(50_000_000) if rank == 0 else None)
print("shared", flush=True)
hang()
"""
    ...


def test_a_run_that_was_suspended_as_a_whole_goes_on() -> None:
    with running("sys.stdin.readline(); line.exchange(b''); line.leave(); print('done')", timeout_s=1) as ranks:
        for rank in range(3):
            ranks.send(rank, signal.SIGSTOP)
        time.sleep(1.5)
        for rank in range(3):
            ranks.send(rank, signal.SIGCONT)
            ranks.write(rank, "\n")
        assert ranks.ends() == [(0, ["done"])] * 3


def test_a_longer_time_can_be_set_later() -> None:
    ...
