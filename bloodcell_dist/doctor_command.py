"""What `bloodcell-dist doctor` does: looks, alone or with all ranks of its launcher, and says what it has found."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
from pathlib import Path

from bloodcell_dist import logs
from bloodcell_dist.cluster.environment import ALONE, ProcessInfo, process_info
from bloodcell_dist.commandline import overrides_of
from bloodcell_dist.config import settings_or_defaults
from bloodcell_dist.doctor.alone import look_alone
from bloodcell_dist.doctor.asked import Asked, read_asked
from bloodcell_dist.doctor.report import Report
from bloodcell_dist.errors import UserError
from bloodcell_dist.resolve import Machine


def run_doctor(options: argparse.Namespace) -> None:
    """Look, and print what was found. Raises SystemExit with status 2 if there is an error."""
    with logs.silence():  # standard output is for the lines
        status = _run(options)
    if status:
        raise SystemExit(status)


def _run(options: argparse.Namespace) -> int:
    report, (process, problem) = Report(options.json), _who()

    def read(machine: Machine) -> Asked:
        overrides = overrides_of(options)
        return read_asked(options.config, overrides, options.run_dir, machine, os.environ, Path.cwd())

    if not options.quick:
        from bloodcell_dist.doctor.together import look_together

        strategy = settings_or_defaults(options.config, overrides_of(options)).distribute.strategy
        return look_together(read, process, problem, strategy, report, show_traceback=options.traceback)
    if process.is_chief:
        report.lines += look_alone(read, process, problem, show_traceback=options.traceback)
        report.show()
    return report.exit_status


def _who() -> tuple[ProcessInfo, str | None]:
    """This process among those of its launcher; or alone, and why the launcher's variables make no sense."""
    host = platform.node()
    try:
        return process_info(os.environ, host), None
    except UserError as failure:
        return dataclasses.replace(ALONE, hostname=host), str(failure)
