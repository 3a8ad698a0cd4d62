import numpy as np
import pytest
from PIL import Image

from bloodcell_dist.augment.preview import describe, draw_preview
from bloodcell_dist.errors import UserError

NAMES = ["basophil", "monocyte", "neutrophil", "platelet"]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ([0, 0, 1, 0], "neutrophil"),
        ([0, 0.004, 0.996, 0], "neutrophil"),
        ([0.37, 0, 0.63, 0], "neutrophil 63 %\nbasophil 37 %"),
        ([0.2, 0.5, 0.3, 0], "monocyte 50 %\nneutrophil 30 %\nbasophil 20 %"),
    ],
)
def test_labels_in_words(label, words):
    assert describe(np.array(label), NAMES) == words


def some_cells(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, 24, 24, 3), dtype=np.uint8), random.integers(0, 4, (count, 1))


@pytest.mark.parametrize(("count", "columns"), [(3, 4), (6, 8), (20, 8)])
def test_draws_a_grid_of_whole_groups(tmp_path, count, columns):
    path = tmp_path / "preview.png"
    draw_preview(*some_cells(count), NAMES, "light", 1, path, steps=1)
    with Image.open(path) as picture:
        width, height = picture.size
    assert width == pytest.approx(130 * (1.35 * columns + 0.5), abs=2)
    assert height == pytest.approx(130 * (1.75 * 2 + 0.5), abs=2)


@pytest.mark.parametrize("name", ["preview", "preview.xyz", "preview.jpg"])
def test_whatever_its_name_it_is_a_png(tmp_path, name):
    draw_preview(*some_cells(4), NAMES, "none", 1, tmp_path / name, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with Image.open(tmp_path / name) as picture:
        assert picture.format == "PNG"


def test_real_cells_of_the_same_seed_give_the_same_picture(tmp_path, real_data):
    with np.load(real_data / "test_set.npz") as cells:
        images, labels = cells["images"][:8], cells["labels"][:8]
    names = [f"class {number}" for number in range(8)]
    pictures = []
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        draw_preview(images, labels, names, "seed", seed, tmp_path / f"{name}.png", steps=2)
        with Image.open(tmp_path / f"{name}.png") as picture:
            pictures.append(np.asarray(picture.convert("RGB"), np.int16))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert pictures[0].shape != pictures[2].shape or np.abs(pictures[0] - pictures[2]).mean() > 5
    row = pictures[0].shape[0] // 3
    assert np.abs(pictures[0][:row] - pictures[0][row : 2 * row]).mean() > 5


def test_unknown_policy_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(UserError, match="augment.policy=wild"):
        draw_preview(*some_cells(4), NAMES, "wild", 0, tmp_path / "preview.png")
    assert not list(tmp_path.iterdir())


def test_no_cells_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a preview needs at least one image, got none"):
        draw_preview(*some_cells(0), NAMES, "light", 0, tmp_path / "preview.png")
