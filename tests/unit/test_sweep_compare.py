"""Which order of configurations is sure, by ranges set by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bloodcell_dist.rundir import RunDir
from bloodcell_dist.sweep.collect import Found
from bloodcell_dist.sweep.compare import compare, figures_of, not_sure, range_of
from bloodcell_dist.sweep.folder import Planned

Score = tuple[float, float, float] | float | None
"""Macro-F1 with the ends of its interval; without; not there."""


def found(index: int, group: str, test: Score, val: Score = 0.9, **more: Any) -> Found:
    """A finished member with these figures."""
    result: dict[str, Any] = {"intervals": {}, **more}
    for name, score in (("test_macro_f1", test), ("val_macro_f1", val)):
        value, *interval = score if isinstance(score, tuple) else (score,)
        result[name] = value
        if interval:
            result["intervals"][name] = interval
    member = Planned(index, f"{group}-{index}", group, (), {}, "")
    return Found(member, RunDir(Path("/runs") / member.name), "done", result=result)


def members(**groups: Sequence[Score]) -> list[Found]:
    pairs = [(group, score) for group, scores in groups.items() for score in scores]
    return [found(index, group, score) for index, (group, score) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([(0.8, 0.7, 0.9)], (0.7, 0.9)),
        ([(0.8, 0.7, 0.9), (0.85, 0.75, 0.95)], (0.7, 0.95)),
        ([0.8, 0.85, 0.83], (0.8, 0.85)),
        ([0.99, (0.8, 0.7, 0.9)], (0.7, 0.99)),
        ([0.8], (-math.inf, math.inf)),
    ],
)
def test_ranges(scores: list[Score], expected: tuple[float, float]) -> None:
    (row,) = compare("s", members(a=scores)).rows
    assert range_of(row, "test_macro_f1") == expected


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"a": [0.9, 0.92], "b": [0.8, 0.85]}, []),
        ({"a": [0.9, 0.92], "b": [0.8, 0.91]}, [["a", "b"]]),
        ({"a": [0.9, 0.92], "b": [0.8, 0.9]}, [["a", "b"]]),  # they touch
        # b overlaps with both, a and c stand apart
        ({"a": [0.9, 0.92], "b": [0.8, 0.91], "c": [0.7, 0.81]}, [["a", "b"], ["b", "c"]]),
        ({"a": [(0.9, 0.8, 0.95)], "b": [(0.85, 0.8, 0.9)], "c": [(0.82, 0.7, 0.9)]}, [["a", "b", "c"]]),
        (
            {"a": [(0.9, 0.5, 1.0)], "b": [(0.8, 0.6, 1.0)], "c": [(0.75, 0.7, 1.0)]},
            [["a", "b", "c"]],
        ),  # not a, b again
        # c is wide and overlaps with a although b, between them, does not
        ({"a": [(0.95, 0.94, 0.96)], "b": [(0.9, 0.89, 0.91)], "c": [(0.7, 0.4, 0.99)]}, [["a", "c"], ["b", "c"]]),
        ({"a": [(0.95, 0.94, 0.96)], "b": [0.2]}, [["a", "b"]]),  # of b nothing is known
        ({"a": [(0.95, 0.94, 0.96)], "b": [None]}, []),
        ({"a": [0.9], "b": []}, []),
    ],
)
def test_whose_order_is_not_sure(groups: dict[str, list[Score]], expected: list[list[str]]) -> None:
    rows = compare("s", members(**groups)).rows
    assert [[row.name for row in some] for some in not_sure(rows, "test_macro_f1")] == expected


def test_the_doubt_is_a_note_and_a_sure_order_is_none() -> None:
    doubtful = compare("s", members(a=[0.9, 0.92], b=[0.8, 0.91], c=[0.7, 0.81]))
    assert doubtful.notes == (
        "THE ORDER IS NOT SURE among a, b; nor among b, c: their ranges overlap or are not known.",
    )
    assert compare("s", members(a=[0.9, 0.92], b=[0.8, 0.85])).notes == ()


def test_without_a_test_set_the_doubt_is_about_validation() -> None:
    some = [found(0, "a", None, (0.95, 0.94, 0.96)), found(1, "b", None, (0.9, 0.89, 0.945))]
    comparison = compare("s", some)
    assert comparison.split == "val"
    first, second = comparison.notes
    assert first.startswith("VALIDATION ONLY")
    assert second.startswith("THE ORDER IS NOT SURE among a, b:")


def test_hours_of_the_seeds_are_summed_and_what_is_missing_is_left_out() -> None:
    some = [found(0, "a", 0.9, gpu_hours=1.5), found(1, "a", 0.8, gpu_hours=2.25), found(2, "a", 0.7)]
    (row,) = compare("s", some).rows
    assert (row.spreads["gpu_hours"].total, row.spreads["gpu_hours"].mean) == (3.75, 1.875)
    assert "images_per_s" not in row.spreads


def test_numbers_that_are_none_do_not_spoil_the_others() -> None:
    """A result that another program wrote may hold NaN."""
    figures = figures_of({"test_loss": math.nan, "val_loss": math.inf, "test_accuracy": 0.5, "examples": {"test": 7}})
    assert figures["test_loss"] is figures["val_loss"] is figures["val_examples"] is None
    assert (figures["test_accuracy"], figures["test_examples"]) == (0.5, 7)
