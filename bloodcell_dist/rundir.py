"""Names of everything a run leaves behind, and the lock that keeps a second process off a living run.

All of it is written atomically (`atomic.py`), save what grows in place: `metrics.jsonl` (`history.py`),
`log.txt` and TensorBoard's files.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bloodcell_dist.atomic import (
    TEMPORARY,
    atomic_write_text,
    sweep,
)
from bloodcell_dist.errors import UserError
from bloodcell_dist.history import parse_object
from bloodcell_dist.locks import take_lock

log = logging.getLogger(__name__)

# What a new run folder may hold already: our own leftovers, the launcher's output, NFS's names for files that
# were deleted while open.
_NOT_FOREIGN = (TEMPORARY, ".lock", ".nfs", "slurm-")


@dataclass(frozen=True)
class RunDir:
    """The folder of one run: where everything lies, by name."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def config(self) -> Path:
        """The settings as resolved, YAML."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, devices, launcher, git, JSON."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """The log of all lives of the run."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """One JSON object per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of `step-00001234/` folders."""
        return self.path / "checkpoints"

    @property
    def data(self) -> Path:
        """Fingerprints of the cells, JSON."""
        return self.path / "data.json"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def plots(self) -> Path:
        """Folder of PNG files."""
        return self.path / "plots"

    @property
    def cleaning(self) -> Path:
        """What cleaning removed and why, JSON."""
        return self.path / "cleaning.json"

    @property
    def result(self) -> Path:
        """The measured result, JSON; its presence says that the run is finished."""
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        """The result for people, one HTML file."""
        return self.path / "report.html"

    @property
    def model(self) -> Path:
        """The selected model for plain Keras."""
        return self.path / "model.keras"

    @property
    def status(self) -> Path:
        """How the run ended, for launchers that change exit statuses, JSON."""
        return self.path / "status.json"

    @property
    def lock_file(self) -> Path:
        """What `lock` holds; it stays when the run ends."""
        return self.path / ".lock"

    @property
    def run_id(self) -> str:
        """The identity of the run for life, 32 hexadecimal digits, made by `create`. Raises UserError."""
        try:
            return (self.path / "run_id").read_text(encoding="ascii").strip()
        except OSError as error:
            raise UserError(
                f"{self.path}: is not a run folder (run_id: {error.strerror}); give the folder of a run"
            ) from None

    def check(self) -> None:
        """Look whether `create` will work, without leaving anything behind. Raises UserError."""
        try:
            if self.path.exists():
                self._refuse_foreign()
            existing = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
            if not existing.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            raise self._unusable(error) from None

    def write_config(self, text: str) -> None:
        """Write config.yaml, which makes the folder a begun run."""
        atomic_write_text(self.config, text)

    def create(self) -> None:
        """Make the folder, or take up one that is ours: give it its run id, sweep what a killed process left.

        Call it before `lock`. Raises UserError if the path is a file, cannot be written, holds something that
        is not a run, or belongs to a living run.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            with self._locked() as has_locks:
                self._fill(has_locks)
        except OSError as error:
            raise self._unusable(error) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; a second one gets a UserError that names host and process id.

        The kernel drops the lock when its process dies, however it dies, so a dead one is no obstacle. Where
        the file system has no locks, this warns and goes on. Unfinished files of a killed process are swept
        first.
        """
        with self._locked() as has_locks:
            if has_locks:
                sweep(self.path)
            else:
                log.warning(
                    "%s: this file system has no file locks; see to it that no second process uses this run",
                    self.path,
                )
            yield

    def _refuse_foreign(self) -> None:
        names = sorted(os.listdir(self.path))
        foreign = [name for name in names if not name.startswith(_NOT_FOREIGN)]
        if foreign and "run_id" not in names:
            more = f" and {len(foreign) - 1} more" if foreign[1:] else ""
            raise UserError(
                f"{self.path}: has no file run_id, so it is not a run folder, and holds {foreign[0]}{more}; "
                "give a new or empty folder, or that of a run to continue"
            )

    def _fill(self, has_locks: bool) -> None:
        """What every run folder has. Without locks nothing is swept: another process may be writing it."""
        if has_locks:
            sweep(self.path)
        if not (self.path / "run_id").exists():
            atomic_write_text(self.path / "run_id", uuid.uuid4().hex + "\n")
        for folder in (self.checkpoints, self.plots):
            folder.mkdir(exist_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Takes the lock, or raises UserError naming its holder; yields False where there are no locks."""
        try:
            # Not truncated: until the lock is ours, the content is its holder's. NFS wants O_RDWR for a lock.
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            yield self._flock(descriptor)
        finally:
            os.close(descriptor)

    def _flock(self, descriptor: int) -> bool:
        """Whether the file system has locks, if so after taking it; UserError if another process has it."""
        try:
            held = take_lock(descriptor, wait=False)
        except BlockingIOError:
            raise self._in_use(os.pread(descriptor, 4096, 0)) from None
        except OSError as error:
            raise self._unusable(error) from None
        if held:
            _write_holder(descriptor)
        return held

    def _in_use(self, record: bytes) -> UserError:
        holder = parse_object(record) or {}  # empty while its holder is about to write it
        return UserError(
            f"{self.path}: this run is in use by process {holder.get('pid', 'unknown')} "
            f"on {holder.get('host', 'unknown')} (since {holder.get('started', 'unknown')}); "
            "wait until it ends, stop it, or give another run folder"
        )

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path}: cannot be used as a run folder ({error.strerror}); give a folder that you may write to"
        )


def _write_holder(descriptor: int) -> None:
    """Record who holds the lock, in place: a rename would put another file under the lock's name."""
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    record = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, record.encode() + b"\n", 0)
