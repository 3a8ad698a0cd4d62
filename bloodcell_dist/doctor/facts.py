"""The base of all facts: plain frozen values that travel between ranks as JSON."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict

PATIENCE_S = 5.0
"""How long another program may take to answer."""

Ask = Callable[[Sequence[str]], str]
"""Runs a command and gives what it prints; raises ToolFailed."""


class Facts(BaseModel):
    """What was seen, without any judgement."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ToolFailed(Exception):
    """Another program is not there, fails or does not answer; the message says so."""


def in_words(failure: Exception) -> str:
    """`/data/x.npz: Permission denied`, or the first line of what it says."""
    if isinstance(failure, OSError) and failure.strerror:
        return f"{failure.filename}: {failure.strerror}" if failure.filename else failure.strerror
    return str(failure).splitlines()[0] if str(failure) else type(failure).__name__


def ask(command: Sequence[str]) -> str:
    """What a program prints. Raises ToolFailed."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ToolFailed(f"{command[0]} did not answer within {PATIENCE_S:g} s") from None
    except FileNotFoundError:
        raise ToolFailed(f"there is no {command[0]} here") from None
    except OSError as failure:
        raise ToolFailed(in_words(failure)) from None
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise ToolFailed(words if words.startswith(command[0]) else f"{command[0]}: {words}")
    return done.stdout
