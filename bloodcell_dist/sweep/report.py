"""The comparison as files: JSON and CSV for programs, Markdown and HTML for people."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bloodcell_dist.atomic import atomic_write_json, atomic_write_text, to_json
from bloodcell_dist.cluster.slurm_client import client_environment
from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.report import data_uri, format_decimal, page_environment
from bloodcell_dist.outputs import writing
from bloodcell_dist.sweep.collect import Found, collect
from bloodcell_dist.sweep.compare import FIGURES, RULE, Comparison, compare, figures_of
from bloodcell_dist.sweep.figures import (
    COST,
    SPLIT_TITLES,
    TITLES,
    aside_text,
    cell_of,
    columns_of,
    mean_text,
    number_text,
    title_of,
)
from bloodcell_dist.sweep.folder import SweepDir
from bloodcell_dist.sweep.submission import queued_members

log = logging.getLogger(__name__)

_CAPTIONS = {
    "scores": "Macro-F1 of each configuration; the thin lines are its ranges. The further validation lies to the right "
    "of test, the more it flatters.",
    "cost": "What accuracy costs. Large: mean over the seeds; small: each of them.",
    "curves": "Validation macro-F1 over the epochs, mean over the seeds; faint: each of them.",
}
_NOT_IN_SHORT = ("val_macro_f1", "wall_s")


def report_sweep(folder: Path) -> Path:
    """Compare what there is, and write the comparison; the path of its page. Raises UserError."""
    place = SweepDir(Path(os.path.abspath(folder)))
    name, members = _look(place)
    with writing(place.path):
        write_comparison(place, name, members)
    page = place.comparison(".html")
    log.info("%s: %d of %d members compared", page, sum(one.state == "done" for one in members), len(members))
    return page


def status_lines(folder: Path) -> list[str]:
    """How each member is, in a line. Raises UserError."""
    _, members = _look(SweepDir(Path(os.path.abspath(folder))))
    digits, width = len(str(len(members) - 1)), max(len(one.member.name) for one in members)
    return [
        f"{one.member.index:{digits}d}  {one.member.name:<{width}}  {status_text(one)}{_restarts(one)}"
        for one in members
    ]


def status_json(folder: Path) -> list[dict[str, Any]]:
    """How each member is, in JSON's types. Raises UserError."""
    _, members = _look(SweepDir(Path(os.path.abspath(folder))))
    return [to_json(member_as_json(one)) for one in members]


def write_comparison(folder: SweepDir, name: str, members: Sequence[Found]) -> Comparison:
    """Compare, and write every file of the comparison, each whole or not at all."""
    comparison = compare(name, members)
    pictures = _draw(folder, comparison)
    atomic_write_json(folder.comparison(".json"), as_json(comparison))
    atomic_write_text(folder.comparison(".csv"), members_csv(comparison))
    atomic_write_text(folder.comparison("_groups.csv"), groups_csv(comparison))
    atomic_write_text(folder.comparison(".md"), render_markdown(comparison))
    atomic_write_text(folder.comparison(".html"), render_html(comparison, pictures))
    return comparison


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of it, for programs."""
    rows = [
        {"name": row.name, "planned": len(row.members), "done": len(row.done)}
        | {"figures": {name: vars(spread) for name, spread in row.spreads.items()}}
        for row in comparison.rows
    ]
    shared = {"format": 1, "name": comparison.name, "sorted_by": f"{comparison.split}_macro_f1", "rule": RULE}
    return {
        **shared,
        "notes": comparison.notes,
        "groups": rows,
        "members": list(map(member_as_json, comparison.members)),
    }


def member_as_json(one: Found) -> dict[str, Any]:
    """One member, for programs."""
    return {
        "index": one.member.index,
        "name": one.member.name,
        "group": one.member.group,
        "state": one.state,
        "reason": one.reason,
        "restarts": one.restarts,
        "nodes": one.nodes,
        "epochs_done": one.epochs_done,
        "epochs_asked": one.epochs,
        "run_dir": one.run.path,
        "settings": one.member.settings,
        "figures": figures_of(one.result),
    }


def members_csv(comparison: Comparison) -> str:
    """A row for each member: how it is, the settings that differ, every figure."""
    keys = list(comparison.members[0].member.settings)
    words = ("index", "name", "group", "state", "reason", "restarts", "run_dir")
    rows = []
    for found in comparison.members:
        one = member_as_json(found)
        settings, figures = found.member.settings, one["figures"]
        rows.append([*(one[word] for word in words), *(settings[key] for key in keys), *figures.values()])
    return _csv([*words, *keys, *FIGURES], rows)


def groups_csv(comparison: Comparison) -> str:
    """A row for each configuration: mean, standard deviation, least and greatest of every figure."""
    parts = {"mean": "mean", "sd": "sd", "low": "min", "high": "max"}
    heads = [f"{name}_{part}" for name in FIGURES for part in parts.values()]
    rows = [
        [row.name, len(row.done), len(row.members)]
        + [getattr(row.spreads.get("gpu_hours"), "total", None)]
        + [getattr(row.spreads.get(name), part, None) for name in FIGURES for part in parts]
        for row in comparison.rows
    ]
    return _csv(["group", "done", "planned", "gpu_hours_sum", *heads], rows)


def render_markdown(comparison: Comparison) -> str:
    """The table in short, and what is not done."""
    first, *others = columns_of(comparison)
    columns = [first, *(name for name in (*others, *COST) if name not in _NOT_IN_SHORT)]
    notes = (line for note in comparison.notes for line in (f"**{_literal(note)}**", ""))
    lines = [f"# Sweep {_literal(comparison.name)}", "", *notes]
    heads = ["Configuration", "Done", *(title_of(name).replace("Validation", "Val") for name in columns)]
    rows = [
        [_literal(row.name), f"{len(row.done)}/{len(row.members)}", cell_of(row, columns[0])]
        + [mean_text(row, name) for name in columns[1:]]
        for row in comparison.rows
    ]
    lines += _table(heads, rows)
    if sum(bool(row.done) for row in comparison.rows) > 1:
        lines += ["", RULE]
    if any(len(row.done) > 1 for row in comparison.rows):
        lines += ["", "Mean ± standard deviation over the seeds (least to greatest); GPU-hours are their sum."]
    if comparison.left:
        lines += ["", "Not done:", ""]
        lines += [f"- {_literal(f'{one.member.name}: {status_text(one)}')}" for one in comparison.left]
    return "\n".join([*lines, ""])


def render_html(comparison: Comparison, pictures: dict[str, Path]) -> str:
    """One page that needs no other file, no script and no network; all text from outside is escaped."""
    environment = page_environment(Path(__file__).with_name("templates"))
    best = comparison.rows[0] if f"{comparison.split}_macro_f1" in comparison.rows[0].spreads else None
    return environment.get_template("comparison.html.j2").render(
        comparison=comparison,
        best=best,
        columns=[*columns_of(comparison), *COST],
        splits=[
            split
            for split in ("test", "val", "train")
            if any(f"{split}_loss" in row.spreads for row in comparison.rows)
        ],
        metrics=[*list(TITLES)[:6], "examples"],
        rule=RULE if sum(bool(row.done) for row in comparison.rows) > 1 else "",
        titles=TITLES,
        split_titles=SPLIT_TITLES,
        title=title_of,
        mean=mean_text,
        aside=aside_text,
        number=number_text,
        figures_of=figures_of,
        has_seeds=any(len(row.done) > 1 for row in comparison.rows),
        pictures={name: (data_uri(path), _CAPTIONS[name]) for name, path in pictures.items()},
        created=datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC"),
        gpu_hours=sum(figures_of(one.result)["gpu_hours"] or 0 for one in comparison.done),
    )


def status_text(one: Found) -> str:
    """How a member is, in one line: `training: epoch 3 of 30 on n1`, `failed: reason`."""
    words = {"queued": "queued", "waiting": "waiting", "stopped": "stopped, goes on when it is started again"}
    nodes = f" on {one.nodes}" if one.nodes else ""
    if one.state == "done":
        text = f"done: {_scores_text(one)}"
    elif one.state == "running" and one.epochs_done and one.epochs:
        text = f"training: epoch {min(one.epochs_done + 1, one.epochs)} of {one.epochs}{nodes}"
    elif one.state == "running":
        text = f"running{nodes}"
    else:
        text = words.get(one.state) or f"failed: {one.reason or 'no reason was left'}"
    if one.state == "stopped" and one.reason:
        text += f": {one.reason}"
    if one.state == "stopped" and one.epochs_done and one.epochs:
        text += f" (after {one.epochs_done} of {one.epochs} epochs)"
    return text


def _restarts(one: Found) -> str:
    return f", {one.restarts} {'restart' if one.restarts == 1 else 'restarts'}" if one.restarts else ""


def _scores_text(one: Found) -> str:
    """Accuracy on validation and test cells, and macro-F1 on the latter; it says so where there are none."""
    figures = {name: format_decimal(value) for name, value in figures_of(one.result).items()}
    val = f"val accuracy {figures['val_accuracy']}"
    if figures_of(one.result)["test_accuracy"] is None:
        return f"{val}, macro-F1 {figures['val_macro_f1']} (validation only: no test set)"
    return f"{val}, test accuracy {figures['test_accuracy']}, macro-F1 {figures['test_macro_f1']}"


def _look(folder: SweepDir) -> tuple[str, list[Found]]:
    """The sweep's name and every member as it is now; without the queue's word where Slurm does not answer."""
    plan = folder.read_plan()
    queue = None
    if folder.submitted.exists():
        try:
            queue = queued_members(folder, client_environment(os.environ, None))
        except UserError as error:
            log.debug("%s", error)
    return plan.name, collect(folder, plan, queue)


def _literal(text: str) -> str:
    """Text from outside for Markdown: on one line, and none of it markup."""
    return re.sub(r"([\\`*\[\]<>&|])", r"\\\1", " ".join(text.split()))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, its columns aligned for a terminal."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    cells = ([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])] for row in (heads, ruler, *rows))
    return [f"| {' | '.join(line)} |" for line in cells]


def _csv(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([heads, *rows])
    return out.getvalue()


def _draw(folder: SweepDir, comparison: Comparison) -> dict[str, Path]:
    """The pictures for which there is something to draw."""
    from bloodcell_dist.sweep.plots import plot_cost, plot_curves, plot_scores

    has_history = any(one.history for one in comparison.members)
    wanted = {"scores": (plot_scores, bool(comparison.done)), "cost": (plot_cost, bool(comparison.done))}
    wanted["curves"] = (plot_curves, has_history)
    folder.plots.mkdir(exist_ok=True)
    found = {}
    for name, (plot, is_wanted) in wanted.items():
        if is_wanted:
            found[name] = folder.plots / f"{name}.png"
            plot(found[name], comparison)
    return found
