"""What one process sees by itself, without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Callable

from bloodcell_dist.cluster.environment import ProcessInfo
from bloodcell_dist.doctor.asked import Asked, judge_asked
from bloodcell_dist.doctor.devices import look_at_gpus, number_seen
from bloodcell_dist.doctor.examination import examine, judge
from bloodcell_dist.doctor.findings import Finding
from bloodcell_dist.doctor.layout import layout_of
from bloodcell_dist.resolve import Machine

Read = Callable[[Machine], Asked]
"""Reads what is asked for, as it is resolved on a machine."""


def look_alone(read: Read, process: ProcessInfo, problem: str | None, *, show_traceback: bool = False) -> list[Finding]:
    """The lines. `problem`: why the launcher's variables make no sense."""
    layout, gpus = layout_of(process, os.environ, problem), look_at_gpus()
    seen = number_seen(gpus, layout)
    asked = read(Machine(min(seen, 1) if layout.has_several else seen))
    found = examine(asked, layout, process, os.environ, gpus, show_traceback=show_traceback)
    return [*judge_asked(asked), *judge(found)]
