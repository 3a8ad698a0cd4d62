"""What a person asked for with `--out`: where it cannot be written, one message says so."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from bloodcell_dist.errors import UserError


@contextmanager
def writing(out: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the system says against writing `out` into a UserError; a full disk stays the OSError it is."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error}); give another place") from None
