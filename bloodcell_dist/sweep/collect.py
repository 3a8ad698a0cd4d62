"""What has become of the members of a sweep, read from their run folders and the records of their jobs."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bloodcell_dist.config import load_settings
from bloodcell_dist.errors import RunEnded, UserError
from bloodcell_dist.evaluation.result import FORMAT
from bloodcell_dist.history import parse_object, read_metrics
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.sweep.folder import Plan, Planned, SweepDir

State = Literal["waiting", "queued", "running", "done", "stopped", "failed"]

_QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
_LOST = "ended without a word: killed, or its node lost"
_END = re.compile(r"\S+ end status=(\d+) ?(.*)")
_MESSAGE = re.compile(r"(?:bloodcell-dist: |error\s+)(.*)")  # of the training; of the doctor before it


@dataclass(frozen=True)
class Found:
    """A member and how it is.

    Attributes:
        member: as planned.
        run: its folder, which may not be there.
        state: in one word.
        reason: why, for those that are stopped or failed; what the queue says of the others.
        restarts: how often its job came back.
        nodes: of its last life, as Slurm writes them; "" if it has not begun.
        epochs_done: trained and recorded.
        epochs: asked for; None if it has not begun.
        source: of its cells; None if it has not begun.
        test_cells: fingerprint of its test cells; None without.
        history: rows of metrics.jsonl.
        result: content of result.json; None unless done.
    """

    member: Planned
    run: RunDir
    state: State
    reason: str = ""
    restarts: int = 0
    nodes: str = ""
    epochs_done: int = 0
    epochs: int | None = None
    source: str | None = None
    test_cells: str | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    result: Mapping[str, Any] | None = None


def collect(folder: SweepDir, plan: Plan, queue: Mapping[int, str] | None) -> list[Found]:
    """Every member as it is now.

    Args:
        folder: of the sweep.
        plan: of it.
        queue: Slurm's state of each member in the queue; None if Slurm is not there or does not say.
    """
    return [_look(folder, member, queue) for member in plan.members]


def _look(folder: SweepDir, member: Planned, queue: Mapping[int, str] | None) -> Found:
    run, record_file = folder.run(member.name), folder.record(member.index)
    record = _lines(record_file)
    state: State
    result, broken = _read_result(run)
    slurm = (queue or {}).get(member.index)
    is_new_life = bool(record) and " start " in record[-1] and _time(record_file) > _time(run.status)
    status = None if is_new_life else _read_object(run.status)
    state, reason = ("done", "") if result else _state(run, status, record, slurm, queue is not None)
    if state == "failed" and not broken and not run.status.exists():
        reason = _told(folder, member) or reason
    starts = [line for line in record if " start " in line]
    settings = None
    with contextlib.suppress(RunEnded):
        settings = load_settings(run.config) if run.config.exists() else None
    epochs = settings.train.epochs if settings else None
    history = _history(run)
    return Found(
        member=member,
        run=run,
        state="failed" if broken else state,
        reason=broken or reason,
        restarts=max(0, len(starts) - 1),
        nodes=_nodes(starts[-1]) if starts else "",
        epochs_done=len(history),
        epochs=epochs if isinstance(epochs, int) else None,
        source=settings.data.source if settings else None,
        test_cells=_test_cells(run),
        history=history,
        result=result,
    )


def _state(
    run: RunDir, status: Mapping[str, Any] | None, record: list[str], slurm: str | None, asked: bool
) -> tuple[State, str]:
    """Of a member without a result.

    Args:
        run: its folder.
        status: of its last life, as the training told it.
        record: lines of its job.
        slurm: what the queue says of it.
        asked: whether the queue was looked at.
    """
    if slurm is not None:
        return ("queued", "") if slurm in _QUEUED else ("running", "" if slurm == "RUNNING" else slurm.lower())
    ended = _END.fullmatch(record[-1]) if record else None
    if ended and "requeued" in ended[2]:
        return "stopped", ended[2]
    if status and status.get("state") not in ("running", "done"):
        return _ending(int(status.get("exit_status") or 1), str(status.get("message") or status.get("state")))
    if ended:
        return _ending(int(ended[1]), ended[2])
    if not status and not record:
        return "waiting", "not started"
    return ("running", "") if _may_live(run, asked) else ("stopped", _LOST)


def _ending(exit_status: int, message: str) -> tuple[State, str]:
    words = " ".join(message.split()).removeprefix("stopped: ")
    if exit_status == 0:
        return "failed", "ended well, but its result.json is missing"
    return ("stopped" if exit_status in (75, 130) else "failed"), words


def _may_live(run: RunDir, asked: bool) -> bool:
    """Whether the process that holds the run lives; of one on another machine that Slurm does not know, it may."""
    holder = _read_object(run.lock_file) or {}
    if holder.get("host") != socket.gethostname():
        return not asked
    try:
        os.kill(int(holder["pid"]), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, KeyError):
        return False
    return True


def _told(folder: SweepDir, member: Planned) -> str | None:
    """The message in the newest log of a member whose run has not begun, and so has no status.json."""
    logs = sorted(folder.logs.glob(f"*_{member.index}.out"), key=lambda path: path.stat().st_mtime)
    messages = [found[1] for line in _lines(logs[-1]) if (found := _MESSAGE.match(line))] if logs else []
    return messages[-1] if messages else None


def _read_result(run: RunDir) -> tuple[Mapping[str, Any] | None, str]:
    """The content of result.json, and what is wrong with it."""
    if not run.result.exists():
        return None, ""
    result = _read_object(run.result)
    if result is None:
        return None, "its result.json cannot be read"
    if result.get("format") != FORMAT:
        return None, f"its result.json has format {result.get('format')}; expected {FORMAT}"
    return result, ""


def _history(run: RunDir) -> tuple[Mapping[str, Any], ...]:
    try:
        return tuple(read_metrics(run.metrics))
    except (UserError, OSError):
        return ()


def _test_cells(run: RunDir) -> str | None:
    cells = (_read_object(run.data) or {}).get("test cells")
    return None if cells == "none" else cells


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        return parse_object(path.read_bytes())
    except OSError:
        return None


def _nodes(start: str) -> str:
    found = re.search(r" nodes=(\S+)", start)
    return found[1] if found else ""


def _time(path: Path) -> float:
    """When a file was last written, Unix time; 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
