"""What a person asked for with `--out`: where it cannot be written, one message says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bloodcell_dist.errors import UserError, is_disk_full


def check_folder_of(out: str | os.PathLike[str]) -> None:
    """UserError if the folder that the file `out` should come into is not there."""
    if not Path(out).absolute().parent.is_dir():
        raise UserError(f"--out {out}: its folder does not exist; make it or give another file")


@contextmanager
def writing(out: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the system says against writing `out` into a UserError; a full disk stays the OSError it is."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error}); give another place") from None
