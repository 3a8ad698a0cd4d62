"""The cleaning report: `cleaning.json` lists what was removed and why, `cleaning.png` pictures it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bloodcell_dist.atomic import atomic_file, atomic_write_json
from bloodcell_dist.data.cleaning import DUPLICATE, REASONS, CleaningResult
from bloodcell_dist.data.dataset import ArrayDataset

_COLUMNS, _ROWS = 10, 2  # pictures shown of one section at most; the JSON lists all
_THUMBNAIL, _GAP, _CAPTION, _HEADER, _MARGIN = 1.0, 0.15, 0.5, 0.45, 0.35  # inches
_INK, _QUIET, _RULE = "#1f2430", "#6b7280", "#d1d5db"


@dataclass(frozen=True)
class _Section:
    """A headline over pictures with captions."""

    title: str
    pictures: Sequence[np.ndarray]
    captions: Sequence[str]

    def height(self) -> float:
        rows = -(-len(self.pictures) // _COLUMNS)
        return _HEADER + rows * (_THUMBNAIL + _CAPTION)


def write_cleaning_report(result: CleaningResult, dataset: ArrayDataset, folder: Path) -> Path:
    """Write `cleaning.png` and `cleaning.json` into an existing folder; returns the path of the picture.

    dataset: the uncleaned set that `result` came from. Both files are written whole or not at all, the JSON last:
    its presence says that the report is done.
    """
    picture = folder / "cleaning.png"
    with atomic_file(picture) as temporary:
        draw_cleaning(result, dataset).savefig(temporary, dpi=110)
    atomic_write_json(folder / "cleaning.json", describe(result, dataset))
    return picture


def describe(result: CleaningResult, dataset: ArrayDataset) -> dict[str, Any]:
    """The content of `cleaning.json`: counts, every removal by index and name, every near-duplicate pair and group."""

    def example(index: int) -> dict[str, Any]:
        label = int(dataset.labels[index])
        return {"index": int(index), "name": dataset.name_of(index), "class": dataset.class_names[label]}

    return {
        "num_examples": result.num_examples,
        "num_kept": len(result.kept_indices),
        "removed_by_reason": result.counts(),
        "reasons": REASONS,
        "removed": [
            {**example(removal.index), "reason": removal.reason, "twin": example(removal.twin)}
            for removal in result.removed
        ],
        "near_duplicate_groups": [[example(int(index)) for index in group] for group in result.near_groups()],
        "near_duplicate_pairs": [asdict(pair) for pair in result.near_pairs],
    }


def draw_cleaning(result: CleaningResult, dataset: ArrayDataset) -> Figure:
    """The pictures of `cleaning.png`: one section per reason, then the largest groups of near-duplicates."""
    sections = [_removed(reason, result, dataset) for reason, count in result.counts().items() if count]
    if result.near_pairs:
        sections.append(_near_duplicates(result, dataset))
    width = 2 * _MARGIN + _COLUMNS * (_THUMBNAIL + _GAP)
    height = 2 * _MARGIN + 0.75 + sum(section.height() for section in sections)
    figure = Figure(figsize=(width, height), facecolor="white")
    top = height - _MARGIN
    figure.text(
        _MARGIN / width,
        top / height,
        f"Cleaning kept {len(result.kept_indices):,} of {result.num_examples:,} pictures",
        va="top",
        fontsize=15,
        fontweight="bold",
        color=_INK,
    )
    figure.text(_MARGIN / width, (top - 0.35) / height, _subtitle(result), va="top", fontsize=10, color=_QUIET)
    top -= 0.75
    for section in sections:
        _draw_section(figure, section, top)
        top -= section.height()
    return figure


def _subtitle(result: CleaningResult) -> str:
    groups = result.near_groups()
    removed = f"{len(result.removed):,} removed" if result.removed else "Nothing was removed"
    if not groups:
        return f"{removed}; no near-duplicates."
    members = sum(len(group) for group in groups)
    return (
        f"{removed}; {members:,} near-duplicates in {len(groups):,} groups stay, each group on one side of the split."
    )


def _removed(reason: str, result: CleaningResult, dataset: ArrayDataset) -> _Section:
    """One picture per set of copies, with how many were dropped from which classes."""
    sets: dict[int, list[int]] = {}
    for removal in result.removed:
        if removal.reason == reason:
            sets.setdefault(removal.twin, []).append(removal.index)
    shown = sorted(sets.items(), key=lambda item: -len(item[1]))[: _COLUMNS * _ROWS]
    title = f"{result.counts()[reason]:,} removed: {REASONS[reason]}" + _more(len(sets), len(shown))
    captions = []
    for twin, dropped in shown:
        classes = sorted({dataset.class_names[dataset.labels[index]] for index in dropped})
        where = classes[0] if len(classes) == 1 else f"{len(classes)} classes"
        which = "kept" if reason == DUPLICATE else "first"
        captions.append(f"{len(dropped)} dropped, {where}\n{which}: {_short(dataset, twin)}")
    return _Section(title, [dataset.images[twin] for twin, _ in shown], captions)


def _near_duplicates(result: CleaningResult, dataset: ArrayDataset) -> _Section:
    """The members of the largest groups side by side."""
    groups = result.near_groups()
    members = [(number, int(index)) for number, group in enumerate(groups, 1) for index in group]
    shown = members[: _COLUMNS * _ROWS]
    title = f"{len(groups):,} groups of near-duplicates, kept together" + _more(len(members), len(shown))
    captions = [
        f"group {number}: {dataset.class_names[dataset.labels[index]]}\n{_short(dataset, index)}"
        for number, index in shown
    ]
    return _Section(title, [dataset.images[index] for _, index in shown], captions)


def _draw_section(figure: Figure, section: _Section, top: float) -> None:
    """`top`: inches from the lower edge of the figure."""
    width, height = figure.get_size_inches()
    left = _MARGIN / width
    figure.add_artist(_rule(left, 1 - left, (top - 0.02) / height))
    figure.text(left, (top - 0.14) / height, section.title, va="top", fontsize=10, color=_INK)
    for position, (picture, caption) in enumerate(zip(section.pictures, section.captions, strict=True)):
        row, column = divmod(position, _COLUMNS)
        x = _MARGIN + column * (_THUMBNAIL + _GAP)
        y = top - _HEADER - row * (_THUMBNAIL + _CAPTION) - _THUMBNAIL
        axes = figure.add_axes((x / width, y / height, _THUMBNAIL / width, _THUMBNAIL / height))
        axes.imshow(picture)
        axes.set_axis_off()
        figure.text(x / width, (y - 0.05) / height, caption, va="top", fontsize=6.5, color=_QUIET, linespacing=1.3)


def _rule(left: float, right: float, y: float) -> Line2D:
    return Line2D([left, right], [y, y], color=_RULE, linewidth=0.8)


def _more(total: int, shown: int) -> str:
    return f" ({shown} of {total} shown; cleaning.json lists all)" if shown < total else ""


def _short(dataset: ArrayDataset, index: int) -> str:
    """The end of a long file name, which is what tells files apart; #index where there are no names."""
    if dataset.names is None:
        return f"#{index}"
    name = dataset.name_of(index)
    return name if len(name) <= 18 else "…" + name[-17:]
