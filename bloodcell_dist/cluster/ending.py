"""How a run ends, other than done: what the ranks tell one another and what is said about it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from bloodcell_dist.cluster.wire import Peer
from bloodcell_dist.errors import TrainingFailed


@dataclass(frozen=True)
class Ending:
    """A way to end, and what is said about it."""

    exit_status: int
    message: str
    clear: bool = True
    """False: an unexpected exception, which may only be the echo of a lost rank, such as an aborted collective."""

    def encode(self) -> bytes:
        """As JSON, for another rank."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Ending:
        """What was encoded."""
        return cls(**json.loads(payload))


@dataclass
class Verdict:
    """How the chief will end the run, unless a better ending comes before `at`."""

    ending: Ending
    own: bool  # of its main thread
    at: float


def loss(peer: Peer, how: str) -> Ending:
    """The ending of all other ranks when one is lost; `how` is what tells of it."""
    return Ending(TrainingFailed.exit_status, f"{peer} was lost: {how}")


def reason(error: OSError) -> str:
    """Why a connection has ended, in words for people who run trainings."""
    if isinstance(error, ConnectionResetError):
        return "its process is gone (killed, or out of memory?)"
    return f"the connection broke ({error.strerror or error})"
