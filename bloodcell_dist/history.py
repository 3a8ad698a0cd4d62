"""`metrics.jsonl`: one JSON object per epoch, appended in place, so that a kill can tear its last line.

A torn line is left out when the file is read, and cut off when it is next appended to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bloodcell_dist.atomic import atomic_write_bytes, atomic_write_text, to_json
from bloodcell_dist.errors import UserError

OF_THE_MACHINE = frozenset({"images_per_s", "step_s", "input_s", "compute_s", "collective_s", "memory_gb"})
"""What in a row depends on clock and machine; all else is the same whenever and however a run is repeated."""


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl in order; none if it does not exist. A torn last line is left out.

    Raises UserError for a broken line before the last: no kill of ours leaves one.
    """
    rows = []
    lines = _complete_lines(Path(path))
    for number, line in enumerate(lines, start=1):
        row = parse_object(line)
        if row is None:
            raise UserError(f"{path}: line {number} is not a JSON object; remove that line by hand and run again")
        rows.append(row)
    return rows


def append_metrics(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Add one row and fsync; a torn last line of a killed process is cut off first."""
    target = Path(path)
    line = json.dumps(to_json(row), allow_nan=False).encode() + b"\n"
    intact = b"".join(complete + b"\n" for complete in _complete_lines(target))
    if target.exists() and target.stat().st_size != len(intact):
        atomic_write_bytes(target, intact + line)
        return
    with open(target, "ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def rewrite_metrics(path: str | os.PathLike[str], keep_epochs_below: int) -> None:
    """Drop the rows whose `epoch` is `keep_epochs_below` or later; a resumed run trains those again."""
    rows = [row for row in read_metrics(path) if row["epoch"] < keep_epochs_below]
    atomic_write_text(path, "".join(json.dumps(to_json(row), allow_nan=False) + "\n" for row in rows))


def _complete_lines(path: Path) -> list[bytes]:
    """The lines of a file without their ends, less a last one that is torn."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    tail = lines.pop()
    return [*lines, tail] if parse_object(tail) is not None else lines


def parse_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None if it is torn, or something else."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
