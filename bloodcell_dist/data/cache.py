"""Decoded sets on disk: one `images.npy` and one `dataset.json` per set, built once and then memory-mapped.

A set is found again by a key over its files (sizes and times) and how they were decoded. All ranks of a node
ask for the same set at once: the first builds it under a lock, the others wait and map the same pages.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from bloodcell_dist.atomic import atomic_file, atomic_write_json, sweep
from bloodcell_dist.data.dataset import Allocate, ArrayDataset, in_memory
from bloodcell_dist.errors import UserError
from bloodcell_dist.locks import take_lock

_log = logging.getLogger(__name__)
_FORMAT = 1  # raise it when decoding changes, so that older caches are built anew
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

Build = Callable[[Allocate], ArrayDataset]


def describe_files(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """(absolute path, bytes, modification time in ns) of each file, for a key."""
    status = [(os.path.abspath(file), file.stat()) for file in files]
    return [(path, found.st_size, found.st_mtime_ns) for path, found in status]


def cached(
    cache_dir: Path | None, key: Mapping[str, Any], build: Build, scratch_dir: Path | None = None
) -> ArrayDataset:
    """The set that `build` makes, from the cache if an intact copy is there.

    key: JSON values that say all that the decoded set depends on. build: gets the `Allocate` to put its
    images in. scratch_dir: a disk of this node, to which the set is copied and from where it is then read; one that
    cannot be used is left alone. Returns images as a read-only memory map; without `cache_dir` an array in memory. A
    damaged copy (its checksum is compared each time, 3 GB/s were measured) is built anew. Raises UserError for a
    folder that cannot be written and for cells that cannot be read.
    """
    if cache_dir is None:
        return _decode(build, in_memory)
    digest = hashlib.sha256(json.dumps({"format": _FORMAT, **key}, sort_keys=True).encode()).hexdigest()[:20]
    if scratch_dir is not None:
        try:
            return _on_scratch(cache_dir, digest, key, build, scratch_dir / "bloodcell_dist" / digest)
        except OSError as error:
            _log.warning("%s cannot be used (%s); reads from %s", scratch_dir, error.strerror or error, cache_dir)
    return _in_cache(cache_dir, digest, key, build)


def _on_scratch(cache_dir: Path, digest: str, key: Mapping[str, Any], build: Build, folder: Path) -> ArrayDataset:
    """The set from this node's own disk. Its processes come at once: the first copies it, the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock") as alone:
        found = _load(folder)
        if found is not None:
            return found
        shared = _in_cache(cache_dir, digest, key, build)
        if alone:
            sweep(folder)
        _log.info("copying the decoded cells to %s", folder)
        for name in ("images.npy", "dataset.json"):  # in this order, as when they are built
            with atomic_file(folder / name) as temporary:
                shutil.copyfile(cache_dir / digest / name, temporary)
        return _load(folder) or shared


def _in_cache(cache_dir: Path, digest: str, key: Mapping[str, Any], build: Build) -> ArrayDataset:
    folder = cache_dir / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock") as alone:
            found = _load(folder)
            if found is not None:
                return found
            if alone:
                sweep(folder)  # what a killed build left
            _build_into(folder, dict(key), build)
    except OSError as error:
        raise _unusable(cache_dir, error) from error
    built = _load(folder)
    if built is None:
        raise UserError(
            f"{folder}: the decoded set cannot be read back; check the disk, or set data.cache_dir to another folder "
            "or to off"
        )
    return built


def _build_into(folder: Path, key: dict[str, Any], build: Build) -> None:
    """The images first, the JSON last: a set without JSON is unfinished, one whose checksum differs is damaged."""
    _log.info("decoding into the cache %s", folder)
    with suppress(FileNotFoundError):
        (folder / "dataset.json").unlink()
    with atomic_file(folder / "images.npy") as temporary:
        dataset = _decode(build, lambda shape: _reserve(temporary, shape))
        dataset.images.flush()  # type: ignore[union-attr]  # a memmap, by _reserve
        checksum = _checksum(temporary)
    atomic_write_json(
        folder / "dataset.json",
        {
            "key": key,
            "checksum": checksum,
            "class_names": dataset.class_names,
            "labels": dataset.labels,
            "groups": dataset.groups,
            "partition": dataset.partition,
            "names": dataset.names,
        },
    )


def _decode(build: Build, allocate: Allocate) -> ArrayDataset:
    """What `build` makes; where the cells cannot be read, the cache is not to blame."""
    try:
        return build(allocate)
    except OSError as error:
        raise UserError(
            f"{error.filename or 'the cells'}: cannot be read ({error.strerror or error}); check data.path, "
            "data.test_path and the disk they are on"
        ) from error


def _reserve(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A writable map of a new file whose blocks exist already: a disk that fills up under a map kills the process."""
    try:
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    except OSError as error:
        raise _unusable(path.parent.parent, error) from error
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno in _NO_SPACE:  # other errors: a file system that cannot reserve
            raise _unusable(path.parent.parent, error) from error
    return images


def _load(folder: Path) -> ArrayDataset | None:
    """The cached set, or None when there is none or it is damaged."""
    try:
        about = json.loads((folder / "dataset.json").read_text("utf-8", "surrogateescape"))
        if _checksum(folder / "images.npy") != about["checksum"]:
            raise ValueError("images.npy is not what was written")
        return ArrayDataset(
            images=np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False),
            labels=np.array(about["labels"], np.int64),
            class_names=tuple(about["class_names"]),
            groups=None if about["groups"] is None else np.array(about["groups"], np.int64),
            names=None if about["names"] is None else tuple(about["names"]),
            partition=None if about["partition"] is None else np.array(about["partition"], np.int8),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        _log.warning("%s is damaged (%s); decoding again", folder, error)
        return None


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            checksum = zlib.crc32(block, checksum)
    return checksum


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock file; others wait. Yields False on a file system without locks: then several may build at
    once, which costs time but no harm, since each renames a whole file of its own."""
    with path.open("a") as file:
        try:
            held = take_lock(file, wait=False)
        except BlockingIOError:
            _log.info("waits for another process that decodes into %s", path.parent)
            held = take_lock(file, wait=True)
        yield held


def _unusable(cache_dir: Path, error: OSError) -> UserError:
    return UserError(
        f"data.cache_dir={cache_dir} cannot be used ({error.strerror or error}); "
        "set data.cache_dir to a folder that you may write to and that has room, or to off"
    )
