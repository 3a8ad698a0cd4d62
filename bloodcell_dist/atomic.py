"""Writes that leave the old content or the new, never half of it.

Each file and folder is built under a temporary name in its final folder, fsynced and renamed.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
"""How the names of unfinished files and folders begin."""


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with the same suffix, for a writer that wants a file name.

    When the block ends, the file is fsynced and renamed to `path`; when it raises, the file is removed and
    `path` is as it was.
    """
    target = Path(path)
    temporary = _temporary_name(target)
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _fsync_folder(target.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path`; what is put there is fsynced, then renamed to `path`.

    When the block raises, the temporary folder is removed and `path` is as it was. A folder already at `path`
    is replaced; a crash between the two renames that this takes leaves nothing there, never a mixture.
    """
    target = Path(path)
    temporary = _temporary_name(target)
    temporary.mkdir()
    try:
        yield temporary
        _fsync_tree(temporary)
        _rename_over(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync_folder(target.parent)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 file whole or not at all; file names that are not UTF-8 survive (surrogateescape)."""
    atomic_write_bytes(path, text.encode("utf-8", "surrogateescape"))


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON (see `to_json`), whole or not at all."""
    atomic_write_text(path, json.dumps(to_json(value), indent=2, allow_nan=False) + "\n")


def to_json(value: Any) -> Any:
    """The value in JSON's own types.

    NumPy scalars and arrays become numbers and lists, paths text; NaN and infinity, which JSON has no words
    for, become null.
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove the unfinished files and folders below a folder.

    Only for a process that knows that no living one is making them: the holder of a run's lock.
    """
    for root, folders, files in os.walk(folder):
        for name in [name for name in folders if name.startswith(TEMPORARY)]:
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)
            folders.remove(name)
        for name in files:
            if name.startswith(TEMPORARY):
                os.unlink(os.path.join(root, name))


def _rename_over(folder: Path, target: Path) -> None:
    """Rename a folder, replacing one that has the name; POSIX renames over empty folders only."""
    if not target.exists():
        os.rename(folder, target)
        return
    replaced = _temporary_name(target)
    os.rename(target, replaced)
    try:
        os.rename(folder, target)
    except OSError:
        os.rename(replaced, target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _temporary_name(target: Path) -> Path:
    """A name beside the target that no other writer has; the suffix stays, since some writers go by it."""
    return target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}{target.suffix}")


def _fsync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _fsync(Path(root, name))
        _fsync_folder(Path(root))


def _fsync_folder(path: Path) -> None:
    """fsync of a folder makes a rename in it last; some network file systems refuse it, and need none."""
    try:
        _fsync(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
