"""Slurm's programs as a person calls them on a login node: sbatch and squeue."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bloodcell_dist.errors import UserError

PATIENCE_S = 120.0
QUEUE_PATIENCE_S = 10.0
_OF_A_JOB = ("SLURM", "PMI", "OMPI_")
_SITES = ("SBATCH_", "BLOODCELL_")


def client_environment(environ: Mapping[str, str], site: Path | None) -> dict[str, str]:
    """The environment of Slurm's programs, and so of the jobs: that of this process, and what the site has set.

    What an enclosing job has left in it is taken out: sbatch would go by it, and srun in the new job.

    Args:
        environ: of this process; its SBATCH_ and BLOODCELL_ variables win over the site's.
        site: a file for bash, sourced; None for none.
    """
    own = {name: value for name, value in environ.items() if name == "SLURM_CONF" or not name.startswith(_OF_A_JOB)}
    found = own if site is None else _sourced(site, own) | {k: v for k, v in own.items() if k.startswith(_SITES)}
    if site is not None:
        found["BLOODCELL_SITE"] = str(site)
    if sys.prefix != sys.base_prefix and not found.get("BLOODCELL_CONTAINER"):
        found.setdefault("BLOODCELL_VENV", sys.prefix)
    return found


def submit(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """The number of the job that `sbatch --parsable …` makes. Raises UserError with sbatch's own words."""
    if shutil.which(command[0], path=environ.get("PATH")) is None:
        raise UserError(
            "there is no sbatch here; submit on a login node of the cluster, or train the members one after another "
            "on this machine with `bloodcell-dist sweep run --local`"
        )
    done = _run(command, environ)
    if done.returncode:
        raise UserError(f"sbatch refuses: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}")
    return done.stdout.strip().split(";")[0]  # the rest names the cluster


def in_queue(jobs: Sequence[str], environ: Mapping[str, str]) -> dict[tuple[str, int], str] | None:
    """State (`PENDING`, `RUNNING`, …) of each task of these array jobs that squeue knows; None without an answer."""
    if not jobs or shutil.which("squeue", path=environ.get("PATH")) is None:
        return None
    # Of a single job that is forgotten squeue says that its number is invalid; among several it says nothing.
    done = _run(
        ["squeue", "--noheader", "--array", "--format=%F %K %T", f"--jobs={','.join(jobs)}"], environ, QUEUE_PATIENCE_S
    )
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    tasks = [line.split() for line in done.stdout.splitlines()]
    return {(job, int(index)): state for job, index, state in tasks if index.isdigit()}


def _run(
    command: Sequence[str], environ: Mapping[str, str], patience_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=patience_s)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} does not answer within {patience_s:g} s; try again later") from None


def _sourced(site: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment after bash has read the file; what the file prints goes to standard error."""
    command = ["bash", "-c", 'set -a; . "$1" >&2; exec env -0', "bash", os.fspath(site)]
    done = subprocess.run(command, env=dict(environ), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(f"{site}: bash cannot read it (exit status {done.returncode}); mend the file")
    pairs = [os.fsdecode(pair).partition("=") for pair in done.stdout.split(b"\0") if pair]
    # Functions of the file are for the jobs, which read it themselves; those of the user, `module` say, stay.
    return {name: value for name, _, value in pairs if name in environ or not name.startswith("BASH_FUNC_")}
