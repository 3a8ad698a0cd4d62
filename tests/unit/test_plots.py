"""The pictures show what they are given, and survive odd input without a warning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from bloodcell_dist.evaluation import drawing, plots
from bloodcell_dist.evaluation.metrics import per_class_table
from bloodcell_dist.settings import BLOOD_CELLS

ODD = ("$\\alpha", "a$b$c_{", "two\nlines", "x" * 60, "<b>&amp;</b>", "ä, é", "%s {0}", " ")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, beside the files."""
    kept: list[Figure] = []

    def save(figure: Figure, path: Path) -> None:
        kept.append(figure)
        drawing.save_png(figure, path)

    monkeypatch.setattr(plots, "save_png", save)
    return kept


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


def widths_of(axis: Axes) -> list[float]:
    """The lengths of horizontal bars."""
    return [bar.get_width() for bar in axis.patches if isinstance(bar, Rectangle)]


def pixels_of(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] of a picture that is not blank."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.std() > 3
    return pixels


def history(epochs: int, **changed: object) -> list[dict[str, object]]:
    names = [f"{split}_{name}" for split in ("train", "val") for name in ("loss", "accuracy", "macro_f1")]
    return [
        {"epoch": epoch, "learning_rate": 3e-4, **{name: 1 / (epoch + 2) for name in names}, **changed}
        for epoch in range(epochs)
    ]


def predictions(labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """float [N, 8] with the given most probable class and its probability."""
    probabilities = np.repeat((1 - confidence)[:, None] / 7, 8, axis=1)
    probabilities[np.arange(len(labels)), predicted] = confidence
    return probabilities


def test_curves_show_training_and_validation_of_every_epoch(tmp_path: Path, figures: list[Figure]) -> None:
    plots.plot_curves(tmp_path / "curves.png", history(5), best_epoch=3)
    loss, accuracy, _, rate = figures[0].axes
    training, validation, selected = loss.lines
    for line in (training, validation):
        expected = [[1, 1 / 2], [2, 1 / 3], [3, 1 / 4], [4, 1 / 5], [5, 1 / 6]]
        np.testing.assert_allclose(np.asarray(line.get_xydata(), float), expected)
    np.testing.assert_array_equal(selected.get_xdata(), [4, 4])
    assert [axis.get_title(loc="left") for axis in figures[0].axes] == [
        "Loss", "Accuracy", "Macro-F1", "Learning rate"
    ]  # fmt: skip
    assert {"training", "validation", "selected epoch (4)"} <= set(texts_of(figures[0]))
    assert any(label.get_text().endswith("%") for label in accuracy.get_yticklabels())
    assert "3e-4" in [label.get_text() for label in rate.get_yticklabels()]
    assert pixels_of(tmp_path / "curves.png").shape[1] > 1300


@pytest.mark.parametrize(
    "rows",
    [history(1), history(40), history(3, val_loss=None), history(2, val_loss=float("nan")), [{"epoch": 0}]],
    ids=["one epoch", "many", "null", "nan", "nothing measured"],
)  # fmt: skip
def test_curves_of_short_and_gappy_histories(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    plots.plot_curves(tmp_path / "curves.png", rows)
    pixels_of(tmp_path / "curves.png")


def test_the_confusion_matrix_shows_counts_and_shares(tmp_path: Path, figures: list[Figure]) -> None:
    matrix = np.array([[2000, 1, 0], [10, 30, 0], [0, 0, 0]])
    plots.plot_confusion(tmp_path / "confusion.png", matrix, ["a", "b", "c"], "Test set")
    counts, shares = figures[0].axes
    assert [text.get_text() for text in counts.texts] == ["2,000", "1", "", "10", "30", "", "", "", ""]
    assert [text.get_text() for text in shares.texts] == [
        "99.9%", "<0.1%", "", "25.0%", "75.0%", "", "", "", ""
    ]  # fmt: skip
    assert [label.get_text() for label in counts.get_yticklabels()] == ["a (2,001)", "b (40)", "c (0)"]
    assert {"Test set", "Predicted"} <= set(texts_of(figures[0]))
    pixels_of(tmp_path / "confusion.png")


@pytest.mark.parametrize("num_classes", [2, 8, 16])
def test_letters_of_the_confusion_matrix_fit_their_cells(
    tmp_path: Path, figures: list[Figure], num_classes: int
) -> None:
    matrix = np.full((num_classes, num_classes), 1234)
    names = [f"class {label}" for label in range(num_classes)]
    plots.plot_confusion(tmp_path / "confusion.png", matrix, names)
    axis = figures[0].axes[0]
    cell = axis.get_window_extent().width / num_classes
    assert max(text.get_window_extent().width for text in axis.texts) < cell


def test_class_bars_show_the_table(tmp_path: Path, figures: list[Figure]) -> None:
    labels = np.arange(7).repeat(4)  # none of the last class
    table = per_class_table(predictions(labels, labels, np.full(28, 0.9)), labels, BLOOD_CELLS)
    table[0]["precision"] = 0.25
    plots.plot_per_class(tmp_path / "bars.png", table, "Validation")
    precision = figures[0].axes[0]
    assert widths_of(precision) == [0.25, 1, 1, 1, 1, 1, 1, 0]
    assert [text.get_text() for text in precision.texts] == ["0.250", *["1.000"] * 6, "–"]
    assert precision.get_yticklabels()[0].get_text() == "basophil (4)"
    assert precision.get_ylim()[0] > precision.get_ylim()[1]  # the first class on top
    pixels_of(tmp_path / "bars.png")


def test_class_counts_share_one_scale(tmp_path: Path, figures: list[Figure]) -> None:
    stages = {
        "As found": [1052, 2, 0],
        "After cleaning": [852, 2, 0],
        "Balanced": [5500] * 3,
        "Test": [1, 1, 1],
    }
    plots.plot_class_counts(tmp_path / "counts.png", stages, ["a", "b", "c"])
    shown = [axis for axis in figures[0].axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in shown] == [
        "As found\n1,054 examples", "After cleaning\n854 examples", "Balanced\n16,500 examples",
        "Test\n3 examples",
    ]  # fmt: skip
    assert [widths_of(axis) for axis in shown] == list(stages.values())
    assert len({axis.get_xlim() for axis in shown}) == 1
    pixels_of(tmp_path / "counts.png")


def test_mistakes_are_shown_surest_first_and_no_other_picture_is_read(tmp_path: Path, figures: list[Figure]) -> None:
    class Images:
        """Stands for a memory-mapped array that is larger than memory."""

        def __init__(self) -> None:
            self.read: list[int] = []

        def __getitem__(self, index: int) -> np.ndarray:
            self.read.append(int(index))
            return np.full((8, 8, 3), 20 * index, np.uint8)

    labels = np.zeros(6, int)
    predicted = np.array([0, 1, 2, 0, 3, 4])
    confidence = np.array([0.99, 0.5, 0.9, 0.8, 0.9, 0.6])
    images = Images()
    count = plots.plot_mistakes(
        tmp_path / "mistakes.png",
        images,  # type: ignore[arg-type]
        labels,
        predictions(labels, predicted, confidence),
        BLOOD_CELLS,
        limit=3,
    )
    assert count == 4
    assert images.read == [2, 4, 5]  # of equals the first
    texts = texts_of(figures[0])
    assert "4 mistakes in 6 examples; the 3 most confident" in texts
    assert [text for text in texts if text.startswith("→")] == [
        "→ erythroblast 90.0%",
        "→ ig 90.0%",
        "→ lymphocyte 60.0%",
    ]
    pixels_of(tmp_path / "mistakes.png")


def test_real_cells_come_out_as_they_are(tmp_path: Path, real_data: Path, figures: list[Figure]) -> None:
    with np.load(real_data / "test_set.npz") as file:
        images, labels = file["images"][:60], file["labels"][:60, 0].astype(int)
    sure_mistakes = predictions(labels, (labels + 1) % 8, np.linspace(1, 0.5, 60))
    plots.plot_mistakes(tmp_path / "mistakes.png", images, labels, sure_mistakes, BLOOD_CELLS, limit=12)
    drawn = [axis.images[0].get_array() for axis in figures[0].axes]
    assert len(drawn) == 12
    np.testing.assert_array_equal(np.stack([np.asarray(cell) for cell in drawn]), images[:12])
    assert len(np.unique(pixels_of(tmp_path / "mistakes.png").reshape(-1, 3), axis=0)) > 5000


def test_no_mistakes_are_said_to_be_none(tmp_path: Path, figures: list[Figure]) -> None:
    labels = np.array([0, 1])
    probabilities = predictions(labels, labels, np.full(2, 0.9))
    images = np.zeros((2, 8, 8, 3), np.uint8)
    assert plots.plot_mistakes(tmp_path / "mistakes.png", images, labels, probabilities, BLOOD_CELLS) == 0
    assert texts_of(figures[0]) == ["0 mistakes in 2 examples"]


def draw_odd_confusion(path: Path) -> None:
    plots.plot_confusion(path, np.eye(8, dtype=int) * 7, ODD, "$title$ with $")


def draw_odd_bars(path: Path) -> None:
    labels = np.arange(8)
    plots.plot_per_class(path, per_class_table(np.eye(8), labels, ODD), "$")


def draw_odd_counts(path: Path) -> None:
    plots.plot_class_counts(path, {"$": [0] * 8}, ODD)


def draw_odd_mistakes(path: Path) -> None:
    labels = np.arange(8)
    plots.plot_mistakes(path, np.zeros((8, 5, 9, 3), np.uint8), labels, np.eye(8)[(labels + 1) % 8], ODD)


@pytest.mark.parametrize("draw", [draw_odd_confusion, draw_odd_bars, draw_odd_counts, draw_odd_mistakes])
def test_odd_class_names_are_drawn_as_text(tmp_path: Path, figures: list[Figure], draw: Callable[[Path], None]) -> None:
    draw(tmp_path / "odd.png")
    shown = "\n".join(texts_of(figures[0]))
    assert "a\\$b\\$c_{" in shown
    assert "two lines" in shown
    assert "x" * 30 not in shown
    pixels_of(tmp_path / "odd.png")


def test_a_picture_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "confusion.png"
    path.write_bytes(b"old")
    figure = drawing.new_figure(3, 2)
    figure.text(0.5, 0.5, "$\\frac{$")  # a formula that is not closed fails when it is drawn
    with pytest.raises(ValueError, match="frac"):
        drawing.save_png(figure, path)
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["confusion.png"]
