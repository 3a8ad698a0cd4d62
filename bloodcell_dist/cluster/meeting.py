"""How the ranks come to be connected with rank 0, the chief: it waits at its door, the others knock."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import secrets
import selectors
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from bloodcell_dist.cluster.wire import Connection, Kind, Message, Peer
from bloodcell_dist.errors import TrainingFailed

ADDRESS_LIMIT = 512
"""Bytes of an encoded address, so that a broadcast of a fixed size carries it."""

CONNECT_S = 2.0
WELCOME_S = 5.0  # longer: the chief may still be on its way to where it answers
PAUSE_S = 0.1

_SIOCGIFADDR = 0x8915
_FIREWALL = "is a firewall between the nodes? Every rank connects to rank 0 by TCP"


class Address(NamedTuple):
    """Where the chief waits, and the token that tells the ranks of this run from strangers.

    It waits at one of the ports; 0 stands for any that is free.
    The chief shows the first half of the token to whoever connects, a rank the second to whoever showed it the first.
    So no stranger, at either end, gets to see the half that opens the door.
    """

    hosts: list[str]
    ports: list[int]
    token: str

    def encode(self) -> bytes:
        """As JSON of at most 512 bytes; where the hosts are too many the last ones but loopback are left out."""
        hosts = list(self.hosts)
        while len(text := json.dumps(self._replace(hosts=hosts)._asdict()).encode()) > ADDRESS_LIMIT:
            del hosts[-2]
        return text

    @classmethod
    def decode(cls, text: bytes) -> Address:
        """What was encoded; zero bytes may follow, with which a broadcast fills it up."""
        return cls(**json.loads(text.rstrip(b"\0")))

    def introduce(self, connection: Connection, kind: Kind, rank: int, host: str) -> None:
        """Say who this process is."""
        who = {"rank": rank, "host": host, "pid": os.getpid()}
        connection.put(kind, self._half(kind) + json.dumps(who).encode())

    def recognise(self, connection: Connection, message: Message, kind: Kind) -> Peer:
        """Who said that. Raises ConnectionError if it is none of this run."""
        half = self._half(kind)
        if message.kind != kind or not secrets.compare_digest(message.payload[: len(half)], half):
            raise ConnectionError("it belongs to another run")
        connection.limit = sys.maxsize
        return Peer(**json.loads(message.payload[len(half) :]), connection=connection)

    def _half(self, kind: Kind) -> bytes:
        middle = len(self.token) // 2
        return (self.token[:middle] if kind == Kind.WELCOME else self.token[middle:]).encode()


class Door:
    """Where the chief waits for the others: at the address that was agreed on, else at any port, with a new token."""

    def __init__(self, world_size: int, hostname: str, agreed: Address | None = None) -> None:
        self._missing = set(range(1, world_size))
        self._hostname = hostname
        wanted = agreed or Address(own_hosts(hostname), [0], secrets.token_hex(16))
        self._socket = _open_door(wanted.ports, backlog=max(world_size, 128))
        self.address = wanted._replace(ports=[self._socket.getsockname()[1]])

    def gather(self, wait_s: float) -> list[Peer]:
        """All others in order of rank. Raises TrainingFailed naming those that do not come within `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        peers: list[Peer] = []
        with self._socket, selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            while self._missing and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    peers += self._hear(key.data, selector) if key.data else self._open(selector)
            strangers = [key.data for key in selector.get_map().values() if key.data]
        for connection in strangers + ([peer.connection for peer in peers] if self._missing else []):
            connection.close()
        if self._missing:
            raise self._alone(wait_s)
        for peer in peers:
            peer.connection.put(Kind.START)
        return sorted(peers, key=lambda peer: peer.rank)

    def _open(self, selector: selectors.BaseSelector) -> list[Peer]:
        with contextlib.suppress(OSError):  # it has gone again
            connection = Connection(self._socket.accept()[0])
            selector.register(connection, selectors.EVENT_READ, connection)
            self.address.introduce(connection, Kind.WELCOME, 0, self._hostname)
        return []

    def _hear(self, connection: Connection, selector: selectors.BaseSelector) -> list[Peer]:
        """The rank that has said HELLO on this connection, if it has."""
        try:
            connection.receive()
            if (message := connection.next()) is None:
                return []
            peer = self.address.recognise(connection, message, Kind.HELLO)
            self._missing.remove(peer.rank)
        except (OSError, KeyError):  # a stranger, or a second one of this rank
            selector.unregister(connection)
            connection.close()
            return []
        selector.unregister(connection)
        return [peer]

    def _alone(self, wait_s: float) -> TrainingFailed:
        ranks = ", ".join(map(str, sorted(self._missing)))
        return TrainingFailed(
            f"rank 0 on {self._hostname}: rank{'s' if len(self._missing) > 1 else ''} {ranks} did not connect to "
            f"{_places(self.address)} within {wait_s:g} s; {_FIREWALL}"
        )


def _open_door(ports: Sequence[int], backlog: int) -> socket.socket:
    """A socket that listens at the first of the ports that is free."""
    for port in ports:
        with contextlib.suppress(OSError):
            door = socket.create_server(("", port), backlog=backlog)
            door.setblocking(False)
            return door
    raise TrainingFailed(f"none of the ports {', '.join(map(str, ports))} is free for the other ranks; start it again")


def knock(address: Address, rank: int, hostname: str, wait_s: float) -> Peer:
    """Connect to the chief and wait until all others have too. Raises TrainingFailed."""
    chief = _find_chief(address, rank, hostname, wait_s)
    address.introduce(chief.connection, Kind.HELLO, rank, hostname)
    try:
        chief.connection.wait(wait_s + WELCOME_S)  # longer than the chief, who can say which rank is missing
    except OSError as error:
        chief.connection.close()
        raise TrainingFailed(
            f"rank {rank} on {hostname}: {chief} did not begin ({error}); its own message says which rank it waited for"
        ) from None
    return chief


def _find_chief(address: Address, rank: int, hostname: str, wait_s: float) -> Peer:
    """Try all hosts and ports, one after the other, again and again."""
    deadline = time.monotonic() + wait_s
    while True:
        for host, port in itertools.product(address.hosts, address.ports):
            try:
                return _try(address, host, port)
            except (OSError, UnicodeError) as failure:  # or it is no name that could be one
                reason = failure
        if time.monotonic() > deadline:
            raise TrainingFailed(
                f"rank {rank} on {hostname} cannot reach rank 0 at {_places(address)} ({reason}); {_FIREWALL}"
            )
        time.sleep(PAUSE_S)


def _try(address: Address, host: str, port: int) -> Peer:
    connection = Connection(socket.create_connection((host, port), CONNECT_S))
    try:
        return address.recognise(connection, connection.wait(WELCOME_S), Kind.WELCOME)
    except BaseException:
        connection.close()
        raise


def _places(address: Address) -> str:
    return f"{', '.join(address.hosts)}, port {' or '.join(map(str, address.ports))}"


def own_hosts(hostname: str) -> list[str]:
    """Names and IPv4 addresses at which others may reach this machine, loopback last."""
    addresses = []
    with contextlib.suppress(OSError):
        addresses = [str(found[4][0]) for found in socket.getaddrinfo(hostname, None, socket.AF_INET)]
    addresses += interface_addresses()
    far = [address for address in addresses if not address.startswith("127.")]
    return list(dict.fromkeys([hostname, socket.gethostname(), *far, "127.0.0.1"]))


def interface_addresses() -> dict[str, str]:
    """The first IPv4 address of each network interface, and the interface's name; only Linux is asked."""
    addresses = {}
    if sys.platform == "linux":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # it has none
                    request = struct.pack("256s", name.encode()[:15])
                    answer = fcntl.ioctl(sock, _SIOCGIFADDR, request)
                    addresses[socket.inet_ntoa(answer[20:24])] = name
    return addresses
