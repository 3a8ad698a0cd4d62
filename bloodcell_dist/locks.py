"""File locks that the kernel drops when their process dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
from typing import IO, Any

# File systems without flock say so in different words; ENOSYS is Lustre mounted without `-o flock`.
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def take_lock(file: int | IO[Any], *, wait: bool) -> bool:
    """Lock an open file until it is closed; False on a file system without locks.

    Raises BlockingIOError if another process has it and `wait` is false, and the OSErrors of flock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return False
    return True
