"""Checkpoints: the whole state of a run at a step boundary, written whole or not at all, verified when read.

A checkpoint is a folder `step-00001234/` with `arrays.npz` (no pickled objects), `progress.json` and `manifest.json`,
which holds the SHA-256 of both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bloodcell_dist.atomic import atomic_folder, atomic_write_json

log = logging.getLogger(__name__)

NICENESS = 10  # of the thread that writes, 19 being the most

_FILES = ("arrays.npz", "progress.json")
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A state read back.

    Attributes:
        step: updates made.
        arrays: weights, optimizer state and the running epoch's records by name.
        progress: what is known besides, JSON values.
    """

    step: int
    arrays: dict[str, np.ndarray]
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the `step-…` folders.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, step: int, arrays: Mapping[str, Any], progress: Mapping[str, Any]) -> Path:
        """Write the state after `step` updates, then remove the oldest beyond `keep`.

        Those of later steps go too: the run was taken up before them, so they are damaged.

        Args:
            step: updates made.
            arrays: by name; NumPy's, or what becomes one (TensorFlow's, say), which are copied here, one by one.
            progress: JSON values.
        """
        target = self._folder / f"step-{step:08d}"
        with atomic_folder(target) as unfinished:
            with open(unfinished / "arrays.npz", "wb") as file:
                written = _Hashing(file)
                np.savez(written, **{name: np.asarray(array) for name, array in arrays.items()})
            atomic_write_json(unfinished / "progress.json", progress)
            files = {"arrays.npz": written.hexdigest(), "progress.json": _sha256(unfinished / "progress.json")}
            atomic_write_json(unfinished / "manifest.json", {"step": step, "sha256": files})
        others = [folder for folder in self._newest_first() if folder != target]
        earlier = [folder for folder in others if _step(folder) < step]
        for folder in set(others) - set(earlier[: self._keep - 1]):
            shutil.rmtree(folder, ignore_errors=True)  # NFS refuses while a file in it is open somewhere; next time
        return target

    def newest(self) -> Checkpoint | None:
        """The newest intact checkpoint; damaged ones are passed over with a warning. None if there is none."""
        folders = self._newest_first()
        for folder in folders:
            problem = _problem(folder)
            if problem is None:
                return _read(folder)
            log.warning("%s is damaged and not used: %s", folder, problem)
        if folders:
            log.warning("no checkpoint in %s is intact: the run starts from the beginning", self._folder)
        return None

    def _newest_first(self) -> list[Path]:
        """The checkpoint folders, newest first."""
        folders = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(folders, key=_step, reverse=True)


class BackgroundSaves:
    """Writes checkpoints in a thread of its own, one at a time, while the training goes on.

    Args:
        checkpoints: where to.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(1, "checkpoints", _give_way)
        self._pending: Future[Path] | None = None

    def save(self, step: int, arrays: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Begin to write, see `Checkpoints.save`; waits first for the one before, and raises what stopped that.

        The arrays must not change any more.
        """
        self.settle()
        self._pending = self._thread.submit(self._checkpoints.save, step, arrays, progress)

    def settle(self) -> None:
        """Wait until all is written. Raises what stopped it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _give_way() -> None:
    """Let this thread run where the training leaves a core idle; elsewhere than on Linux it would be the process."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


class _Hashing:
    """A file that is only written to, from beginning to end, and hashed meanwhile instead of being read again.

    As it cannot go back, zipfile puts sizes behind the arrays, where NumPy and all others find them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def read(self) -> bytes:  # NumPy takes for a file what has this
        raise OSError("only written to")

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _read(folder: Path) -> Checkpoint:
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    progress = json.loads((folder / "progress.json").read_text())
    return Checkpoint(_step(folder), arrays, progress)


def _problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is intact."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in _FILES:
            if _sha256(folder / name) != manifest["sha256"][name]:
                return f"{name} does not have the SHA-256 of the manifest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__} {error}"
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
