"""What `bloodcell-dist evaluate` and `bloodcell-dist predict` do."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bloodcell_dist import runtime  # before Keras: it imports TensorFlow quietly
from bloodcell_dist.data.dataset import TEST
from bloodcell_dist.data.sources import load_dataset, load_images
from bloodcell_dist.evaluation.metrics import classification_metrics, score_split
from bloodcell_dist.evaluation.predictions import Predictions, write_predictions
from bloodcell_dist.outputs import check_folder_of, writing
from bloodcell_dist.serving.ensemble import Member, Pictures, average, look_at_runs, predict_members
from bloodcell_dist.serving.evaluations import folder_name, refuse_other, write_evaluation

log = logging.getLogger(__name__)


def evaluate_runs(folders: Sequence[str], data_path: str, out: str | None) -> None:
    """Measure finished runs on labelled cells; writes metrics, predictions and plots to a new folder.

    Args:
        folders: of one run, or of several whose probabilities are averaged. The first one's `train.seed` and
            `evaluate.bootstrap` make the intervals.
        data_path: npz, MedMNIST file (its test part) or folder of class folders; labels in the runs' class order.
        out: folder for the output; None is `RUN/evaluations/<name of the data>` in the first run's folder, for several
            with the names of the others. UserError if other data or other runs were measured there.
    """
    runtime.look_at_machine()
    members = look_at_runs(folders)
    class_names, settings = members[0].class_names, members[0].settings
    source = os.path.abspath(os.path.expanduser(data_path))
    place = Path(out) if out else members[0].run.path / "evaluations" / folder_name(Path(source).stem, members)
    refuse_other(place, source, members)

    def load(image_size: int, crop: int | None) -> Pictures:
        cells = _labelled(source, class_names, image_size, crop)
        with writing(place):  # now, not after the networks have run, which may take hours
            place.mkdir(parents=True, exist_ok=True)
        return cells

    comparison = _Comparison(members)
    cells, of_members = predict_members(members, load, comparison.add)
    probabilities = average(of_members)
    resamples, seed = settings.evaluate.bootstrap, settings.train.seed
    scores = score_split(probabilities, cells.labels, class_names, resamples=resamples, seed=seed)
    write_evaluation(place, source, comparison.content(), cells, class_names, probabilities, scores)
    comparison.conclude(scores.metrics)
    for name, value in scores.metrics.items():
        low, high = scores.intervals.get(name, (None, None))
        interval = "" if low is None else f"  (95% interval {low:.4f} to {high:.4f})"
        log.info("%-18s %.4f%s", name, value, interval)
    log.info("%d cells%s; details in %s", len(cells.images), cells.part, place)


def predict_pictures(folders: Sequence[str], pictures: str, out: str) -> None:
    """Classify unlabelled pictures with finished runs and write a CSV.

    Args:
        folders: of one run, or of several whose probabilities are averaged.
        pictures: one picture, a folder of them, or an npz with `images`.
        out: the CSV to write.
    """
    check_folder_of(out)
    runtime.look_at_machine()
    members = look_at_runs(folders)
    found, of_members = predict_members(members, lambda *geometry: Pictures(*load_images(pictures, *geometry)))
    write_predictions(out, Predictions(found.names, members[0].class_names, average(of_members)))
    log.info("%d pictures classified; see %s", len(found.images), out)


def _labelled(source: str, class_names: Sequence[str], image_size: int, crop: int | None) -> Pictures:
    """All cells of a source, or its test part if it is divided."""
    cells = load_dataset("auto", source, class_names=class_names, image_size=image_size, crop=crop)
    part = ""
    if cells.partition is not None:
        part = f" of the test part of {source}"
        cells = cells.take(np.flatnonzero(cells.partition == TEST))
    return Pictures(cells.images, [cells.name_of(index) for index in range(cells.num_examples)], cells.labels, part)


class _Comparison:
    """Each member of an ensemble beside the whole: rows in the log as they are measured, and in metrics.json.

    Of one run there is nothing to compare, and it says nothing.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._metrics: dict[str, Mapping[str, float]] = {}
        self._whole = f"ensemble of {len(members)}"
        self._width = max(map(len, [self._whole, *map(_title, members)]))

    def add(self, member: Member, cells: Pictures, probabilities: np.ndarray) -> None:
        """Measure a member on its cells."""
        if len(self._members) == 1:
            return
        if not self._metrics:
            log.info("%-*s  accuracy  macro-F1    loss", self._width, "")
        self._metrics[member.run_id] = classification_metrics(probabilities, cells.labels)
        self._show(_title(member), self._metrics[member.run_id])

    def conclude(self, metrics: Mapping[str, float]) -> None:
        """Show the ensemble's own."""
        if len(self._members) > 1:
            self._show(self._whole, metrics)

    def content(self) -> dict[str, Any]:
        """What metrics.json says of the runs, in the order in which they were given."""
        if len(self._members) == 1:
            return {"run": self._members[0].path}
        rows = [
            {"run": member.path, "run_id": member.run_id, "backbone": member.settings.model.backbone}
            | dict(self._metrics[member.run_id])
            for member in self._members
        ]
        return {"runs": [member.path for member in self._members], "members": rows}

    def _show(self, title: str, metrics: Mapping[str, float]) -> None:
        values = (metrics[name] for name in ("accuracy", "macro_f1", "loss"))
        log.info("%-*s  %8.4f  %8.4f  %6.4f", self._width, title, *values)


def _title(member: Member) -> str:
    return f"{member.path} ({member.settings.model.backbone})"
