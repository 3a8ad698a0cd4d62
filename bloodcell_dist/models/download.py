"""Large files from the web: resumed where they stopped, checked, and never half there under their final name."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import tqdm

from bloodcell_dist.atomic import atomic_file
from bloodcell_dist.errors import UserError, is_disk_full
from bloodcell_dist.locks import take_lock
from bloodcell_dist.models.web import RANGE_NOT_SATISFIABLE, Answer, Trouble

log = logging.getLogger(__name__)

PAUSE_S = 2.0
"""Between two tries; most broken connections come back at once."""


class DownloadFailed(UserError):
    """A file could not be had from the web, or is not the right one. The message begins with its URL."""


def download(url: str, target: Path, hash: str, *, timeout_s: float, tries: int = 1, progress: bool = False) -> None:
    """Get a file, unless the right one is there already; a wrong one is replaced.

    What has come so far is kept as `<target>.part`, and the next call goes on from it. Of several processes that ask
    for the same target, one downloads and the others wait for it.

    Args:
        url: http, https or file.
        target: file to write; its folder is made.
        hash: MD5 (32 digits) or SHA-256 (64) of the whole file.
        timeout_s: for the server to begin to answer, and for each piece of the answer.
        tries: how often to connect before giving up, at least 1.
        progress: show a bar, if standard error is a terminal.

    Raises:
        DownloadFailed: the network failed or the server sent another file.
        UserError: the target cannot be written.
        OSError: the disk is full.
    """
    made = [folder for folder in target.parents if not os.path.exists(folder)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked_part(target, url) as part:
            if not has_hash(target, hash):
                _complete(url, part, hash, timeout_s, tries, progress)
                os.fsync(part.fileno())
                with atomic_file(target) as temporary:
                    os.replace(part.name, temporary)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"{target}: cannot be written ({error.strerror or error}); give another folder") from None
    finally:
        for folder in made:  # deepest first; those that hold something stay
            with suppress(OSError):
                folder.rmdir()


def has_hash(path: Path, hash: str) -> bool:
    """Whether a file is there and has this MD5 or SHA-256."""
    return path.is_file() and hash_of(path, like=hash) == hash.lower()


def hash_of(path: Path, *, like: str) -> str:
    """The file's hash in hexadecimal, of the same kind as `like`: MD5 for 32 digits, SHA-256 for 64."""
    kinds = {32: "md5", 64: "sha256"}
    with path.open("rb") as file:
        # Not for security: hardened machines (FIPS) refuse MD5 otherwise.
        return hashlib.file_digest(file, lambda: hashlib.new(kinds[len(like)], usedforsecurity=False)).hexdigest()


@contextmanager
def _locked_part(target: Path, url: str) -> Iterator[BinaryIO]:
    """The unfinished file, open to append and locked; removed again if nothing has come.

    The lock goes with the file, not with its name: after waiting, the name may have become the target's or be gone.
    Where the file system has no locks, two processes at once spoil each other's bytes, which the hash shows.
    """
    path = target.with_name(f"{target.name}.part")
    while True:
        with path.open("ab") as part:
            _lock(part, path)
            if _is_at(part, path):
                try:
                    yield part
                finally:
                    if _is_at(part, path) and not path.stat().st_size:
                        path.unlink()
                return
        if not target.exists():
            raise DownloadFailed(f"{url}: another process asked for it at the same time and did not get it")


def _lock(part: BinaryIO, path: Path) -> None:
    try:
        take_lock(part, wait=False)
    except BlockingIOError:
        log.info("waits for another process that downloads %s", path)
        take_lock(part, wait=True)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _complete(url: str, part: BinaryIO, hash: str, timeout_s: float, tries: int, progress: bool) -> None:
    """Bring the part to its end and check it. One pieced together wrong gets one more chance, from the start."""
    for _ in range(2):
        pieced = _fill(url, part, timeout_s, tries, progress)
        part.flush()
        received = hash_of(Path(part.name), like=hash)
        if received == hash.lower():
            return
        part.truncate(0)
        if not pieced:
            break
        log.info("%s: the pieces make a wrong file; begins again", url)
    raise DownloadFailed(
        f"{url}: what came has the hash {received}, expected {hash}; it was thrown away, since it is not the file that "
        "the installed Keras expects; look at the address, the proxy or the mirror"
    )


def _fill(url: str, part: BinaryIO, timeout_s: float, tries: int, progress: bool) -> bool:
    """Download until the end, with pauses after troubles. Whether bytes of an earlier answer were used."""
    trial = 1
    while True:
        try:
            return _append(url, part, timeout_s, progress)
        except Trouble as trouble:
            there = _size(part)
            if trouble.status is not None or trial >= tries:
                kept = f"; {_mb(there)} are there, and the same command goes on from them" if there else ""
                raise DownloadFailed(f"{url}: {trouble}{kept}") from None
            trial += 1
            log.info("%s: %s; tries again (%d of %d)", url, trouble, trial, tries)
            time.sleep(PAUSE_S)


def _append(url: str, part: BinaryIO, timeout_s: float, progress: bool) -> bool:
    """One answer, appended to the part. Whether bytes of an earlier one were used."""
    there = _size(part)
    try:
        answer = Answer(url, there, timeout_s)
    except Trouble as trouble:
        if there and trouble.status == RANGE_NOT_SATISFIABLE:
            return True  # nothing is left to send; the hash tells whether the part is right or too long
        raise
    with answer:
        if answer.first != there:
            part.truncate(0)
        if answer.first not in (0, there):
            raise Trouble("the server sent another part of the file than was asked for")
        with _bar(part, answer, progress) as bar:
            for block in answer.blocks():
                part.write(block)
                bar.update(len(block))
    if answer.total is not None and _size(part) < answer.total:
        raise Trouble(f"the connection ended {_mb(answer.total - _size(part))} too early")
    return answer.first > 0


def _bar(part: BinaryIO, answer: Answer, progress: bool) -> tqdm.tqdm:
    """A bar on a terminal; `disable=None` is tqdm's word for nowhere else."""
    return tqdm.tqdm(
        desc=Path(part.name).stem,
        initial=answer.first,
        total=answer.total,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None if progress else True,
    )


def _size(part: BinaryIO) -> int:
    part.flush()
    return os.fstat(part.fileno()).st_size


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
