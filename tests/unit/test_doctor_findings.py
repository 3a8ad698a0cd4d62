"""The lines of `bloodcell-dist doctor`: columns, JSON, and several ranks as one."""

from __future__ import annotations

import json

import pytest

from bloodcell_dist.doctor.findings import (
    Finding,
    among_ranks,
    as_json,
    as_lines,
    error,
    explained,
    listed,
    ok,
    warning,
    worst,
)

LINES = (
    ok("python", "3.11.7"),
    warning("run folder", "4.0 GB free", "free some space"),
    error("gpus", "none seen", "another node"),
)


def test_lines_stand_in_columns() -> None:
    assert as_lines(LINES) == [
        "ok       python      3.11.7",
        "warning  run folder  4.0 GB free; fix: free some space",
        "error    gpus        none seen; fix: another node",
        "1 ok, 1 warning, 1 error",
    ]


def test_a_fix_that_does_not_fit_gets_a_line_of_its_own() -> None:
    assert as_lines(LINES, width=50) == [
        "ok       python      3.11.7",
        "warning  run folder  4.0 GB free",
        "                     fix: free some space",
        "error    gpus        none seen; fix: another node",
        "1 ok, 1 warning, 1 error",
    ]


def test_colours_are_of_the_levels_only() -> None:
    plain, coloured = as_lines(LINES), as_lines(LINES, colour=True)
    assert coloured[0] == "\033[32mok     \033[0m  python      3.11.7"
    assert coloured[1].startswith("\033[33mwarning\033[0m  ") and coloured[2].startswith("\033[1;31merror  \033[0m  ")
    assert [line.split("\033[0m")[-1] for line in coloured[:3]] == [line[7:] for line in plain[:3]]


@pytest.mark.parametrize(
    ("levels", "count"),
    [
        ((), "0 ok, no warnings, no errors"),
        (("ok", "ok"), "2 ok, no warnings, no errors"),
        (("warning", "warning", "error"), "0 ok, 2 warnings, 1 error"),
    ],
)
def test_the_last_line_counts(levels: tuple, count: str) -> None:
    findings = [Finding("x", level, "t", "" if level == "ok" else "f") for level in levels]
    assert as_lines(findings)[-1] == count


def test_json_is_an_array_of_objects() -> None:
    assert json.loads(as_json(LINES)) == [
        {"name": "python", "level": "ok", "text": "3.11.7", "fix": ""},
        {"name": "run folder", "level": "warning", "text": "4.0 GB free", "fix": "free some space"},
        {"name": "gpus", "level": "error", "text": "none seen", "fix": "another node"},
    ]
    assert json.loads(as_json([])) == []


@pytest.mark.parametrize(
    ("findings", "level"),
    [((), "ok"), (LINES[:1], "ok"), (LINES[:2], "warning"), (LINES, "error"), (LINES[::-1], "error")],
)
def test_the_worst_level_counts(findings: tuple[Finding, ...], level: str) -> None:
    assert worst(findings) == level


@pytest.mark.parametrize(("level", "fix"), [("ok", "something"), ("warning", ""), ("error", "")])
def test_only_what_is_wrong_has_a_fix(level: str, fix: str) -> None:
    with pytest.raises(ValueError, match="x: a fix belongs to a warning or an error"):
        Finding("x", level, "text", fix)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "text", "fix"),
    [
        ("a is wrong; use b", "a is wrong", "use b"),
        ("a is wrong", "a is wrong", "otherwise"),
        ("a is wrong; expected b", "a is wrong; expected b", "otherwise"),
        ("a is wrong\nb too; use c", "a is wrong / b too", "use c"),
    ],
)
def test_the_remedy_of_a_message_is_the_fix(message: str, text: str, fix: str) -> None:
    assert explained("x", message, "otherwise") == error("x", text, fix)


GOOD, POOR = ok("scratch", "90 GB free"), warning("scratch", "3.1 GB free", "free some")
POORER, BAD = warning("scratch", "1.2 GB free", "free some"), error("scratch", "cannot be written", "chmod")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], []),
        ([("n1", [GOOD]), ("n2", [GOOD])], [GOOD]),
        ([("n1", [GOOD]), ("n2", [ok("scratch", "80 GB free")])], [GOOD]),
        ([("n1", [GOOD, ok("scratch", "2")]), ("n2", [])], [GOOD, ok("scratch", "2")]),
        ([("n1", [GOOD]), ("n2", [POOR])], [warning("scratch", "n2: 3.1 GB free", "free some")]),
        ([("n1", [POOR]), ("n2", [POORER])], [POOR]),
        ([("n1", [POOR]), ("n1", []), ("n2", [POORER])], [POOR]),
        (
            [("n1", [GOOD]), ("n2", [BAD]), ("n2", [BAD]), ("n3", [POOR])],
            [error("scratch", "n2: cannot be written", "chmod"), warning("scratch", "n3: 3.1 GB free", "free some")],
        ),
        (
            [("n1", [ok("a", "1"), ok("b", "2")]), ("n2", [ok("b", "2"), ok("c", "3")])],
            [ok("a", "1"), ok("b", "2"), ok("c", "3")],
        ),
    ],
)
def test_ranks_are_told_as_one_machine(found: list[tuple[str, list[Finding]]], expected: list[Finding]) -> None:
    assert among_ranks(found) == expected


@pytest.mark.parametrize(
    ("nodes", "text"), [(["a"], "a"), (["a", "b", "c"], "a, b, c"), (list("abcde"), "a, b, c and 2 more")]
)
def test_many_nodes_are_counted(nodes: list[str], text: str) -> None:
    assert listed(nodes) == text
