"""The lifeline among real processes, which are killed and stopped for real."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bloodcell_dist.cluster import meeting, wire
from bloodcell_dist.cluster.lifeline import connect, listen
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


def wait_for_parts(count):
    while len(line._parts) < count:
        time.sleep(0.001)
    print("others have come", flush=True)
    sys.stdin.readline()


line.on_end = say
print("joined", flush=True)
sys.stdin.readline()
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
        for rank in range(len(self.processes)):
            self.write(rank, "\n")

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


@contextlib.contextmanager
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
    hang()
"""
    with running(different) as ranks:
        for rank in range(3):
            text = ranks.line(rank)
            assert (
                "rank 2" in text and "leave 1" in text and "exchange 1" in text and "a mistake in the program" in text
            )


def test_the_answer_to_an_interrupted_collective_does_not_pass_for_that_to_the_next() -> None:
    interrupted = """
if rank == 0:
    wait_for_parts(1)
else:
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
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
        assert ranks.line(0) == "others have come\n"
        ranks.send(1, signal.SIGUSR1)
        assert ranks.line(1) == "interrupted\n"
        ranks.write(0, "\n")
        assert ranks.line(0) == "done\n"
        ranks.write(1, "\n")
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


@pytest.mark.parametrize("lost", [0, 2])
def test_a_stopped_rank_is_named_and_all_others_end_within_the_time(lost: int) -> None:
    with running(LOCKED, timeout_s=2) as ranks:
        started = ranks.send(lost, signal.SIGSTOP)
        check_stopped(ranks, lost, started)


def test_a_stopped_rank_that_goes_on_when_all_is_over_ends_without_a_word() -> None:
    with running("hang()", 2, timeout_s=1) as ranks:
        ranks.send(1, signal.SIGSTOP)
        assert ranks.end(0)[0] == 3
        ranks.send(1, signal.SIGCONT)
        assert ranks.end(1) == (3, [])


def check_stopped(ranks: Ranks, lost: int, started: float) -> None:
    ends = {rank: ranks.end(rank) for rank in range(3) if rank != lost}
    assert 1 < time.monotonic() - started < 2.5  # seconds; half a second for slow cores
    ranks.send(lost, signal.SIGKILL)
    ends[lost] = ranks.end(lost)
    check_loss([ends[rank] for rank in range(3)], lost, ranks.lost(lost, SILENT))


def test_a_rank_that_stops_reading_blocks_nobody() -> None:
    exchange = """
if rank == 0:
    wait_for_parts(2)
line.exchange(bytes(50_000_000) if rank == 0 else b"")
print("exchanged", flush=True)
hang()
"""
    with running(exchange, timeout_s=2) as ranks:
        assert ranks.line(0) == "others have come\n"
        started = ranks.send(2, signal.SIGSTOP)
        ranks.write(0, "\n")
        for rank in (0, 1):
            assert ranks.line(rank) == "exchanged\n"
        check_stopped(ranks, 2, started)


def test_a_run_that_is_suspended_as_a_whole_goes_on_afterwards() -> None:
    with running("sys.stdin.readline(); line.exchange(b''); line.leave(); print('done')", timeout_s=1) as ranks:
        for rank in range(3):
            ranks.send(rank, signal.SIGSTOP)
        time.sleep(1.2)
        for rank in range(3):
            ranks.send(rank, signal.SIGCONT)
            ranks.write(rank, "\n")
        assert ranks.ends() == [(0, ["done"])] * 3


def test_the_time_can_be_changed_later() -> None:
    change = "line.timeout_s = 60; print('changed', flush=True); sys.stdin.readline(); line.exchange(b''); line.leave()"
    with running(change, timeout_s=1) as ranks:
        for rank in range(3):
            assert ranks.line(rank) == "changed\n"
        ranks.send(1, signal.SIGSTOP)
        time.sleep(1.2)
        ranks.send(1, signal.SIGCONT)
        for rank in range(3):
            ranks.write(rank, "\n")
        assert ranks.ends() == [(0, [])] * 3


HASTE = """
from bloodcell_dist.cluster import lifeline, watch

lifeline.CLEAR_GRACE_S = lifeline.UNCLEAR_GRACE_S = watch.SAY_S = 0.2
"""


@pytest.mark.parametrize("on_end", ["line.on_end = lambda ending: 1 / 0", "line.on_end = lambda ending: hang()"])
def test_what_goes_wrong_in_saying_it_does_not_keep_the_run_from_its_end(on_end: str) -> None:
    with running(f"{HASTE}\n{on_end}\nprint('ready', flush=True); hang()") as ranks:
        for rank in range(3):
            assert ranks.line(rank) == "ready\n"
        ranks.send(2, signal.SIGKILL)
        assert [status for status, _ in ranks.ends()] == [3, 3, -signal.SIGKILL]


# ---- errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{HASTE}\nfail(2, 'wrong') if rank == 1 else hang()", (2, ["SAID 2 rank 1 on n1: wrong"])),
        ("fail(2, 'wrong') if rank == 0 else hang()", (2, ["ITSELF wrong"])),
        ("fail(2, 'wrong')", (2, ["ITSELF wrong"])),
        ("time.sleep(0 if rank else 0.5)\nfail(2, 'wrong')", (2, ["ITSELF wrong"])),
        # one that is not clear is said if no clear one comes
        (f"{HASTE}\nfail(1, 'odd', clear=False) if rank == 1 else hang()", (1, ["SAID 1 rank 1 on n1: odd"])),
        (f"{HASTE}\nfail(1, 'odd', clear=False) if rank == 0 else hang()", (1, ["ITSELF odd"])),
        ("fail(1 + rank, f'from {rank}', clear=rank == 2)", (3, ["SAID 3 rank 2 on n2: from 2"])),
        ("fail(1 + rank, f'from {rank}', clear=rank == 0)", (1, ["ITSELF from 0"])),
    ],
)
def test_an_error_ends_all_with_its_status_and_is_said_once(text: str, expected: End) -> None:
    with running(text) as ranks:
        assert ranks.ends() == [expected, (expected[0], []), (expected[0], [])]


def test_the_loss_of_a_rank_explains_unclear_errors() -> None:
    with running("if rank == 2:\n    hang()\nprint('failing', flush=True)\nfail(1, 'aborted', clear=False)") as ranks:
        for rank in (0, 1):
            assert ranks.line(rank) == "failing\n"
        ranks.send(2, signal.SIGKILL)
        check_loss(ranks.ends(), 2, ranks.lost(2, GONE))


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_when_the_chief_does_not_answer_a_rank_says_its_clear_error_itself(name: str) -> None:
    text = f"""
if rank == 1:
    from bloodcell_dist.cluster import watch

    watch.FAIL_S = 0.5 if "{name}" == "SIGSTOP" else 60
    fail(2, "wrong")
while line._verdict is None:
    time.sleep(0.001)
os.kill(os.getpid(), signal.{name})
"""
    with running(text, 2) as ranks:
        assert ranks.end(1) == (2, ["ITSELF wrong"])


# ---- the good end

LEAVING = """
if rank == 0:
    sys.stdin.readline()
print("leaving", flush=True)
line.leave()
print("left", time.monotonic(), flush=True)
"""


def test_all_wait_for_a_slow_chief() -> None:
    with running(LEAVING, timeout_s=1) as ranks:
        for rank in (1, 2):
            assert ranks.line(rank) == "leaving\n"
        time.sleep(1.2)  # longer than silence may last
        called = time.monotonic()
        ranks.write(0, "\n")
        ends = ranks.ends()
    assert [status for status, _ in ends] == [0, 0, 0]
    assert all(called < float(lines[-1].split()[1]) < called + 0.9 for _, lines in ends)


def test_a_rank_that_is_lost_while_others_wait_to_leave_is_named() -> None:
    with running(LEAVING) as ranks:
        for rank in (1, 2):
            assert ranks.line(rank) == "leaving\n"
        ranks.send(2, signal.SIGKILL)
        check_loss(ranks.ends(), 2, ranks.lost(2, GONE))


# ---- how they come together


@contextlib.contextmanager
def in_background(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def be_rank_1(address: bytes, world_size: int = 2) -> None:
    connect(address, 1, world_size, "n1", speaks=False, wait_s=30).leave()


def spoiled(address: bytes, place: int) -> bytes:
    """An address with another token."""
    fields = json.loads(address)
    token = list(fields["token"])
    token[place] = "x"
    return json.dumps(fields | {"token": "".join(token)}).encode()


@pytest.mark.parametrize(("place", "message"), [(0, "it belongs to another run"), (-1, "closed by the other side")])
def test_a_rank_of_another_run_is_refused(place: int, message: str) -> None:
    listener = listen(2, "localhost")
    failures = []

    def try_in_vain() -> None:
        with pytest.raises(TrainingFailed) as caught:
            connect(spoiled(listener.address, place), 1, 2, "n1", speaks=True, wait_s=0.1)
        failures.append(str(caught.value))
        be_rank_1(listener.address)

    with in_background(try_in_vain):
        listener.accept(30).leave()
    assert "rank 1 on n1" in failures[0] and message in failures[0]


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("!BQ", wire.Kind.HELLO, 1 << 40),
        struct.pack("!BQ", wire.Kind.HELLO, 0),
        struct.pack("!BQ", wire.Kind.HELLO, 4) + b"\xff{,,",
        struct.pack("!BQ", wire.Kind.BEAT, 0),
        b"",
    ],
)
def test_strangers_are_turned_away_and_the_rank_is_let_in(noise: bytes) -> None:
    listener = listen(2, "localhost")

    def disturb() -> None:
        with socket.create_connection(("127.0.0.1", json.loads(listener.address)["ports"][0])) as stranger:
            stranger.sendall(noise)
            if not noise:
                stranger.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(1000):  # until it is closed
                    pass
        be_rank_1(listener.address)

    with in_background(disturb):
        listener.accept(30).leave()


def test_ranks_that_do_not_come_are_named() -> None:
    listener = listen(4, "localhost")

    def come_alone() -> None:
        with pytest.raises(TrainingFailed, match=r"rank 1 on n1: rank 0 on localhost \(process \d+\) did not begin"):
            be_rank_1(listener.address, 4)

    with in_background(come_alone), pytest.raises(TrainingFailed) as caught:
        listener.accept(0.3)
    assert "rank 0 on localhost: ranks 2, 3 did not connect to localhost, " in str(caught.value)
    assert "within 0.3 s; is a firewall between the nodes?" in str(caught.value)


def test_a_rank_that_does_not_come_is_named() -> None:
    with pytest.raises(TrainingFailed, match="rank 0 on localhost: rank 1 did not connect to .* within 0.1 s"):
        listen(2, "localhost").accept(0.1)


def test_a_chief_that_cannot_be_reached_is_named_with_all_its_addresses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    address = meeting.Address(["127.0.0.1", "127.0.0.2"], [port], "0" * 32)
    with pytest.raises(TrainingFailed) as caught:
        connect(address.encode() + bytes(99), 3, 4, "n2", speaks=False, wait_s=0.2)
    assert f"rank 3 on n2 cannot reach rank 0 at 127.0.0.1, 127.0.0.2, port {port} (" in str(caught.value)
    assert "refused); is a firewall between the nodes?" in str(caught.value)


def test_an_address_is_short_and_keeps_loopback() -> None:
    hosts = [f"10.0.0.{n}" for n in range(99)]
    address = meeting.Address(["n1", *hosts, "127.0.0.1"], [65535], "0" * 32).encode()
    assert len(address) <= 512
    decoded = meeting.Address.decode(address)
    assert decoded.hosts == ["n1", *hosts[: len(decoded.hosts) - 2], "127.0.0.1"]


def test_the_hosts_of_this_machine_are_told_once_each() -> None:
    hosts = meeting.own_hosts("localhost")
    assert hosts[:2] == list(dict.fromkeys(["localhost", socket.gethostname()]))[:2]
    assert hosts[-1] == "127.0.0.1"
    assert len(set(hosts)) == len(hosts)
