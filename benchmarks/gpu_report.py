"""What `gpu_check.py` finds, kept in JSON, and what follows from it: augmentation's share, the ratio to PyTorch."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from gpu_tables import as_markdown

BACKBONES = ("cnn", "mobilenetv3small", "efficientnetb0", "convnextbase", "efficientnetv2s", "efficientnetv2m")
POLICIES = ("none", "seed")
PRECISION = "mixed_bfloat16"  # in which PyTorch is measured too
SHARE_GOALS = {"convnextbase": 0.05}  # augmentation's share of a step is to stay under it
RATIO_GOAL = 1.2  # of our images/s to those of PyTorch
VERSION = 2  # of what is measured and how it is kept
NOT_YET = "not measured yet"


@dataclass(frozen=True)
class Case:
    """What is timed of this package.

    Attributes:
        batch: examples per replica and update.
        xla: as `train.xla`.
        strategy: single, mirrored or horovod.
    """

    kind: ClassVar[str] = "speed"

    backbone: str
    batch: int
    policy: str
    xla: str = "on"
    strategy: str = "single"
    replicas: int = 1

    def __str__(self) -> str:
        where = "" if self.strategy == "single" else f", {self.strategy} on {self.replicas}"
        return f"{self.backbone}, batch {self.batch}, policy {self.policy}, XLA {self.xla}{where}"


@dataclass(frozen=True)
class TimmCase:
    """What is timed of PyTorch.

    Attributes:
        mode: of torch.compile; eager: without.
    """

    kind: ClassVar[str] = "timm"

    backbone: str
    batch: int
    mode: str

    def __str__(self) -> str:
        return f"PyTorch's {self.backbone}, batch {self.batch}, {self.mode}"


AnyCase = Case | TimmCase


class Report:
    """The findings, written after each one.

    Attributes:
        planned: all that is to be measured, so that the report tells what was not.
    """

    def __init__(self, folder: Path, machine: dict[str, Any], how: dict[str, Any], afresh: bool) -> None:
        self.folder = folder
        self.planned: list[AnyCase] = []
        self.content: dict[str, Any] = {
            "machine": machine,
            "how": how | {"version": VERSION},
            "tests": {},
            "tests_left_out": None,
            "speed": [],
            "pytorch": None,
            "pytorch_left_out": None,
            "timm": [],
            "several_gpus": None,
            "not_made": [],
        }
        if not afresh:
            self._take_up()

    def _take_up(self) -> None:
        """Keep what an earlier call found on the same machine in the same way."""
        try:
            before = json.loads((self.folder / "gpu_check.json").read_text())
            same = all(before[name] == self.content[name] for name in ("machine", "how"))
        except (OSError, ValueError, KeyError, TypeError):
            return
        if same:
            self.content |= {name: before[name] for name in ("tests", "speed", "pytorch", "timm")}
            print(f"goes on with {self.folder}/gpu_check.json; --afresh measures all anew")
        else:
            print(f"{self.folder}/gpu_check.json is of another machine, version or way to measure: begins anew")

    def has(self, case: AnyCase) -> bool:
        return any(row["case"] == asdict(case) for row in self.content[case.kind])

    def add_tests(self, file: str, found: list[dict[str, Any]]) -> None:
        self.content["tests"][file] = found
        for test in found:
            print(f"{file}: {test['name']}: {test['outcome']} {test['reason']}".rstrip())
        self.write()

    def add(self, case: AnyCase, found: dict[str, Any]) -> None:
        self.content[case.kind].append({"case": asdict(case), **found})
        print(f"{case}: " + (f"{found['images_per_s']:,.0f} images/s" if "images_per_s" in found else found["reason"]))
        self.write()

    def found_pytorch(self, found: dict[str, Any] | str) -> None:
        """What there is of it, or why it is not measured; what another PyTorch did is given up."""
        if isinstance(found, str):
            self.content["pytorch_left_out"] = found
        elif self.content["pytorch"] != found:
            self.content |= {"pytorch": found, "timm": []}
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        self.content["not_made"].append({"what": what, "reason": why})
        print(f"{what}: not made, {why}")
        self.write()

    def failed(self) -> bool:
        """Whether a test or a measurement did; what was left out did not."""
        tests = itertools.chain.from_iterable(self.content["tests"].values())
        bad = [test for test in tests if test["outcome"] == "failed"]
        return bool(bad) or any("reason" in row for row in self.content["speed"] + self.content["timm"])

    def write(self) -> None:
        self.content["date"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self.content["augmentation"] = shares(self.content, self.planned)
        self.content["beside_pytorch"] = ratios(self.content, self.planned)
        for name, text in (("json", json.dumps(self.content, indent=1) + "\n"), ("md", as_markdown(self.content))):
            unfinished = self.folder / f".gpu_check.{name}"
            unfinished.write_text(text)
            os.replace(unfinished, self.folder / f"gpu_check.{name}")


# What follows.


def shares(content: dict[str, Any], planned: Sequence[AnyCase]) -> list[dict[str, Any]]:
    """Augmentation's share of a step, (t_seed - t_none) / t_seed, by backbone, batch and XLA, or why there is none.

    It is taken round by round: those of the two were made by turns.
    """
    cases = [case for case in _cases(content["speed"], planned, Case) if case.strategy == "single"]
    found = []
    for backbone, batch, xla in dict.fromkeys((case.backbone, case.batch, case.xla) for case in cases):
        pair = [Case(backbone, batch, policy, xla) for policy in POLICIES]
        goal = None if xla == "off" else SHARE_GOALS.get(backbone)  # off is there to compare, nobody's choice
        here = {"backbone": backbone, "batch": batch, "xla": xla, "goal": goal, "met": None}
        found.append(here | _share([_row_of(content, case) for case in pair], goal, _counts(content)))
    return found


def _share(rows: Sequence[dict[str, Any]], goal: float | None, counts: bool) -> dict[str, Any]:
    none, seed = rows
    reasons = [f"{policy}: {row['reason']}" for policy, row in zip(POLICIES, rows, strict=True) if "reason" in row]
    if reasons:
        same = len({row.get("reason") for row in rows}) == 1
        return {"reason": none["reason"] if same else "; ".join(reasons)}
    if "seed" not in none["beside"] or "none" not in seed["beside"]:
        return {"reason": "the two were not measured by turns"}
    values = [1.0 - base / whole for base, whole in zip(none["rounds_ms"], seed["rounds_ms"], strict=True)]
    share = statistics.median(values)
    return {
        "share": round(share, 6),
        "share_range": [round(min(values), 6), round(max(values), 6)],
        "update_ms": [none["update_ms"], seed["update_ms"]],
        "met": share < goal if counts and goal is not None else None,
    }


def ratios(content: dict[str, Any], planned: Sequence[AnyCase]) -> list[dict[str, Any]]:
    """Our images/s to PyTorch's by backbone and batch, the best of each, or why there is none."""
    ours = [case for case in _cases(content["speed"], planned, Case) if case.strategy == "single"]
    ours = [case for case in ours if case.policy == "none"]
    theirs = _cases(content["timm"], planned, TimmCase)
    without = (content["pytorch_left_out"] or NOT_YET).partition(";")[0]
    found = []
    for backbone, batch in dict.fromkeys((case.backbone, case.batch) for case in [*ours, *theirs]):
        mine = [_row_of(content, case) for case in ours if (case.backbone, case.batch) == (backbone, batch)]
        other = [_row_of(content, case) for case in theirs if (case.backbone, case.batch) == (backbone, batch)]
        here = {"backbone": backbone, "batch": batch, "goal": RATIO_GOAL, "met": None}
        found.append(here | _ratio(mine, other or [{"reason": without}], content))
    return found


def _ratio(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], content: dict[str, Any]) -> dict[str, Any]:
    mine, other = _best(ours), _best(theirs)
    for whose, row in (("PyTorch", other), ("ours", mine)):
        if "reason" in row:
            return {"reason": f"{whose}: {row['reason']}"}
    if mine["precision"] != PRECISION:
        return {"reason": f"ours computed in {mine['precision']}, PyTorch in {other['precision']}"}
    ratio = mine["images_per_s"] / other["images_per_s"]
    return {
        "ratio": round(ratio, 6),
        "images_per_s": [mine["images_per_s"], other["images_per_s"]],
        "weights": [mine["weights"], other["weights"]],
        "xla": mine["xla"],
        "mode": other["case"]["mode"],
        "met": ratio >= RATIO_GOAL if _counts(content) else None,
    }


def _best(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return max(rows, key=lambda row: row.get("images_per_s", 0.0), default={"reason": NOT_YET})


def _counts(content: dict[str, Any]) -> bool:
    """Whether goals are met or missed: on a GPU only."""
    return content["how"]["device"] != "cpu"


def _cases(rows: Iterable[dict[str, Any]], planned: Sequence[AnyCase], kind: type[Any]) -> list[Any]:
    """All of a kind, those planned first."""
    known = [case for case in planned if isinstance(case, kind)]
    return list(dict.fromkeys([*known, *(kind(**row["case"]) for row in rows)]))


def _row_of(content: dict[str, Any], case: AnyCase) -> dict[str, Any]:
    """Its figures, or the reason for none."""
    row = next((row for row in content[case.kind] if row["case"] == asdict(case)), None)
    left_out = next((item["reason"] for item in content["not_made"] if item["what"] == str(case)), NOT_YET)
    return row or {"reason": left_out}
