"""Predictions as a CSV file: `file, predicted, confidence, p_<class>…` and, where known, `label`."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bloodcell_dist.atomic import atomic_file
from bloodcell_dist.errors import UserError


@dataclass(frozen=True)
class Predictions:
    """What a model says of some pictures.

    Attributes:
        files: name of each picture [N]; `set.npz#12` for row 12 of an array file.
        class_names: [C] in label order.
        probabilities: float32 [N, C] in [0, 1].
        labels: int64 [N], -1 where the true class is not known; None if it is known for none.
    """

    files: Sequence[str]
    class_names: Sequence[str]
    probabilities: np.ndarray
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        expected = (len(self.files), len(self.class_names))
        if np.shape(self.probabilities) != expected:
            raise ValueError(f"probabilities have shape {np.shape(self.probabilities)}; expected {expected}")
        if self.labels is not None and np.shape(self.labels) != expected[:1]:
            raise ValueError(f"labels have shape {np.shape(self.labels)}; expected {expected[:1]}")


def write_predictions(path: str | os.PathLike[str], predictions: Predictions) -> None:
    """Write the CSV (UTF-8, one line per picture, float32 to the last bit), whole or not at all.

    Raises UserError if it cannot be written there.
    """
    try:
        with (
            atomic_file(path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_header(predictions.class_names, predictions.labels is not None))
            writer.writerows(_rows(predictions))
    except OSError as error:
        raise UserError(
            f"{path}: predictions cannot be written ({error.strerror}); give a file that you may write"
        ) from None


def _header(class_names: Sequence[str], has_labels: bool) -> list[str]:
    columns = ["file", "predicted", "confidence", *(f"p_{name}" for name in class_names)]
    return [*columns, "label"] if has_labels else columns


def _rows(predictions: Predictions) -> list[list[str]]:
    """One list of cells per picture; nine digits tell every float32 from the next."""
    names = predictions.class_names
    winners = predictions.probabilities.argmax(axis=1)
    rows = [
        [str(file), names[winner], f"{of_row[winner]:.9g}", *(f"{value:.9g}" for value in of_row)]
        for file, winner, of_row in zip(predictions.files, winners, predictions.probabilities, strict=True)
    ]
    if predictions.labels is not None:
        for row, label in zip(rows, predictions.labels, strict=True):
            row.append(names[label] if label >= 0 else "")
    return rows
