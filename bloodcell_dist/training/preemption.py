"""A polite end: a signal sets a flag, the loop sees it at the next step boundary and saves."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from bloodcell_dist.errors import Preempted


class StopRequest:
    """Whether somebody asked the run to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @property
    def is_set(self) -> bool:
        """Whether a signal came."""
        return self.signal_name is not None

    def leave_if(self, stopping: bool, when: str) -> None:
        """Raise Preempted if the workers agreed to stop.

        Args:
            stopping: whether a signal came, to this worker or another.
            when: `before training`, `after step 7, which is saved`.
        """
        if stopping:
            by = self.signal_name or "a signal to another rank"
            raise Preempted(f"stopped by {by} {when}; run the same command again to go on")

    @contextlib.contextmanager
    def listening(self, *names: str) -> Iterator[None]:
        """Catch the signals of these names (`USR1`) while inside; after Preempted all but INT until the process ends.

        Slurm sends what `--signal` says before the time limit, TERM when a job is cancelled or preempted; Ctrl-C is
        INT, of which a second one interrupts at once.
        """
        before = {number: signal.signal(number, self._note) for number in {signal.Signals[f"SIG{n}"] for n in names}}
        try:
            yield
        except Preempted:
            # Launchers repeat TERM, and there are last words to write, and other ranks to leave together with.
            before = {number: handler for number, handler in before.items() if number == signal.SIGINT}
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set by C code

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
