"""The lifeline between the ranks of a run: who is still there, small exchanges, and one ending for all.

A peer that is stopped but not killed leaves Horovod's collectives hanging for ever, and tf.distribute's health check
does not see it. So every rank has a TCP connection to rank 0, the chief, and a thread that watches it whatever the
main thread is stuck in. A rank that is lost gets named, and all the others end.
"""

from __future__ import annotations

import dataclasses
import os
import time

from bloodcell_dist.cluster.ending import Ending, Verdict, loss
from bloodcell_dist.cluster.meeting import Address, Door, knock
from bloodcell_dist.cluster.watch import CLOSE_S, Lifeline
from bloodcell_dist.cluster.wire import Kind, Message, Peer, hand_over, pack, unpack

__all__ = ["Ending", "Lifeline", "connect", "listen"]

TIMEOUT_S = 60.0

CLEAR_GRACE_S = 2.0
"""How long the chief waits whether its own main thread comes to the error of another rank, to say it only once."""

UNCLEAR_GRACE_S = 5.0
"""How long the chief waits for a better explanation of an error that may be the echo of a lost rank."""


class Chief(Lifeline):
    """Rank 0, to which all others are connected: it gathers, and decides how the run ends."""

    def __init__(self, world_size: int, peers: list[Peer], timeout_s: float) -> None:
        self._parts: dict[int, bytes] = {}
        self._first = (0, "")  # which rank was the first to come to a collective, and to which
        self._verdict: Verdict | None = None
        self._has_failed = False
        super().__init__(0, world_size, peers, timeout_s)

    def _hear(self, peer: Peer, message: Message) -> None:
        if message.kind == Kind.PART:
            call, data = unpack(message.payload)
            self._gather(peer.rank, call.decode(), data)
        elif message.kind == Kind.FAIL:
            peer.failed = True
            ending = Ending.decode(message.payload)
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
            verdict = self._verdict = Verdict(ending, own, now + grace_s)
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
            self._end(loss(peer, how), lost=peer)

    def _end(self, ending: Ending, *, own: bool = False, lost: Peer | None = None) -> None:
        """End all: here too, unless it is the main thread's own error, with which that ends this process."""
        if not own:
            self._say(ending)
        self._tell(Kind.END, ending.encode())
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
        self._chief.connection.put(Kind.FAIL, ending.encode())

    def _hear(self, peer: Peer, message: Message) -> None:
        if message.kind == Kind.WHOLE:
            call, *parts = unpack(message.payload)
            self._answers.put((call.decode(), parts))
            if _is_leave(call.decode()):
                self._over.set()
        elif message.kind == Kind.DISAGREE:
            self._answers.put(("", RuntimeError(message.payload.decode())))
        elif message.kind == Kind.END:
            os._exit(Ending.decode(message.payload).exit_status)  # without a word: the chief has said it

    def _lose(self, peer: Peer, how: str) -> None:
        if self._has_clear_error:  # which the caller of `fail` can still say
            self._over.set()
            return
        ending = loss(peer, how)
        if self._speaks:
            self._say(ending)
        os._exit(ending.exit_status)


class Listener:
    """The chief while it waits for the others."""

    def __init__(self, world_size: int, hostname: str, agreed: Address | None, timeout_s: float) -> None:
        self._world_size = world_size
        self._timeout_s = timeout_s
        self._door = Door(world_size, hostname, agreed)
        self.address = self._door.address.encode()
        """For `connect`, at most 512 bytes."""

    def accept(self, wait_s: float) -> Lifeline:
        """Wait until all others have connected. Raises TrainingFailed naming those that have not after `wait_s` s."""
        return Chief(self._world_size, self._door.gather(wait_s), self._timeout_s)


def listen(world_size: int, hostname: str, *, agreed: Address | None = None, timeout_s: float = TIMEOUT_S) -> Listener:
    """For rank 0: begin to listen, on all interfaces. `hostname` is this machine's, for messages too.

    At the first free port of an address that the others know; else at any free port, and they have to be told.
    """
    return Listener(world_size, hostname, agreed, timeout_s)


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


def _is_leave(call: str) -> bool:
    return call.startswith("leave")
