"""How a training process begins and ends among the others of its launcher.

Whatever ends one rank ends all, with one message and one exit status: the chief prints it, and `status.json` carries it
past launchers that change exit statuses (horovodrun makes 1 of any).
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import traceback
from collections.abc import Iterator

from bloodcell_dist import runtime
from bloodcell_dist.cluster.environment import ProcessInfo, process_info
from bloodcell_dist.cluster.lifeline import Ending
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.errors import Preempted, RunEnded, UserError, exit_status_of, is_disk_full
from bloodcell_dist.training.replication import Joined, join


def this_process() -> ProcessInfo:
    """Who this process is among those of its launcher. Raises UserError for an environment that makes no sense."""
    return process_info(os.environ, platform.node())


@contextlib.contextmanager
def launched(process: ProcessInfo, asked: str = "auto") -> Iterator[Joined]:
    """Joined to the others while inside; leaves together with them. `asked`: the setting distribute.strategy.

    On other ranks than the chief an exception becomes SystemExit with the same status, so that it is told once.
    """
    runtime.find_devices()
    with runtime.silenced():  # gRPC and XLA announce themselves
        joined = join(process, os.environ, asked)
    if joined.workers.lifeline is not None:
        joined.workers.lifeline.on_end = _tell
    try:
        yield joined
    except BaseException as error:
        _release_others(joined.workers, error)
        if joined.workers.is_chief:
            raise
        raise SystemExit(exit_status_of(error)) from error
    _release_others(joined.workers)


@contextlib.contextmanager
def ending_together(joined: Joined) -> Iterator[None]:
    """An exception that leaves the block ends all ranks, before anything is written about it on this one.

    It may be the echo of a lost rank, an aborted collective: then that rank is named, and this process ended, in here.
    What the chief itself understands it writes down first; it holds the others until `launched` is left.
    """
    try:
        if joined.problem is not None:
            raise joined.problem
        check_devices(joined)
        yield
    except BaseException as error:
        lifeline, held = joined.workers.lifeline, joined.workers.is_chief and _is_clear(error)
        if lifeline is not None and not held and not isinstance(error, Preempted):
            lifeline.fail(_ending(error))
        raise


def _release_others(workers: Workers, error: BaseException | None = None) -> None:
    """Let the others go, all at once: the chief has written what there is to write."""
    if workers.lifeline is None:
        return
    if workers.is_chief:
        # Launchers end the rest as soon as one rank has left with an error, and the chief has a last word to say.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if error is None or isinstance(error, Preempted):
        workers.lifeline.leave()
    elif workers.is_chief and _is_clear(error):
        workers.lifeline.fail(_ending(error))


def check_devices(joined: Joined) -> None:
    """UserError if the workers have unequal numbers of GPUs: the slices of a batch are equal. A collective."""
    counts = joined.workers.each(joined.num_gpus)
    odd = [rank for rank, count in enumerate(counts) if count != counts[0]]
    if odd:
        raise UserError(
            f"rank {odd[0]} has {counts[odd[0]]} GPUs for itself, rank 0 has {counts[0]}; start the processes on nodes "
            "of one kind, and see that TensorFlow sees the GPUs on each"
        )


def _is_clear(error: BaseException) -> bool:
    """Whether it says what happened; else it may only be the echo of a lost rank."""
    return isinstance(error, RunEnded | KeyboardInterrupt) or is_disk_full(error)


def _ending(error: BaseException) -> Ending:
    clear = _is_clear(error)
    message = str(error) or type(error).__name__ if clear else "".join(traceback.format_exception(error))
    return Ending(exit_status_of(error), message, clear)


def _tell(ending: Ending) -> None:
    """The last words of a process whose main thread is stuck or busy."""
    print(f"bloodcell-dist: {ending.message}", file=sys.stderr, flush=True)
