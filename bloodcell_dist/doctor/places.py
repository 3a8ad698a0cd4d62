"""Folders that a run writes to: room, permission, file locks, and the clock of their file system."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from bloodcell_dist.atomic import TEMPORARY, atomic_write_bytes
from bloodcell_dist.doctor.facts import Facts
from bloodcell_dist.doctor.findings import Finding, error, ok, warning
from bloodcell_dist.locks import take_lock

GB = 1e9
ENOUGH_GB, LEAST_GB = 5, 1
ENOUGH_FILES, LEAST_FILES = 10_000, 100
SKEW_S, GRAVE_SKEW_S = 1, 30

_PIECE = b"bloodcell-dist doctor" * 1000


class Place(Facts):
    """A folder, or the nearest one above it that there is, where it would be made.

    Attributes:
        path: as asked for.
        folder: what was tried.
        problem: why nothing can be written there.
        free_bytes: for this user.
        free_files: how many more files it can hold; None where it does not count them.
        locks: whether flock works.
        clock_s: how far the file system's clock is ahead of this machine's, seconds.
        needed: whether a run cannot do without it.
    """

    path: str
    folder: str
    problem: str | None = None
    free_bytes: int = 0
    free_files: int | None = None
    locks: bool = True
    clock_s: float = 0.0
    needed: bool = True


def look_at_place(path: str | os.PathLike[str], needed: bool = True) -> Place:
    """Writes a small file for good (fsync, rename), locks it, and removes it again."""
    asked = Path(path).expanduser().absolute()
    folder = next(place for place in (asked, *asked.parents) if os.path.lexists(place))
    about = {"path": str(asked), "folder": str(folder), "needed": needed}
    if not folder.is_dir():
        return Place.model_validate(about | {"problem": f"{folder} is no folder"})
    try:
        space = os.statvfs(folder)
        locks, clock_s = _try(folder)
    except OSError as failure:
        return Place.model_validate(about | {"problem": failure.strerror or str(failure)})
    return Place.model_validate(
        about
        | {
            "free_bytes": space.f_bavail * space.f_frsize,
            "free_files": space.f_favail if space.f_files else None,
            "locks": locks,
            "clock_s": clock_s,
        }
    )


def _try(folder: Path) -> tuple[bool, float]:
    """Whether flock works there, and how far its clock is ahead."""
    file = folder / f"{TEMPORARY}doctor-{uuid.uuid4().hex[:12]}"
    before = time.time()
    try:
        atomic_write_bytes(file, _PIECE)
        after, written = time.time(), file.stat().st_mtime
        with file.open("rb") as opened:
            locks = take_lock(opened, wait=False)
    finally:
        file.unlink(missing_ok=True)
    return locks, outside(written, before, after)


def outside(moment: float, start: float, end: float) -> float:
    """How far a moment lies after (positive) or before (negative) an interval; 0 inside."""
    return max(0.0, moment - end) + min(0.0, moment - start)


def judge_place(name: str, found: Place, otherwise: str) -> list[Finding]:
    """Whether it can be written and has room. `otherwise`: how to name another folder."""
    grave = error if found.needed else warning
    where = found.path if found.path == found.folder else f"{found.path} (to be made in {found.folder})"
    if found.problem is not None:
        return [grave(name, f"{where} cannot be written: {found.problem}", otherwise)]
    lines, free = [], found.free_bytes / GB
    if free < ENOUGH_GB:
        worse = grave if free < LEAST_GB else warning
        lines.append(worse(name, f"{where} has {free:.1f} GB free", f"free some space, or {otherwise}"))
    if found.free_files is not None and found.free_files < ENOUGH_FILES:
        worse = grave if found.free_files < LEAST_FILES else warning
        text = f"{where} has room for {found.free_files:,} more files (inodes)"
        lines.append(worse(name, text, f"remove small files, or {otherwise}"))
    if not found.locks:
        text = f"{where} has no file locks (flock): two jobs could write to one run"
        lines.append(
            warning(name, text, f"let one job at a time use a run folder (Lustre: mount -o flock), or {otherwise}")
        )
    return lines or [ok(name, f"{where}, writable, {free:,.0f} GB free")]


def judge_file_clock(found: Place) -> list[Finding]:
    """The file system's clock against this machine's."""
    skew = abs(found.clock_s)
    if skew <= SKEW_S:
        return [ok("clock", "this machine and the file system agree to a second")]
    grave = error if skew > GRAVE_SKEW_S else warning
    text = (
        f"files in {found.folder} are dated {skew:,.0f} s {'ahead of' if found.clock_s > 0 else 'behind'} this machine"
    )
    return [grave("clock", text, "tell the administrators: chrony or ntpd does not run on one of them")]
