"""Handing a sweep to Slurm, and what is known of its jobs afterwards."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bloodcell_dist.atomic import atomic_write_json, atomic_write_text
from bloodcell_dist.cluster.slurm_client import in_queue, submit
from bloodcell_dist.errors import UserError
from bloodcell_dist.sweep.folder import SweepDir
from bloodcell_dist.sweep.scripts import Submission


def hand_in(
    folder: SweepDir, submission: Submission, indices: Sequence[int], environ: Mapping[str, str]
) -> tuple[str, str]:
    """Write the batch files and submit both; the numbers of the array job and of the report's. Raises UserError."""
    atomic_write_text(folder.members_script, submission.members_text)
    atomic_write_text(folder.report_script, submission.report_text)
    before = submissions(folder)
    array = submit(submission.members_command, environ)
    made = {"array": array, "report": None, "members": list(indices), "at": datetime.now(UTC).isoformat("T", "seconds")}
    atomic_write_json(folder.submitted, [*before, made])
    try:
        made["report"] = submit(report_command(folder, submission, [array, *_still_there(before, environ)]), environ)
    except UserError as error:
        raise UserError(
            f"the members are submitted (job {array}), the report is not: {error}; "
            f"write it afterwards with `bloodcell-dist sweep report {shlex.quote(str(folder.path))}`"
        ) from None
    atomic_write_json(folder.submitted, [*before, made])
    return array, str(made["report"])


def report_command(folder: SweepDir, submission: Submission, after: Sequence[str]) -> list[str]:
    """sbatch for the report once these jobs have ended, however they do."""
    dependency = f"--dependency=afterany:{':'.join(after)}"
    return [*submission.report_command, dependency, str(folder.report_script)]


def submissions(folder: SweepDir) -> list[dict[str, Any]]:
    """What was submitted so far, oldest first."""
    try:
        return list(json.loads(folder.submitted.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []


def queued_members(folder: SweepDir, environ: Mapping[str, str]) -> dict[int, str] | None:
    """Slurm's state of each member in the queue by its index; None where Slurm does not say."""
    found = in_queue([made["array"] for made in submissions(folder)], environ)
    return None if found is None else {index: state for (_, index), state in found.items()}


def site_file(slurm_folder: Path, environ: Mapping[str, str]) -> Path | None:
    """The file with the site's settings, if there is one. Raises UserError for one that is named and not there."""
    if named := environ.get("BLOODCELL_SITE"):
        if not Path(named).is_file():
            raise UserError(f"BLOODCELL_SITE={named}: no such file; name the site's settings, or unset it")
        return Path(named).absolute()
    usual = (Path("slurm", "site.env").absolute(), slurm_folder / "site.env")  # a copy of slurm/ to work in comes first
    return next((file for file in usual if file.is_file()), None)


def _still_there(before: Sequence[Mapping[str, Any]], environ: Mapping[str, str]) -> list[str]:
    """Earlier array jobs that have tasks in the queue."""
    found = in_queue([made["array"] for made in before], environ) or {}
    return sorted({job for job, _ in found})
