"""The lifeline between the ranks of a run: who is still there, small exchanges, and one ending for all.

A peer that is stopped but not killed leaves Horovod's collectives hanging for ever, and tf.distribute's health check
does not see it. So every rank has a TCP connection to rank 0, the chief, and a thread that watches it whatever the
main thread is stuck in. A rank that is lost gets named, and all the others end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import selectors
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from bloodcell_dist.cluster.wire import CHUNK, Address, Door, Kind, Message, Peer, hand_over, knock, pack, unpack
from bloodcell_dist.errors import TrainingFailed

TIMEOUT_S = 60.0

SILENCE = 0.8
"""The part of the time-out after which a silent rank is lost; what is left is for all others to end."""

CLEAR_GRACE_S = 2.0
"""How long the chief waits whether its own main thread comes to the error of another rank, to say it only once."""

UNCLEAR_GRACE_S = 5.0
"""How long the chief waits for a better explanation of an error that may be the echo of a lost rank."""

FAIL_S = 10.0  # more than either
CLOSE_S = 1.0
SAY_S = 5.0

_Answer = tuple[str, list[bytes] | RuntimeError]
"""A collective and what came of it."""


@dataclass(frozen=True)
class Ending:
    """How a run ends, other than done."""

    exit_status: int
    message: str
    clear: bool = True
    """False: an unexpected exception, which may only be the echo of a lost rank, such as an aborted collective."""


class Lifeline:
    """One rank's end of it: a `Chief` or a `Member`, as `listen` and `connect` make them.

    The public methods are for the main thread. The watching thread does the rest, all sending too, so that a peer that
    has stopped reading blocks nobody.
    """

    def __init__(self, rank: int, world_size: int, peers: list[Peer], timeout_s: float) -> None:
        self.rank = rank
        self.world_size = world_size
        self.timeout_s = timeout_s
        """Seconds within which all ranks have ended after one is lost; may be set at any time."""
        self.on_end: Callable[[Ending], None] = _print_message
        """Says how the run ends just before the watching thread ends this process; has to flush what it writes."""
        self._peers = peers
        self._calls = 0
        self._orders: deque[Callable[[], None]] = deque()  # for the watching thread
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()  # for the main thread
        self._over = threading.Event()
        self._clock = 0.0  # seconds that this process has watched: it stands still while the process is suspended
        self._looked_at = self._beat_at = time.monotonic()
        self._bell, self._button = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)
        for peer in peers:
            self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        self._thread = threading.Thread(target=self._run, name="lifeline", daemon=True)
        self._thread.start()

    def exchange(self, data: bytes) -> list[bytes]:
        """Collective: the data of all ranks, in order of rank.

        Raises RuntimeError when the ranks have come to different collectives, which is a mistake in the program.
        """
        return self._meet("exchange", data)

    def share(self, data: bytes | None) -> bytes:
        """Collective: the chief's data; the others give None. Raises RuntimeError as `exchange` does."""
        if (data is None) == (self.rank == 0):
            raise ValueError("rank 0 gives the data to share, and no other rank does")
        return self._meet("share", data or b"")[0]

    def leave(self) -> None:
        """Collective: the good end. Each rank waits here until all have come; one lost meanwhile is still named."""
        self._meet("leave", b"")
        self._thread.join()

    def fail(self, ending: Ending) -> None:
        """End all ranks, for this one is on its way out with an error.

        Returns when the others know, on the chief, and when the chief does not answer, on the others: then the caller
        says the error and ends. Else the process ends in here: the chief says the error, or a better explanation of it.
        """
        if not self._over.is_set():
            self._order(lambda: self._fail(ending))
            self._over.wait(FAIL_S)
            self._over.set()
            self._thread.join(CLOSE_S)

    # ---- between the threads

    def _meet(self, name: str, data: bytes) -> list[bytes]:
        if self._over.is_set():
            raise RuntimeError(f"rank {self.rank} has left the lifeline and can no longer {name}")
        self._calls += 1
        call = f"{name} {self._calls}"
        self._order(lambda: self._come(call, data))
        answered, answer = self._answers.get()
        if isinstance(answer, RuntimeError):
            raise answer
        if answered != call:  # the one before was interrupted
            raise RuntimeError(f"rank {self.rank} is in {call} and got the answer to {answered}")
        return answer

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        with contextlib.suppress(OSError):  # it is just over
            self._button.send(b"!")

    # ---- the watching thread

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._turn()
        except BaseException:  # without this thread the rank would be taken for hung, for no visible reason
            traceback.print_exc()
            os._exit(1)
        self._selector.close()
        self._bell.close()
        self._button.close()
        for peer in self._peers:
            peer.connection.close()

    def _turn(self) -> None:
        """Wait for something, and see to all that there is."""
        for peer in self._present():
            if peer.connection.pending or peer.awaited:
                self._await(peer)
        ready = self._selector.select(max(0.0, self._due_at() - time.monotonic()))
        self._move_clock()
        for key, _ in ready:
            if key.data is None:
                self._bell.recv(CHUNK)
            else:
                self._read(key.data)
        while self._orders and not self._over.is_set():
            self._orders.popleft()()
        if not self._over.is_set():
            self._judge()

    def _due_at(self) -> float:
        """When there is something to do though nothing comes."""
        return self._beat_at

    def _present(self) -> list[Peer]:
        return [peer for peer in self._peers if not peer.gone]

    def _await(self, peer: Peer) -> None:
        """Send more of what waits for this peer; if not all goes, be woken when more can."""
        peer.connection.flush()
        peer.awaited = peer.connection.pending
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.awaited else 0)
        self._selector.modify(peer.connection, events, peer)

    @property
    def _tick_s(self) -> float:
        return min(1.0, self.timeout_s / 10)

    def _move_clock(self) -> None:
        """A process that was suspended must not blame the others for the time in which it could not hear them."""
        now = time.monotonic()
        self._clock += min(now - self._looked_at, 2 * self._tick_s)
        self._looked_at = now

    def _read(self, peer: Peer) -> None:
        try:
            peer.connection.receive()
            messages = list(iter(peer.connection.next, None))
        except BlockingIOError:  # woken to send
            return
        except OSError as error:
            self._selector.unregister(peer.connection)
            peer.gone = True
            self._lose(peer, _reason(error))
            return
        peer.heard = self._clock
        for message in messages:
            self._hear(peer, message)

    def _judge(self) -> None:
        """At every beat: show that this rank lives, and look whether the others do."""
        if time.monotonic() < self._beat_at:
            return
        self._beat_at = time.monotonic() + self._tick_s
        for peer in self._present():
            if not peer.connection.pending:  # else it hears of this rank anyway
                peer.connection.put(Kind.BEAT)
            silence = self._clock - peer.heard
            if silence > SILENCE * self.timeout_s:
                how = f"nothing heard of it for {silence:.0f} s (stopped, hung, or cut off from the network?)"
                self._lose(peer, how)

    def _say(self, ending: Ending) -> None:
        """In a thread of its own, so that neither an exception nor a dead file system keeps this one from the end."""
        saying = threading.Thread(target=self.on_end, args=(ending,), daemon=True)
        with contextlib.suppress(RuntimeError):  # there are no more threads to be had
            saying.start()
            saying.join(SAY_S)

    # ---- what chief and members do differently

    def _come(self, call: str, data: bytes) -> None:
        """This rank has come to a collective."""
        raise NotImplementedError

    def _fail(self, ending: Ending) -> None:
        """This rank ends with an error."""
        raise NotImplementedError

    def _hear(self, peer: Peer, message: Message) -> None:
        """A message has come."""
        raise NotImplementedError

    def _lose(self, peer: Peer, how: str) -> None:
        """A peer has gone, or is silent."""
        raise NotImplementedError


class Chief(Lifeline):
    """Rank 0, to which all others are connected: it gathers, and decides how the run ends."""

    def __init__(self, world_size: int, peers: list[Peer], timeout_s: float) -> None:
        self._parts: dict[int, bytes] = {}
        self._first = (0, "")  # which rank was the first to come to a collective, and to which
        self._verdict: _Verdict | None = None
        self._has_failed = False
        super().__init__(0, world_size, peers, timeout_s)

    def _hear(self, peer: Peer, message: Message) -> None:
        if message.kind == Kind.PART:
            call, data = unpack(message.payload)
            self._gather(peer.rank, call.decode(), data)
        elif message.kind == Kind.FAIL:
            peer.failed = True
            ending = _decode(message.payload)
            said = f"rank {peer.rank} on {peer.host}: {ending.message}"
            self._weigh(dataclasses.replace(ending, message=said), own=False)

    def _come(self, call: str, data: bytes) -> None:
        self._gather(0, call, data)

    def _gather(self, rank: int, call: str, data: bytes) -> None:
        if not self._parts:
            self._first = (rank, call)
        self._parts[rank] = data
        if call != self._first[1]:
            self._disagree(rank, call)
        elif len(self._parts) == self.world_size:
            self._answer(call)

    def _answer(self, call: str) -> None:
        parts = [self._parts[rank] for rank in range(self.world_size)]
        self._parts = {}
        self._tell(Kind.WHOLE, pack([call.encode(), *parts]))
        if _is_leave(call):
            self._orders.append(self._close)  # later, as this turn may still read from the connections
        self._answers.put((call, parts))

    def _disagree(self, rank: int, call: str) -> None:
        first_rank, first_call = self._first
        text = f"rank {first_rank} has come to {first_call}, but rank {rank} to {call}: a mistake in the program"
        self._parts = {}
        self._tell(Kind.DISAGREE, text.encode())
        self._answers.put((call, RuntimeError(text)))

    def _tell(self, kind: Kind, payload: bytes) -> None:
        for peer in self._present():
            peer.connection.put(kind, payload)

    def _close(self) -> None:
        hand_over([peer.connection for peer in self._present()], CLOSE_S)
        self._over.set()

    def _fail(self, ending: Ending) -> None:
        self._has_failed = True
        self._weigh(ending, own=True)

    def _weigh(self, ending: Ending, *, own: bool) -> None:
        """Take the better of the verdict and this ending: a clear one, the chief's own, the first."""
        now = time.monotonic()
        verdict = self._verdict
        if verdict is None or (ending.clear, own) > (verdict.ending.clear, verdict.own):
            grace_s = CLEAR_GRACE_S if ending.clear else UNCLEAR_GRACE_S
            verdict = self._verdict = _Verdict(ending, own, now + grace_s)
        if verdict.ending.clear and self._has_failed:
            verdict.at = now

    def _due_at(self) -> float:
        return self._beat_at if self._verdict is None else min(self._beat_at, self._verdict.at)

    def _judge(self) -> None:
        if self._verdict is not None and time.monotonic() >= self._verdict.at:
            self._end(self._verdict.ending, own=self._verdict.own)
        else:
            super()._judge()

    def _lose(self, peer: Peer, how: str) -> None:
        if not peer.failed and (self._verdict is None or not self._verdict.ending.clear):
            self._end(_loss(peer, how), lost=peer)

    def _end(self, ending: Ending, *, own: bool = False, lost: Peer | None = None) -> None:
        """End all: here too, unless it is the main thread's own error, with which that ends this process."""
        if not own:
            self._say(ending)
        self._tell(Kind.END, _encode(ending))
        others = [peer.connection for peer in self._present() if peer is not lost]
        hand_over(others, min(CLOSE_S, self.timeout_s / 10))
        if not own:
            os._exit(ending.exit_status)
        self._over.set()


class Member(Lifeline):
    """Any other rank, connected to the chief only."""

    def __init__(self, rank: int, world_size: int, chief: Peer, timeout_s: float, *, speaks: bool) -> None:
        self._chief = chief
        self._speaks = speaks
        self._has_clear_error = False
        super().__init__(rank, world_size, [chief], timeout_s)

    def _come(self, call: str, data: bytes) -> None:
        self._chief.connection.put(Kind.PART, pack([call.encode(), data]))

    def _fail(self, ending: Ending) -> None:
        self._has_clear_error = ending.clear
        self._chief.connection.put(Kind.FAIL, _encode(ending))

    def _hear(self, peer: Peer, message: Message) -> None:
        if message.kind == Kind.WHOLE:
            call, *parts = unpack(message.payload)
            self._answers.put((call.decode(), parts))
            if _is_leave(call.decode()):
                self._over.set()
        elif message.kind == Kind.DISAGREE:
            self._answers.put(("", RuntimeError(message.payload.decode())))
        elif message.kind == Kind.END:
            os._exit(_decode(message.payload).exit_status)  # without a word: the chief has said it

    def _lose(self, peer: Peer, how: str) -> None:
        if self._has_clear_error:  # which the caller of `fail` can still say
            self._over.set()
            return
        ending = _loss(peer, how)
        if self._speaks:
            self._say(ending)
        os._exit(ending.exit_status)


class Listener:
    """The chief while it waits for the others."""

    def __init__(self, world_size: int, hostname: str, timeout_s: float) -> None:
        self._world_size = world_size
        self._timeout_s = timeout_s
        self._door = Door(world_size, hostname)
        self.address = self._door.address.encode()
        """For `connect`, at most 512 bytes."""

    def accept(self, wait_s: float) -> Lifeline:
        """Wait until all others have connected. Raises TrainingFailed naming those that have not after `wait_s` s."""
        return Chief(self._world_size, self._door.gather(wait_s), self._timeout_s)


def listen(world_size: int, hostname: str, *, timeout_s: float = TIMEOUT_S) -> Listener:
    """For rank 0: begin to listen, on all interfaces at a free port. `hostname` is this machine's, for messages too."""
    return Listener(world_size, hostname, timeout_s)


def connect(
    address: bytes,
    rank: int,
    world_size: int,
    hostname: str,
    *,
    speaks: bool,
    wait_s: float,
    timeout_s: float = TIMEOUT_S,
) -> Lifeline:
    """For every other rank: connect to rank 0 and wait until all have. Raises TrainingFailed after `wait_s` seconds.

    A rank that `speaks` says it when rank 0 is lost: one or a few should.
    """
    chief = knock(Address.decode(address), rank, hostname, wait_s)
    return Member(rank, world_size, chief, timeout_s, speaks=speaks)


@dataclass
class _Verdict:
    """How the chief will end the run, unless a better ending comes before `at`."""

    ending: Ending
    own: bool  # of its main thread
    at: float


def _loss(peer: Peer, how: str) -> Ending:
    return Ending(TrainingFailed.exit_status, f"{peer} was lost: {how}")


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionResetError):
        return "its process is gone (killed, or out of memory?)"
    return f"the connection broke ({error.strerror or error})"


def _encode(ending: Ending) -> bytes:
    return json.dumps(dataclasses.asdict(ending)).encode()


def _decode(payload: bytes) -> Ending:
    return Ending(**json.loads(payload))


def _is_leave(call: str) -> bool:
    return call.startswith("leave")


def _print_message(ending: Ending) -> None:
    print(ending.message, file=sys.stderr, flush=True)
