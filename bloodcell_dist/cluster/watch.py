"""The thread in which a rank watches its peers, and what the main thread asks of it.

It does all sending too, so that a peer that has stopped reading blocks nobody.
"""

from __future__ import annotations

import contextlib
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

from bloodcell_dist.cluster.ending import Ending, reason
from bloodcell_dist.cluster.wire import CHUNK, Kind, Message, Peer

SILENCE = 0.8
"""The part of the time-out after which a silent rank is lost; what is left is for all others to end."""

FAIL_S = 10.0  # more than the chief waits for a better ending
CLOSE_S = 1.0
SAY_S = 5.0

_Answer = tuple[str, list[bytes] | RuntimeError]
"""A collective and what came of it."""


class Lifeline:
    """One rank's end of it: a `Chief` or a `Member`, as `listen` and `connect` make them.

    The public methods are for the main thread, the watching thread does the rest.
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

    def addresses(self) -> dict[int, tuple[str, str]]:
        """Rank of each peer to the IP addresses of this end and of its end of the connection."""
        return {peer.rank: peer.connection.ends for peer in self._peers}

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
            self._lose(peer, reason(error))
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


def _print_message(ending: Ending) -> None:
    print(ending.message, file=sys.stderr, flush=True)
