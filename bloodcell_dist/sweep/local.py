"""A sweep without Slurm: the members one after another, each in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from bloodcell_dist.errors import Preempted, UserError
from bloodcell_dist.sweep.folder import Plan, Planned, SweepDir

log = logging.getLogger(__name__)

_PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGUSR1: signal.SIGTERM}
"""What stops a sweep, and what its training gets: which other signal it saves on, checkpoint.on_signal says."""
_WORDS = {0: "done", 2: "stopped: bad input", 75: "stopped with a checkpoint", 130: "interrupted"}


def train_members(folder: SweepDir, plan: Plan) -> None:
    """Train those that have no result yet; one that fails holds up no other.

    Raises:
        Preempted: a signal came, or a member stopped with a checkpoint.
        UserError: the working folder is gone.
    """
    if not os.path.isdir(plan.working_folder):
        raise UserError(f"{plan.working_folder}: is gone, and the sweep was planned there; plan it anew with --out")
    with _Child() as child:
        for member in plan.members:
            if folder.run(member.name).result.exists():
                log.info("%s is finished", member.name)
                continue
            log.info("%s: training, see %s", member.name, _log_file(folder, member))
            status = 75 if child.stopped_by else _train(folder, plan, member, child)
            if child.stopped_by or status == Preempted.exit_status:
                raise Preempted(f"stopped at {member.name}; run the same command again to go on")
            log.info("%s: %s", member.name, "done" if status == 0 else f"failed, exit status {status}")


class _Child:
    """The process that trains. What would end this one is passed to it, and it saves."""

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Child:
        self._before = {number: signal.signal(number, self._pass_on) for number in _PASSED_ON}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: list[str], **options: Any) -> int:
        """The exit status of a command; 128 and its number if a signal ended it."""
        self._process = None
        # A process group of its own: Ctrl-C would reach it twice, and the second time it saves nothing.
        process = subprocess.Popen(command, process_group=0, **options)
        came_before, self._process = self.stopped_by, process
        if came_before is not None:
            process.send_signal(_PASSED_ON[came_before])
        status = process.wait()
        return status if status >= 0 else 128 - status

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = signal.Signals(number)
        if self._process is not None:
            self._process.send_signal(_PASSED_ON[self.stopped_by])


def _train(folder: SweepDir, plan: Plan, member: Planned, child: _Child) -> int:
    """Train one member; its exit status. The record is as slurm/lib/job.sh keeps it."""
    record = folder.record(member.index)
    given = os.environ.get("BLOODCELL_TEST_SET")
    test_set = ["--set", f"data.test_path={given}"] if given else []
    _write(record, f"start job=local restart=0 nodes={os.uname().nodename}", "w")
    with open(_log_file(folder, member), "ab") as output:
        status = child.run(
            [sys.executable, "-m", "bloodcell_dist.train", *test_set, *member.arguments],
            cwd=plan.working_folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "BLOODCELL_RECORD": str(record)},
        )
    _write(record, f"end status={status} {_WORDS.get(status, 'stopped: the training failed')}", "a")
    return status


def _write(record: Path, event: str, mode: str) -> None:
    with open(record, mode, encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {event}\n")


def _log_file(folder: SweepDir, member: Planned) -> Path:
    return folder.logs / f"local_{member.index}.out"
