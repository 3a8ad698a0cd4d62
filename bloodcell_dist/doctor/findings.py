"""What a check has found, in a line: ok, warning or error, and how to mend it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]

LEVELS: tuple[Level, ...] = ("ok", "warning", "error")
_COLOURS = {"ok": "32", "warning": "33", "error": "1;31"}
_MANY_NODES = 3


@dataclass(frozen=True)
class Finding:
    """One line. Whatever is not ok says how to mend it.

    Attributes:
        name: of the check; the same for all that one check has found.
        level: ok, warning or error.
        text: what was found.
        fix: what to do about it; empty where it is ok.
    """

    name: str
    level: Level
    text: str
    fix: str = ""

    def __post_init__(self) -> None:
        if (self.level == "ok") == bool(self.fix):
            raise ValueError(f"{self.name}: a fix belongs to a warning or an error, and only there")


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", text)


def warning(name: str, text: str, fix: str) -> Finding:
    """It works, but not as it should."""
    return Finding(name, "warning", text, fix)


def error(name: str, text: str, fix: str) -> Finding:
    """It will not work."""
    return Finding(name, "error", text, fix)


def explained(name: str, message: str, otherwise: str) -> Finding:
    """The error that the message of a UserError tells, whose remedy stands behind a semicolon; else `otherwise`."""
    whole = " / ".join(message.splitlines())
    text, _, remedy = whole.partition("; ")
    if not remedy or remedy.startswith("expected"):
        return error(name, whole, otherwise)
    return error(name, text, remedy)


def worst(findings: Sequence[Finding]) -> Level:
    """The worst of their levels; ok if there are none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def among_ranks(found: Sequence[tuple[str, Sequence[Finding]]]) -> list[Finding]:
    """The findings of all ranks as if they were of one machine; what is wrong on some nodes only names them.

    Problems that differ in figures only are told once, with those of the first rank.

    Args:
        found: the node and the findings of each rank, in order of rank.
    """
    names = dict.fromkeys(finding.name for _, findings in found for finding in findings)
    return [finding for name in names for finding in _merged([(node, _named(name, all_)) for node, all_ in found])]


def _named(name: str, findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


def _merged(found: Sequence[tuple[str, Sequence[Finding]]]) -> list[Finding]:
    """The findings of one check."""
    everywhere = list(dict.fromkeys(node for node, findings in found if findings))
    first: dict[tuple[str, ...], Finding] = {}
    places: dict[tuple[str, ...], list[str]] = {}
    for node, findings in found:
        for finding in findings:
            key = (finding.level, finding.fix, re.sub(r"[0-9.,]+", "0", finding.text))
            first.setdefault(key, finding)
            places.setdefault(key, []).append(node)
    problems = [key for key in first if first[key].level != "ok"]
    if not problems:
        return next(list(findings) for _, findings in found if findings)
    return [_placed(first[key], list(dict.fromkeys(places[key])), everywhere) for key in problems]


def _placed(finding: Finding, nodes: Sequence[str], everywhere: Sequence[str]) -> Finding:
    if list(nodes) == list(everywhere):
        return finding
    return dataclasses.replace(finding, text=f"{listed(nodes)}: {finding.text}")


def listed(nodes: Sequence[str]) -> str:
    """`n1, n2, n3 and 5 more`."""
    more = len(nodes) - _MANY_NODES
    return ", ".join(nodes[:_MANY_NODES]) + (f" and {more} more" if more > 0 else "")


def as_lines(findings: Sequence[Finding], *, width: int | None = None, colour: bool = False) -> list[str]:
    """The findings in columns, and a last line that counts them.

    Args:
        findings: in the order of the lines.
        width: of a terminal; a fix that would not fit gets a line of its own. None never breaks a line.
        colour: whether the terminal is to show the levels in colour.
    """
    column = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        level = f"{finding.level:<7}"
        if colour:
            level = f"\033[{_COLOURS[finding.level]}m{level}\033[0m"
        start, text = f"{level}  {finding.name:<{column}}  ", finding.text
        if finding.fix and width is not None and len(f"{text}; fix: {finding.fix}") > width - column - 11:
            lines += [start + text, f"{'':<{column + 11}}fix: {finding.fix}"]
        else:
            lines.append(start + text + (f"; fix: {finding.fix}" if finding.fix else ""))
    counts = [sum(finding.level == level for finding in findings) for level in LEVELS]
    return [*lines, f"{counts[0]} ok, {_count(counts[1], 'warning')}, {_count(counts[2], 'error')}"]


def as_json(findings: Sequence[Finding]) -> str:
    """An array of {name, level, text, fix}."""
    return json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2, ensure_ascii=False)


def _count(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
