"""The folder of a sweep: where everything lies, and the plan in it, which several processes may write at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bloodcell_dist.atomic import TEMPORARY, atomic_write_json, atomic_write_text
from bloodcell_dist.errors import UserError
from bloodcell_dist.locks import take_lock
from bloodcell_dist.outputs import writing
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.sweep.members import Member, differing, digest

_NOT_FOREIGN = (TEMPORARY, ".nfs", "slurm-")


@dataclass(frozen=True)
class Planned:
    """A member with its place in the sweep.

    Attributes:
        index: of its task in the array, from 0.
        name: of its run folder.
        group: name of its configuration, shared by its seeds.
        arguments: of `bloodcell-dist train`.
        settings: those that are not the same in all members.
        digest: of all its settings.
    """

    index: int
    name: str
    group: str
    arguments: tuple[str, ...]
    settings: dict[str, Any]
    digest: str


@dataclass(frozen=True)
class Plan:
    """A sweep as planned.

    Attributes:
        name: of the sweep.
        working_folder: where its trainings start.
        members: by index.
    """

    name: str
    working_folder: str
    members: tuple[Planned, ...]


@dataclass(frozen=True)
class SweepDir:
    """The folder of one sweep. `path` is absolute."""

    path: Path

    @property
    def spec(self) -> Path:
        """The sweep's file as read."""
        return self.path / "sweep.yaml"

    @property
    def members(self) -> Path:
        """The plan, JSON; its presence says that the folder is complete."""
        return self.path / "members.json"

    @property
    def logs(self) -> Path:
        """What the jobs print."""
        return self.path / "logs"

    @property
    def members_script(self) -> Path:
        """Batch file of the members."""
        return self.path / "members.sbatch"

    @property
    def report_script(self) -> Path:
        """Batch file of the report."""
        return self.path / "report.sbatch"

    @property
    def submitted(self) -> Path:
        """The numbers of its jobs, JSON."""
        return self.path / "submitted.json"

    @property
    def plots(self) -> Path:
        """Folder of PNG files."""
        return self.path / "plots"

    def arguments(self, index: int) -> Path:
        """The arguments of a member, a NUL behind each."""
        return self.path / "arguments" / str(index)

    def record(self, index: int) -> Path:
        """What became of a member's job, a line for each event."""
        return self.path / "jobs" / str(index)

    def run(self, name: str) -> RunDir:
        """The run folder of a member."""
        return RunDir(self.path / "runs" / name)

    def comparison(self, ending: str) -> Path:
        """`comparison` with this ending."""
        return self.path / f"comparison{ending}"

    def plan(self, name: str, members: Sequence[Member], working_folder: Path) -> Plan:
        """The members with their places here. Nothing is written."""
        settings = differing([member.settings for member in members])
        placed = (
            Planned(
                index=index,
                name=member.name,
                group=member.group,
                arguments=(*member.arguments, "--run-dir", str(self.run(member.name).path)),
                settings=differs,
                digest=digest(member.settings),
            )
            for index, (member, differs) in enumerate(zip(members, settings, strict=True))
        )
        return Plan(name, str(working_folder), tuple(placed))

    def read_plan(self) -> Plan:
        """The plan that was written here. Raises UserError."""
        try:
            raw = json.loads(self.members.read_text(encoding="utf-8", errors="surrogateescape"))
            names = [field.name for field in fields(Planned)]
            rows = ({name: one[name] for name in names} for one in raw["members"])
            members = (Planned(**{**row, "arguments": tuple(row["arguments"])}) for row in rows)
            return Plan(raw["name"], raw["working_folder"], tuple(members))
        except OSError as error:
            why = f"members.json: {error.strerror}"
        except (ValueError, TypeError, KeyError):
            why = "members.json is not what `sweep plan` writes"
        raise UserError(f"{self.path}: is not the folder of a sweep ({why}); give the folder that `sweep plan` made")

    def agreed(self, plan: Plan) -> Plan:
        """The plan that counts: the one that is here already, if it is of the same members. Raises UserError."""
        if not self.members.exists():
            self._refuse_foreign()
            return plan
        here = self.read_plan()
        if difference := _difference(here, plan):
            raise UserError(
                f"{self.path}: was planned with other members ({difference}); give another --out for the new sweep"
            )
        return here

    def write(self, plan: Plan, spec_text: str) -> Plan:
        """Make the folder, unless it is there; the plan that counts. Raises UserError."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            with open(self.path / ".lock", "a") as lock:
                take_lock(lock, wait=True)
                plan = self.agreed(plan)
                self._fill(plan, spec_text)
        return plan

    def _fill(self, plan: Plan, spec_text: str) -> None:
        for name in ("arguments", "jobs", "logs", "plots", "runs"):
            (self.path / name).mkdir(exist_ok=True)
        if not self.spec.exists() or self.spec.read_text(encoding="utf-8") != spec_text:
            atomic_write_text(self.spec, spec_text)
        if not self.members.exists():
            for member in plan.members:
                text = "".join(f"{argument}\0" for argument in member.arguments)
                atomic_write_text(self.arguments(member.index), text)
            content = {
                "name": plan.name,
                "working_folder": plan.working_folder,
                "members": [{**vars(one), "run_dir": self.run(one.name).path} for one in plan.members],
            }
            atomic_write_json(self.members, content)

    def _refuse_foreign(self) -> None:
        """UserError if the folder holds something that is not of a sweep."""
        names = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        foreign = [name for name in names if not name.startswith(_NOT_FOREIGN)]
        if foreign and ".lock" not in names and "members.json" not in names:
            raise UserError(f"{self.path}: holds {foreign[0]} and no sweep; give a new or empty folder to --out")


def _difference(here: Plan, plan: Plan) -> str:
    """What is not the same, in a few words; the order does not matter."""
    ours, theirs = ({one.name: one for one in some.members} for some in (here, plan))
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours:
            return f"{name} {'is gone' if name in ours else 'is new'}"
        if differs := set(ours[name].arguments) ^ set(theirs[name].arguments):
            return f"{name} is not the same: {', '.join(sorted(differs)[:2])}"
        if ours[name].digest != theirs[name].digest:
            return f"the configuration of {name} has changed"
    return ""
