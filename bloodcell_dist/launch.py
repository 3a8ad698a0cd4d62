"""How a training process begins and ends among the others of its launcher.

Whatever ends one rank ends all, with one message and one exit status: the chief prints it, and `status.json` carries it
past launchers that change exit statuses (horovodrun makes 1 of any).
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import traceback
from collections.abc import Iterator

from bloodcell_dist import runtime
from bloodcell_dist.cluster.environment import ProcessInfo, process_info
from bloodcell_dist.cluster.lifeline import Ending, Lifeline
from bloodcell_dist.errors import Preempted, RunEnded, exit_status_of, is_disk_full
from bloodcell_dist.training.replication import Joined, join


def this_process() -> ProcessInfo:
    """Who this process is among those of its launcher. Raises UserError for an environment that makes no sense."""
    return process_info(os.environ, platform.node())


@contextlib.contextmanager
def launched(process: ProcessInfo) -> Iterator[Joined]:
    """Joined to the others while inside; leaves together with them.

    On other ranks than the chief an exception becomes SystemExit with the same status, so that it is told once.
    """
    runtime.find_devices()
    with runtime.silenced():  # gRPC and XLA announce themselves
        joined = join(process, os.environ)
    lifeline = joined.workers.lifeline
    if lifeline is not None:
        lifeline.on_end = _tell
    try:
        yield joined
    except BaseException as error:
        if joined.workers.is_chief:
            raise
        raise SystemExit(exit_status_of(error)) from error
    if lifeline is not None:
        lifeline.leave()


@contextlib.contextmanager
def ending_together(joined: Joined) -> Iterator[None]:
    """An exception that leaves the block ends all ranks, before anything is written about it on this one.

    It may be the echo of a lost rank, an aborted collective: then that rank is named, and this process ended, in here.
    """
    try:
        if joined.problem is not None:
            raise joined.problem
        yield
    except BaseException as error:
        if joined.workers.lifeline is not None:
            _end_all(joined.workers.lifeline, error)
        raise


def _end_all(lifeline: Lifeline, error: BaseException) -> None:
    """Bring the others down too, or leave with them where they end for the same reason."""
    if isinstance(error, Preempted):  # all ranks agreed to stop; the others wait until the chief has saved
        lifeline.leave()
        return
    clear = isinstance(error, RunEnded | KeyboardInterrupt) or is_disk_full(error)
    message = str(error) or type(error).__name__ if clear else "".join(traceback.format_exception(error))
    lifeline.fail(Ending(exit_status_of(error), message, clear))


def _tell(ending: Ending) -> None:
    """The last words of a process whose main thread is stuck or busy."""
    print(f"bloodcell-dist: {ending.message}", file=sys.stderr, flush=True)
