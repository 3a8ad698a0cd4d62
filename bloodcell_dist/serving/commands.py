"""What `bloodcell-dist evaluate` and `bloodcell-dist predict` do."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from bloodcell_dist import runtime  # before Keras: it imports TensorFlow quietly
from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.data.dataset import TEST
from bloodcell_dist.data.sources import load_dataset, load_images
from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.metrics import score_split
from bloodcell_dist.evaluation.plots import plot_confusion, plot_mistakes, plot_per_class
from bloodcell_dist.evaluation.predictions import Predictions, write_predictions
from bloodcell_dist.history import parse_object
from bloodcell_dist.outputs import check_folder_of, writing
from bloodcell_dist.serving.predictor import Predictor

log = logging.getLogger(__name__)


def evaluate_run(folder: str, data_path: str, out: str | None) -> None:
    """Measure a finished run on labelled cells; writes metrics, predictions and plots to a new folder.

    Args:
        folder: of the run.
        data_path: npz, MedMNIST file (its test part) or folder of class folders; labels in the run's class order.
        out: folder for the output; None is `RUN/evaluations/<name of the data>`. UserError if other data were measured
            there.
    """
    runtime.look_at_machine()
    predictor = Predictor(folder)
    data = predictor.settings.data
    source = os.path.abspath(os.path.expanduser(data_path))
    place = Path(out) if out else predictor.run.path / "evaluations" / Path(source).stem
    refuse_other(place, source)
    cells = load_dataset("auto", source, class_names=predictor.class_names, image_size=data.image_size, crop=data.crop)
    whole = cells.partition is None
    if cells.partition is not None:
        cells = cells.take(np.flatnonzero(cells.partition == TEST))
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    probabilities = predictor.probabilities(cells.images)
    seed, resamples = predictor.settings.train.seed, predictor.settings.evaluate.bootstrap
    scores = score_split(probabilities, cells.labels, cells.class_names, resamples=resamples, seed=seed)
    content = {
        "run": str(predictor.run.path),
        "data": source,
        "examples": cells.num_examples,
        **scores.metrics,
        "intervals": scores.intervals,
        "class_names": cells.class_names,
        "per_class": scores.per_class,
        "confusion": scores.confusion,
    }
    names = [cells.name_of(index) for index in range(cells.num_examples)]
    predictions = Predictions(names, cells.class_names, probabilities, cells.labels)
    title = f"{Path(source).name}, {cells.num_examples} cells"
    with writing(place):
        write_predictions(place / "predictions.csv", predictions)
        plot_confusion(place / "confusion.png", np.asarray(scores.confusion), cells.class_names, title)
        plot_per_class(place / "per_class.png", scores.per_class, title)
        plot_mistakes(place / "mistakes.png", cells.images, cells.labels, probabilities, cells.class_names)
        atomic_write_json(place / "metrics.json", content)
    for name, value in scores.metrics.items():
        low, high = scores.intervals.get(name, (None, None))
        interval = "" if low is None else f"  (95% interval {low:.4f} to {high:.4f})"
        log.info("%-18s %.4f%s", name, value, interval)
    part = "" if whole else f" of the test part of {source}"
    log.info("%d cells%s; details in %s", cells.num_examples, part, place)


def predict_pictures(folder: str, pictures: str, out: str) -> None:
    """Classify unlabelled pictures with a finished run and write a CSV.

    Args:
        folder: of the run.
        pictures: one picture, a folder of them, or an npz with `images`.
        out: the CSV to write.
    """
    check_folder_of(out)
    runtime.look_at_machine()
    predictor = Predictor(folder)
    data = predictor.settings.data
    images, names = load_images(pictures, data.image_size, data.crop)
    predictions = Predictions(names, predictor.class_names, predictor.probabilities(images))
    write_predictions(out, predictions)
    log.info("%d pictures classified; see %s", len(images), out)


def refuse_other(place: Path, source: str) -> None:
    """UserError if `place` holds the evaluation of other data than those at the absolute path `source`."""
    with suppress(OSError):
        found = parse_object((place / "metrics.json").read_bytes()) or {}
        if found.get("data", source) != source:
            raise UserError(
                f"{place}: holds the evaluation of {found['data']}, not of {source}; give another folder with --out"
            )
