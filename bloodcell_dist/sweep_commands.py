"""What `bloodcell-dist sweep plan`, `submit`, `status`, `report` and `run` do."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from bloodcell_dist.cluster.slurm_client import client_environment
from bloodcell_dist.errors import TrainingFailed, UserError
from bloodcell_dist.resolve import absolute
from bloodcell_dist.sweep.folder import Plan, SweepDir
from bloodcell_dist.sweep.local import train_members
from bloodcell_dist.sweep.members import expand
from bloodcell_dist.sweep.scripts import prepare_submission
from bloodcell_dist.sweep.spec import Spec, read_spec
from bloodcell_dist.sweep.submission import hand_in, queued_members, report_command, site_file

# What compares is imported where it is needed: scikit-learn takes a second, which planning and submitting do without.

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sweep:
    """A sweep's file and the plan that it makes in a folder."""

    spec: Spec
    text: str
    folder: SweepDir
    plan: Plan


def plan_sweep(path: str, overrides: Sequence[str], out: str | None) -> None:
    """Write the folder of a sweep. Standard output is its path alone, for shells; members stand on standard error."""
    sweep = _read(path, overrides, out)
    plan = sweep.folder.write(sweep.plan, sweep.text)
    for member in plan.members:
        print(f"{member.index:3d} {member.name}", file=sys.stderr)
    print(f"{len(plan.members)} members, {sweep.spec.at_once} at a time under Slurm", file=sys.stderr)
    print(sweep.folder.path)


def submit_sweep(
    path: str, overrides: Sequence[str], out: str | None, at_once: int | None, more: Sequence[str], *, dry_run: bool
) -> None:
    """Submit the members that are neither finished nor in the queue, and the report after them.

    Where all are finished, only the report is made, here.

    Args:
        path: the sweep's file.
        overrides: `section.key=value` for all members.
        out: the sweep's folder, None for the usual one.
        at_once: instead of the file's.
        more: options for sbatch.
        dry_run: only print what would be written and called.
    """
    if at_once is not None and at_once < 1:
        raise UserError(f"--at-once {at_once}: expected a number from 1")
    sweep = _read(path, overrides, out)
    slurm_folder = Path(str(resources.files("bloodcell_dist") / "slurm")).resolve()
    site = site_file(slurm_folder, os.environ)
    environ = client_environment(os.environ, site)
    indices = _left(sweep.folder, sweep.plan, environ)
    if not indices:
        if not dry_run and all(sweep.folder.run(member.name).result.exists() for member in sweep.plan.members):
            _compare(sweep.folder)
        return
    submission = prepare_submission(
        sweep.folder,
        sweep.plan,
        slurm_folder,
        indices=indices,
        at_once=at_once or sweep.spec.at_once,
        slurm=sweep.spec.slurm,
        more=more,
    )
    if dry_run:
        print(f"# {sweep.folder.members_script}\n{submission.members_text}")
        print(f"# {sweep.folder.report_script}\n{submission.report_text}")
        print(f"# site settings: {site or 'none'}")
        for name in sorted(name for name in environ if name.startswith("SBATCH_")):
            print(f"# {name}={shlex.quote(environ[name])}")
        for command in (submission.members_command, report_command(sweep.folder, submission, ["ARRAY_JOB"])):
            print(shlex.join(command))
        return
    sweep.folder.write(sweep.plan, sweep.text)
    array, report = hand_in(sweep.folder, submission, indices, environ)
    number = f"{len(indices)} {'member' if len(indices) == 1 else 'members'}"
    log.info("array job %s trains %s, job %s compares afterwards", array, number, report)
    log.info("bloodcell-dist sweep status %s", shlex.quote(str(sweep.folder.path)))


def run_sweep(path: str, overrides: Sequence[str], out: str | None, *, local: bool) -> None:
    """Train the members here, one after another, and compare. Raises TrainingFailed at the end if one failed."""
    if not local:
        raise UserError(
            "sweep run trains one member after another on this machine; say so with --local, "
            f"or submit them to Slurm with `bloodcell-dist sweep submit {shlex.quote(path)}`"
        )
    from bloodcell_dist.sweep.report import status_json

    sweep = _read(path, overrides, out)
    plan = sweep.folder.write(sweep.plan, sweep.text)
    train_members(sweep.folder, plan)
    _compare(sweep.folder)
    if failed := [one for one in status_json(sweep.folder.path) if one["state"] != "done"]:
        reasons = "; ".join(f"{one['name']}: {one['reason']}" for one in failed)
        raise TrainingFailed(f"{len(failed)} of {len(plan.members)} members failed ({reasons}); the others compare")


def show_status(out: str, *, as_array: bool) -> None:
    """Print how each member is."""
    from bloodcell_dist.sweep.report import status_json, status_lines

    folder = _folder(out).path
    print(json.dumps(status_json(folder), indent=2) if as_array else "\n".join(status_lines(folder)))


def report_sweep(out: str) -> None:
    """Compare what there is, and write the comparison."""
    _compare(_folder(out))


def _compare(folder: SweepDir) -> None:
    from bloodcell_dist.sweep.report import report_sweep

    report_sweep(folder.path)
    print(folder.comparison(".md").read_text(encoding="utf-8"))


def _folder(out: str) -> SweepDir:
    return SweepDir(Path(absolute(out, Path.cwd())))


def _read(path: str, overrides: Sequence[str], out: str | None) -> _Sweep:
    """The sweep's file with all members checked, and its plan or the equal one that is in the folder already."""
    file = Path(path).absolute()
    spec = read_spec(file)
    members = expand(spec, file, overrides, Path.cwd())
    folder = _folder(out or os.path.join("sweeps", spec.name))
    plan = folder.agreed(folder.plan(spec.name, members, Path.cwd()))
    return _Sweep(spec, file.read_text(encoding="utf-8"), folder, plan)


def _left(folder: SweepDir, plan: Plan, environ: Mapping[str, str]) -> list[int]:
    """Indices of the members that are neither finished nor in the queue; what is said of the others."""
    queued = queued_members(folder, environ) or {}
    left = []
    for member in plan.members:
        if folder.run(member.name).result.exists():
            log.info("%s is finished", member.name)
        elif member.index in queued:
            log.info("%s is in the queue (%s)", member.name, queued[member.index].lower())
        else:
            left.append(member.index)
    if not left:
        log.info("nothing to submit")
    return left
