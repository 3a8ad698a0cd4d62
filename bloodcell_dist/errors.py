"""The ways a run ends, as exceptions that carry their exit status.

Imported by every module, imports nothing. `cli.main` turns them into one line on standard error and the exit status
that Slurm and shell scripts act on (0 done, 2 bad input, 3 training failed, 75 preempted with a checkpoint saved).
"""

import errno


class RunEnded(Exception):
    """Base of the endings that a person or a launcher acts on; the message is shown without a traceback."""

    exit_status = 1


class UserError(RunEnded):
    """A person's mistake: names the key or file, what was received, what was expected and how to fix it."""

    exit_status = 2


class TrainingFailed(RunEnded):
    """The training cannot go on: it diverged or a rank was lost."""

    exit_status = 3


class Preempted(RunEnded):
    """Stopped on request with a checkpoint saved; 75 is EX_TEMPFAIL of sysexits.h, "try again"."""

    exit_status = 75


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk, or the person's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def exit_status_of(error: BaseException) -> int:
    """The exit status of a process that ends with this error; 130 is the shells' for Ctrl-C."""
    if isinstance(error, RunEnded):
        return error.exit_status
    if is_disk_full(error):
        return TrainingFailed.exit_status
    return 130 if isinstance(error, KeyboardInterrupt) else 1
