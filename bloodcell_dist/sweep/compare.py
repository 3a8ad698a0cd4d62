"""The members of a sweep side by side: figures of each, and of each configuration over its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bloodcell_dist.evaluation.result import SPLITS
from bloodcell_dist.settings import METRICS
from bloodcell_dist.sweep.collect import Found

GAPS = ("gap_accuracy", "gap_macro_f1")
"""Validation less test: how much the split-off cells flatter."""

FIGURES = (
    *(f"{split}_{metric}" for split in SPLITS for metric in METRICS),
    *GAPS,
    *("images_per_s", "gpu_hours", "wall_s", "epochs"),
    *(f"{split}_examples" for split in SPLITS),
)

VALIDATION_ONLY = (
    "VALIDATION ONLY: there is no test set, so this table says little about other laboratories. Validation cells were "
    "split off the training cells: they share their laboratory, stain and scanner. Set data.test_path to cells from "
    "elsewhere and train again."
)
RULE = (
    "The range of a configuration goes from the least to the greatest end of its members' 95% intervals, or of their "
    "values where these have none; of a single member without an interval it is not known. Where ranges overlap, the "
    "order is not sure."
)
DRAWN = "The cells are drawn by a program. The figures say nothing about real blood."


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds of a configuration.

    Attributes:
        mean: of those that have it.
        sd: standard deviation of a sample; None of a single one.
        low, high: the least and the greatest.
        total: the sum.
    """

    mean: float
    sd: float | None
    low: float
    high: float
    total: float


@dataclass(frozen=True)
class Row:
    """A configuration.

    Attributes:
        name: its own.
        members: all that are planned.
        done: those with a result.
        spreads: by name of FIGURES; those that nobody has are left out.
    """

    name: str
    members: tuple[Found, ...]
    done: tuple[Found, ...]
    spreads: Mapping[str, Spread]


@dataclass(frozen=True)
class Comparison:
    """The table.

    Attributes:
        name: of the sweep.
        split: that rows are sorted by: `test` if any member was measured on one, else `val`.
        rows: configurations, best macro-F1 first; those without results last.
        members: by index.
        notes: what a reader must know, the most important first.
    """

    name: str
    split: str
    rows: tuple[Row, ...]
    members: tuple[Found, ...]
    notes: tuple[str, ...]

    @property
    def done(self) -> list[Found]:
        """Members with a result."""
        return [one for one in self.members if one.result is not None]

    @property
    def left(self) -> list[Found]:
        """Members without."""
        return [one for one in self.members if one.result is None]


def compare(name: str, members: Sequence[Found]) -> Comparison:
    """The table of a sweep."""
    groups: dict[str, list[Found]] = {}
    for one in members:
        groups.setdefault(one.member.group, []).append(one)
    rows = [_row(group, found) for group, found in groups.items()]
    rows.sort(key=_rank)
    split = "test" if any("test_macro_f1" in row.spreads for row in rows) else "val"
    return Comparison(
        name=name,
        split=split,
        rows=tuple(rows),
        members=tuple(members),
        notes=(*_notes(members), *_doubts(rows, split)),
    )


def range_of(row: Row, figure: str) -> tuple[float, float]:
    """Where the true figure may lie, by RULE; infinite where that is not known."""
    values = [value for one in row.done if (value := figures_of(one.result)[figure]) is not None]
    intervals = [(one.result or {}).get("intervals", {}).get(figure) for one in row.done]
    known = [interval for interval in intervals if interval]
    if len(values) < 2 and not known:
        return -math.inf, math.inf
    return min([*values, *(low for low, _ in known)]), max([*values, *(high for _, high in known)])


def not_sure(rows: Sequence[Row], figure: str) -> list[list[Row]]:
    """The largest sets of configurations whose ranges all overlap, in the order of the table; may share members."""
    ranked = [(row, range_of(row, figure)) for row in rows if figure in row.spreads]
    together = [  # ranges that all overlap have a point in common, and the greatest of their lower ends is one
        [place for place, (_, (low, high)) in enumerate(ranked) if low <= point <= high] for _, (point, _) in ranked
    ]
    largest = {tuple(one) for one in together if len(one) > 1 and not any(set(one) < set(other) for other in together)}
    return [[ranked[place][0] for place in places] for places in sorted(largest)]


def figures_of(result: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Every name of FIGURES, from a result.json; None where it is missing."""
    result = result or {}
    examples = {f"{split}_examples": count for split, count in (result.get("examples") or {}).items()}
    figures = {name: _finite({**result, **examples}.get(name)) for name in FIGURES}
    for gap in GAPS:
        metric = gap.removeprefix("gap_")
        val, test = figures[f"val_{metric}"], figures[f"test_{metric}"]
        figures[gap] = None if val is None or test is None else val - test
    return figures


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _row(name: str, members: Sequence[Found]) -> Row:
    done = tuple(one for one in members if one.result is not None)
    figures = [figures_of(one.result) for one in done]
    spreads = {key: spread for key in FIGURES if (spread := _spread([one[key] for one in figures]))}
    return Row(name, tuple(members), done, spreads)


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    sd = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), sd, min(known), max(known), math.fsum(known))


def _rank(row: Row) -> tuple[float, float]:
    """Best test macro-F1 first; then those without a test set, by validation; then those without results."""
    for place, key in enumerate(("test_macro_f1", "val_macro_f1")):
        if key in row.spreads:
            return place, -row.spreads[key].mean
    return 2, 0


def _notes(members: Sequence[Found]) -> list[str]:
    done = [one for one in members if one.result is not None]
    untested = [one.member.name for one in done if one.result and one.result.get("test_macro_f1") is None]
    notes = []
    if untested and len(untested) == len(done):
        notes.append(VALIDATION_ONLY)
    elif untested:
        notes.append(f"Without a test set, and so not comparable with the others: {', '.join(untested)}.")
    if any(one.source == "synthetic" for one in done):
        notes.append(DRAWN)
    if len({one.test_cells for one in done if one.test_cells}) > 1:
        notes.append("The members were not tested on the same cells, so their test figures do not compare.")
    return notes


def _doubts(rows: Sequence[Row], split: str) -> list[str]:
    doubtful = not_sure(rows, f"{split}_macro_f1")
    if not doubtful:
        return []
    names = "; nor among ".join(", ".join(row.name for row in some) for some in doubtful)
    return [f"THE ORDER IS NOT SURE among {names}: their ranges overlap or are not known."]
