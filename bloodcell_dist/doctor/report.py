"""The lines of `bloodcell-dist doctor`, on standard output."""

from __future__ import annotations

import os
import shutil
import sys
import threading

from bloodcell_dist.doctor.findings import Finding, as_json, as_lines, worst
from bloodcell_dist.errors import UserError

BAD = UserError.exit_status
"""Exit status if there is an error."""


class Report:
    """Collects what is found, and prints it once, whichever thread comes first.

    Args:
        as_array: print JSON.
    """

    def __init__(self, as_array: bool) -> None:
        self.lines: list[Finding] = []
        self._as_array = as_array
        self._lock = threading.Lock()
        self._shown = False

    @property
    def exit_status(self) -> int:
        """Of what was found so far."""
        return BAD if worst(self.lines) == "error" else 0

    def show(self) -> None:
        """Print all lines, unless it was done."""
        with self._lock:
            if self._shown:
                return
            self._shown = True
            print(as_json(self.lines) if self._as_array else "\n".join(self._as_text()), flush=True)

    def _as_text(self) -> list[str]:
        if not sys.stdout.isatty():
            return as_lines(self.lines)
        colour = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        return as_lines(self.lines, width=shutil.get_terminal_size().columns, colour=colour)
