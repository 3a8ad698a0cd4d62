"""The batch files of a sweep: one array job for its members, and a small job for the comparison after them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bloodcell_dist.cluster.slurm import Options, batch_text, index_list, output_name
from bloodcell_dist.sweep.folder import Plan, SweepDir

_BODY = """\
cd -- {working_folder}
sweep={folder}
index=${{SLURM_ARRAY_TASK_ID:-}}
export BLOODCELL_RECORD="$sweep/jobs/$index"
# shellcheck source=/dev/null
. {job}
# shellcheck source=/dev/null
. {member}
train_member "$sweep" "$index"
"""
_REPORT_BODY = """\
cd -- {working_folder}
# shellcheck source=/dev/null
. {job}
bloodcell_run bloodcell-dist sweep report {folder}
"""
_USUAL: Options = {
    "nodes": 1,
    "time": "12:00:00",
    "signal": "B:USR1@300",
    "requeue": True,
    "open-mode": "append",
}
"""What the sweep's file may change."""
_FOR_BOTH = {"account": "-A", "partition": "-p", "qos": "-q", "reservation": None, "clusters": "-M"}
"""What a report needs too of the options that members get, with its short form."""


@dataclass(frozen=True)
class Submission:
    """Texts and commands, ready to be handed in.

    Attributes:
        members_text: of `SweepDir.members_script`.
        report_text: of `SweepDir.report_script`.
        members_command: sbatch for the first.
        report_command: sbatch for the second, without its dependency and file.
    """

    members_text: str
    report_text: str
    members_command: tuple[str, ...]
    report_command: tuple[str, ...]


def prepare_submission(
    folder: SweepDir,
    plan: Plan,
    slurm_folder: Path,
    *,
    indices: Sequence[int],
    at_once: int,
    slurm: Options,
    more: Sequence[str],
) -> Submission:
    """What `sweep submit` hands in; nothing is written. Raises UserError.

    Args:
        folder: of the sweep.
        plan: its members.
        slurm_folder: the one with lib/job.sh.
        indices: of the members to train, in rising order.
        at_once: how many of them at the same time.
        slurm: long options of sbatch for the members.
        more: options of sbatch from the command line, which win over all others.
    """
    places = {"folder": folder.path, "working_folder": plan.working_folder}
    places |= {name: slurm_folder / "lib" / f"{name}.sh" for name in ("job", "member")}
    quoted = {name: shlex.quote(str(place)) for name, place in places.items()}
    logs = str(folder.logs)
    members: Options = {
        "job-name": plan.name,
        "array": index_list(indices, at_once),
        **slurm,
        **{name: value for name, value in _USUAL.items() if name not in slurm},
        "output": output_name(logs, "%A_%a.out"),
    }
    report: Options = {
        "job-name": f"{plan.name}-report",
        "nodes": 1,
        "ntasks": 1,
        "time": "00:30:00",
        "requeue": True,
        "open-mode": "append",
        "output": output_name(logs, "report_%j.out"),
        **{name: value for name, value in slurm.items() if name in _FOR_BOTH},
    }
    comment = f"of the sweep {plan.name}, written by `bloodcell-dist sweep submit`"
    return Submission(
        batch_text(members, f"Members {comment}", _BODY.format(**quoted)),
        batch_text(report, f"Comparison {comment}", _REPORT_BODY.format(**quoted)),
        ("sbatch", "--parsable", *more, str(folder.members_script)),
        ("sbatch", "--parsable", *_for_report(more)),
    )


def _for_report(more: Sequence[str]) -> list[str]:
    """Those of the options that the report needs too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, short in _FOR_BOTH.items():
        parser.add_argument(*filter(None, (short, f"--{name}")), dest=name)
    known, _ = parser.parse_known_args(more)
    return [f"--{name}={value}" for name, value in vars(known).items() if value is not None]
