"""What the processes of `gpu_check.py` share. Needs the standard library only: PyTorch's Python may have no more."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "GPU_CHECK_RESULT "
ROUNDS, ROUND_S, WARM_UP = 5, 3.0, 3
PREFACES = ("Graph execution error", "Detected at node", "File ", "<stack traces", "2 root error")  # TensorFlow's
GRACE_S = 40.0  # what has begun may take so much longer than the limit


class Clock:
    """Says when no new measurement may begin."""

    def __init__(self, limit_s: float | None) -> None:
        self.deadline = math.inf if limit_s is None else time.time() + limit_s

    @property
    def over(self) -> bool:
        return time.time() >= self.deadline

    def left_s(self, at_most: float = math.inf) -> float | None:
        """Until what runs now is stopped; None for never."""
        left = min(at_most, max(0.0, self.deadline + GRACE_S - time.time()))
        return None if left == math.inf else left


class Child:
    """A process whose output goes to the log, with the last lines kept."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._command, self._environment, self._log = list(command), environment, log
        self._tail: collections.deque[str] = collections.deque(maxlen=40)
        self.status: int | None = None
        self.stopped_after_s: float | None = None

    def lines(self, limit_s: float | None) -> Iterator[str]:
        """What it prints, until it ends or is stopped after so long."""
        self._begun = time.monotonic()
        process = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        timer = threading.Timer(limit_s or 0.0, self._stop, [process])
        if limit_s is not None:
            timer.start()
        try:
            assert process.stdout is not None
            with process.stdout, open(self._log, "a") as log:
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    self._tail.append(line.rstrip())
                    yield line
            self.status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                self._stop(process)

    def _stop(self, process: subprocess.Popen[str]) -> None:
        """SIGTERM, which horovodrun passes on to its ranks, then SIGKILL for what is left of its group."""
        self.stopped_after_s = time.monotonic() - self._begun
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def ending(self) -> str:
        """Why it ended, in a line."""
        if self.stopped_after_s is not None:
            return f"stopped after {self.stopped_after_s:.0f} s"
        last = next((line for line in reversed(self._tail) if line.strip()), "it printed nothing")
        how = f"signal {-self.status}" if self.status is not None and self.status < 0 else f"exit status {self.status}"
        return f"{how}: {last.strip()[:300]}"


# What a process that looks or measures tells the conductor, in lines among whatever else it prints.


def tell(**what: Any) -> None:
    """Say it. Of a case: case=…, and found=… or, when it begins, without."""
    print(MARK + json.dumps(what), flush=True)


def told(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What was said."""
    for line in lines:
        _, mark, what = line.partition(MARK)
        if mark:
            yield json.loads(what)


def first_line(error: BaseException) -> str:
    """What it is and the beginning of what it says; all of it goes to the log."""
    traceback.print_exception(error)
    lines = [line.strip() for line in str(error).splitlines()]
    says = next((line for line in lines if line and not line.startswith(PREFACES)), "no message")
    return f"{type(error).__name__}: {says[:300]}"


# Timing.


def calls_per_round(at_most: int, warm_s: float) -> int:
    """So many as take a round's time, where a call takes `warm_s`."""
    return max(2, min(at_most, math.ceil(ROUND_S / warm_s)))


def take_turns(rounds: Sequence[Callable[[], float]]) -> list[list[float]]:
    """Seconds of the rounds of each, ROUNDS times by turns, so that what the machine does besides meets all alike."""
    seconds: list[list[float]] = [[] for _ in rounds]
    for number in range(ROUNDS):
        order = range(len(rounds)) if number % 2 == 0 else reversed(range(len(rounds)))
        for place in order:
            seconds[place].append(rounds[place]())
    return seconds


def as_rates(seconds: Sequence[float], *, updates: int, examples: int) -> dict[str, Any]:
    """Of rounds of so many updates of so many examples."""
    rates = [updates * examples / value for value in seconds]
    return {
        "images_per_s": round(statistics.median(rates), 1),
        "images_per_s_range": [round(min(rates), 1), round(max(rates), 1)],
        "update_ms": round(1000 * statistics.median(seconds) / updates, 3),
        "rounds_ms": [round(1000 * value / updates, 4) for value in seconds],
        "updates_per_round": updates,
    }
