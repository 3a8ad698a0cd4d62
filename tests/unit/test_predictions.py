"""Predictions survive the way through a CSV file, whatever the files are called."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.predictions import Predictions, write_predictions

NAMES = ("basophil", "band, neutrophil", 'the "odd" one')
HOSTILE = ["a b.png", 'quo"te.png', "com,ma.png", "new\nline.png", "zelle-ä-細胞.png", "bytes-\udcff.png"]


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a CSV."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.DictReader(file)
        rows = list(table)
    return list(table.fieldnames or []), rows


def make(labels: np.ndarray | None = None) -> Predictions:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), len(HOSTILE)).astype(np.float32)
    return Predictions(HOSTILE, NAMES, probabilities, labels)


@pytest.mark.parametrize("labels", [None, np.array([0, 1, 2, -1, 1, 0])], ids=["unknown", "some known"])
def test_predictions_can_be_read_back_to_the_bit(tmp_path: Path, labels: np.ndarray | None) -> None:
    written = make(labels)
    write_predictions(tmp_path / "p.csv", written)
    columns, rows = read(tmp_path / "p.csv")
    assert columns[3:6] == [f"p_{name}" for name in NAMES]
    assert ("label" in columns) == (labels is not None)
    assert [row["file"] for row in rows] == HOSTILE
    probabilities = np.array([[row[f"p_{name}"] for name in NAMES] for row in rows], np.float32)
    np.testing.assert_array_equal(probabilities, written.probabilities)
    assert [row["predicted"] for row in rows] == [NAMES[winner] for winner in probabilities.argmax(axis=1)]
    confidence = np.array([row["confidence"] for row in rows], np.float32)
    np.testing.assert_array_equal(confidence, probabilities.max(axis=1))
    if labels is not None:
        assert [row["label"] for row in rows] == [NAMES[label] if label >= 0 else "" for label in labels]


def test_the_columns_are_what_a_reader_expects(tmp_path: Path) -> None:
    predictions = Predictions(["x.png"], ["a", "b"], np.array([[0.25, 0.75]], np.float32), np.array([0]))
    write_predictions(tmp_path / "p.csv", predictions)
    text = (tmp_path / "p.csv").read_text()
    assert text == "file,predicted,confidence,p_a,p_b,label\nx.png,b,0.75,0.25,0.75,a\n"
    with open(tmp_path / "p.csv", newline="") as file:
        assert next(csv.DictReader(file))["predicted"] == "b"


def test_no_pictures_make_an_empty_table(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", Predictions([], NAMES, np.zeros((0, 3), np.float32)))
    assert len(read(tmp_path / "p.csv")[0]) == 6
    assert read(tmp_path / "p.csv")[1] == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", make())
    before = (tmp_path / "p.csv").read_bytes()
    with pytest.raises(IndexError):
        write_predictions(tmp_path / "p.csv", make(np.array([0, 1, 2, 9, 1, 0])))
    assert (tmp_path / "p.csv").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_not_there_gets_one_message(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "p.csv"
    with pytest.raises(UserError) as caught:
        write_predictions(path, make())
    assert str(caught.value) == (
        f"{path}: predictions cannot be written (No such file or directory); give a file that you may write"
    )


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.zeros((2, 2)), None, r"probabilities have shape \(2, 2\); expected \(1, 2\)"),
        (np.zeros((1, 2)), np.zeros(3), r"labels have shape \(3,\); expected \(1,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(probabilities: np.ndarray, labels: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictions(["x"], ["a", "b"], probabilities, labels)
