"""Messages between ranks over TCP, on connections that never block.

A message is its kind in one byte, the length of its payload in eight, and the payload.
"""

from __future__ import annotations

import enum
import itertools
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

CHUNK = 1 << 18
"""Bytes read at a time, so that a thread that reads from one connection is soon back with the others."""

INTRODUCTION_LIMIT = 4096
"""Bytes of a payload while the other side has not shown its token: a stranger must not fill the memory."""

_HEADER = struct.Struct("!BQ")


class Kind(enum.IntEnum):
    """What a message says."""

    WELCOME = 1  # the chief to whoever connects: who it is
    HELLO = 2  # a rank, after that: who it is
    START = 3  # the chief: all ranks are connected
    BEAT = 4  # both: still alive
    PART = 5  # a rank: it has come to a collective, with this data
    WHOLE = 6  # the chief: all ranks have, with these data
    DISAGREE = 7  # the chief: they have come to different ones
    FAIL = 8  # a rank: it ends with an error
    END = 9  # the chief: all end, and how


_KINDS = frozenset(Kind)


class Message(NamedTuple):
    """A message that has come whole."""

    kind: Kind
    payload: bytes


class Connection:
    """A TCP connection that never blocks: it keeps what cannot be sent at once, and what has come in part."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.limit = INTRODUCTION_LIMIT
        self.fileno = sock.fileno  # for selectors
        self.close = sock.close
        self._socket = sock
        self._incoming = bytearray()
        self._outgoing: deque[memoryview] = deque()

    @property
    def ends(self) -> tuple[str, str]:
        """The IP addresses of this end and of the other."""
        return self._socket.getsockname()[0], self._socket.getpeername()[0]

    @property
    def pending(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._outgoing)

    def put(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a message, or what of it goes at once; `flush` sends the rest."""
        self._outgoing.append(memoryview(_HEADER.pack(kind, len(payload))))
        if payload:
            self._outgoing.append(memoryview(payload))
        self.flush()

    def flush(self) -> None:
        """Send some of what waits. When the other side has gone it is dropped: `receive` tells of that."""
        try:
            sent = self._socket.sendmsg(itertools.islice(self._outgoing, 16))
        except BlockingIOError:
            return
        except OSError:
            self._outgoing.clear()
            return
        while self._outgoing and len(self._outgoing[0]) <= sent:
            sent -= len(self._outgoing.popleft())
        if sent:
            self._outgoing[0] = self._outgoing[0][sent:]

    def receive(self, most: int = CHUNK) -> None:
        """Read some of what has come. Raises BlockingIOError if nothing has, OSError when the other side is gone."""
        data = self._socket.recv(most)
        if not data:
            raise ConnectionResetError("closed by the other side")
        self._incoming += data

    def next(self) -> Message | None:
        """The next message, if it has come whole. Raises ConnectionError for what no rank sends."""
        if len(self._incoming) < _HEADER.size:
            return None
        kind, length = _HEADER.unpack_from(self._incoming)
        if kind not in _KINDS or length > self.limit:
            raise ConnectionError("it is another program")
        end = _HEADER.size + length
        if len(self._incoming) < end:
            return None
        with memoryview(self._incoming) as view:
            payload = bytes(view[_HEADER.size : end])
        del self._incoming[:end]
        return Message(Kind(kind), payload)

    def wait(self, seconds: float) -> Message:
        """The next message. Raises TimeoutError if it takes longer than that, and what `receive` and `next` raise."""
        deadline = time.monotonic() + seconds
        try:
            while (message := self.next()) is None:
                self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
                self.receive(1)  # nothing beyond this message: that is for whoever selects
        finally:
            self._socket.setblocking(False)
        return message


def pack(parts: Sequence[bytes]) -> bytes:
    """Several payloads as one."""
    return b"".join((struct.pack(f"!{1 + len(parts)}Q", len(parts), *map(len, parts)), *parts))


def unpack(payload: bytes) -> list[bytes]:
    """What `pack` was given."""
    (count,) = struct.unpack_from("!Q", payload)
    lengths = struct.unpack_from(f"!{count}Q", payload, 8)
    ends = itertools.accumulate(lengths, initial=8 * (1 + count))
    return [payload[start:end] for start, end in itertools.pairwise(ends)]


def hand_over(connections: Sequence[Connection], seconds: float) -> None:
    """Send all that waits, see the other sides close, then close; at most this long.

    To close first, with something of theirs unread, would reset the connection and drop what is still under way.
    """
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                _hand_over_some(key.data, selector)
    for connection in connections:
        connection.close()


def _hand_over_some(connection: Connection, selector: selectors.BaseSelector) -> None:
    if connection.pending:
        connection.flush()
    else:
        selector.modify(connection, selectors.EVENT_READ, connection)
    try:
        connection.receive()
    except BlockingIOError:
        pass
    except OSError:
        selector.unregister(connection)


@dataclass
class Peer:
    """The rank at the other end of a connection."""

    rank: int
    host: str
    pid: int
    connection: Connection
    heard: float = 0.0  # when, on the clock of who watches it
    failed: bool = False  # it said so
    gone: bool = False  # the connection has ended
    awaited: bool = False  # who watches it waits until more can be sent

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.pid})"
