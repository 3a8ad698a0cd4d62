import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bloodcell_dist.data.dataset import in_memory
from bloodcell_dist.data.synthetic import REAL_SHARES, synthetic_cells
from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import BLOOD_CELLS


@pytest.fixture(scope="module")
def cells():
    return synthetic_cells([40] * 8, image_size=48, seed=0)


def test_the_same_arguments_draw_the_same_bytes():
    first, again = synthetic_cells(16, 32, seed=5), synthetic_cells(16, 32, seed=5)
    assert first.fingerprint() == again.fingerprint()
    assert synthetic_cells(16, 32, seed=6).fingerprint() != first.fingerprint()


def test_counts_follow_the_real_set_unless_given(cells):
    assert cells.class_counts().tolist() == [40] * 8
    imbalanced = synthetic_cells(160, 16).class_counts()
    assert imbalanced.sum() == 160
    assert imbalanced == pytest.approx(160 * np.array(REAL_SHARES) / sum(REAL_SHARES), abs=2)
    assert synthetic_cells(8, 16).class_counts().tolist() == [1] * 8


def test_pictures_are_written_where_the_caller_says():
    target = in_memory((8, 16, 16, 3))
    drawn = synthetic_cells(8, 16, allocate=lambda shape: target.reshape(shape))
    assert np.shares_memory(drawn.images, target)


@pytest.mark.parametrize(
    ("counts", "message"),
    [(7, "7 synthetic examples; expected at least 8"), ([1, 2], "expected 8 numbers"), ([0] * 8, "expected 8 numbers")],
)
def test_impossible_counts_are_refused(counts, message):
    with pytest.raises(UserError, match=message):
        synthetic_cells(counts)


def test_no_two_cells_are_alike(cells):
    assert len({image.tobytes() for image in cells.images}) == 320
    assert len(set(cells.labels[:20])) > 3  # shuffled


def test_types_look_as_they_should(cells):
    """Coverage by stained (dark) pixels: platelets least, lymphocytes and monocytes in this order."""
    dark = (cells.images.astype(int).mean(axis=-1) < 140).mean(axis=(1, 2))
    share = {name: dark[cells.labels == label].mean() for label, name in enumerate(BLOOD_CELLS)}
    assert share["platelet"] < 0.4 * min(value for name, value in share.items() if name != "platelet")
    assert share["erythroblast"] < share["lymphocyte"] < share["monocyte"]


def test_learnable_but_not_by_a_linear_model(cells):
    """A linear model beats chance (0.125) clearly and stays far from right; a small CNN reaches about 0.95."""
    features = cells.images.reshape(320, 12, 4, 12, 4, 3).mean(axis=(2, 4)).reshape(320, -1) / 255
    train, test = np.arange(0, 320, 2), np.arange(1, 320, 2)
    model = LogisticRegression(C=0.1, max_iter=2000).fit(features[train], cells.labels[train])
    assert 0.35 < model.score(features[test], cells.labels[test]) < 0.85
