"""The folder that `bloodcell-dist evaluate` leaves: its name, what may lie in it, its files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.metrics import SplitScores
from bloodcell_dist.evaluation.plots import plot_confusion, plot_mistakes, plot_per_class
from bloodcell_dist.evaluation.predictions import Predictions, write_predictions
from bloodcell_dist.history import parse_object
from bloodcell_dist.outputs import writing
from bloodcell_dist.serving.ensemble import Member, Pictures

NAMES_SHOWN = 3  # other runs that the default folder's name spells out
NAME_LENGTH = 100  # characters; file systems allow 255 bytes


def folder_name(data: str, members: Sequence[Member]) -> str:
    """Name of the default folder: `test_set` for one run, `test_set+second+third` for three.

    Long lists keep their beginning and end with a digest of the run ids, which does not depend on their order.
    """
    others = [member.name for member in members[1:]]
    name = "+".join([data, *others])
    if not others or (len(others) <= NAMES_SHOWN and len(name) <= NAME_LENGTH):
        return name
    identity = hashlib.sha256("\n".join(sorted(member.run_id for member in members)).encode()).hexdigest()[:8]
    shown = "+".join([data, *others[:2]])[:NAME_LENGTH]
    more = f"+{len(others) - 2}more" if len(others) > 2 else ""
    return f"{shown}{more}-{identity}"


def refuse_other(place: Path, source: str, members: Sequence[Member]) -> None:
    """UserError if `place` holds the evaluation of other data than those at the absolute path `source`, or other runs.

    The order of the runs does not matter.
    """
    with suppress(OSError):
        found = parse_object((place / "metrics.json").read_bytes()) or {}
        ours, theirs = source, found.get("data", source)
        if ours == theirs and not _are_the_runs_of(found, members):
            ours, theirs = (" + ".join(paths) for paths in ([m.path for m in members], _runs_of(found)))
        if ours != theirs:
            raise UserError(f"{place}: holds the evaluation of {theirs}, not of {ours}; give another folder with --out")


def _runs_of(found: Mapping[str, Any]) -> list[str]:
    return found["runs"] if "runs" in found else [found["run"]]


def _are_the_runs_of(found: Mapping[str, Any], members: Sequence[Member]) -> bool:
    """Whether the metrics.json `found` is of these runs, as far as it tells."""
    if "members" in found:
        return {row["run_id"] for row in found["members"]} == {member.run_id for member in members}
    if "run" not in found:
        return True
    recorded, ours = Path(found["run"]), members[0].run.path.resolve()
    if recorded.is_absolute():
        same = recorded.resolve() == ours
    else:  # it counts from a working folder that may have been another one, so only its last name tells
        same = recorded.name in ("", "..", ours.name)
    return same and len(members) == 1


def write_evaluation(
    place: Path,
    source: str,
    runs: Mapping[str, Any],
    cells: Pictures,
    class_names: Sequence[str],
    probabilities: np.ndarray,
    scores: SplitScores,
) -> None:
    """Write predictions.csv, the pictures and metrics.json to the existing folder `place`.

    Args:
        place: the folder. UserError if it cannot be written to.
        source: absolute path of the data.
        runs: what metrics.json says of the runs: `run`, or `runs` and `members`.
        cells: labelled.
        class_names: [C] in label order.
        probabilities: float32 [N, C].
        scores: of these probabilities.
    """
    title = f"{Path(source).name}, {len(cells.images)} cells"
    with writing(place):
        write_predictions(place / "predictions.csv", Predictions(cells.names, class_names, probabilities, cells.labels))
        plot_confusion(place / "confusion.png", np.asarray(scores.confusion), class_names, title)
        plot_per_class(place / "per_class.png", scores.per_class, title)
        plot_mistakes(place / "mistakes.png", cells.images, cells.labels, probabilities, class_names)
        atomic_write_json(
            place / "metrics.json",
            {
                **runs,
                "data": source,
                "examples": len(cells.images),
                **scores.metrics,
                "intervals": scores.intervals,
                "class_names": class_names,
                "per_class": scores.per_class,
                "confusion": scores.confusion,
            },
        )
