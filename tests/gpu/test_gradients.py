"""The whole gradient function as one XLA program on a GPU, against plain TensorFlow on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment.policies import build_policy
from bloodcell_dist.data.synthetic import synthetic_cells
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.training.losses import make_loss
from bloodcell_dist.training.step import Compile, gradient_function

pytestmark = pytest.mark.gpu

SIZE, NUM_CLASSES, BATCH = 48, 8, 32
INDICES = np.random.default_rng(0).permutation(64)[:BATCH].astype(np.int32)

Record = Callable[[str, object], None]


class Computed(NamedTuple):
    """What the function returns, and the weights that it was computed with."""

    gradients: list[np.ndarray]
    losses: np.ndarray
    probabilities: np.ndarray
    weights: list[np.ndarray]


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Products of float32 are not shortened to TF32, which has 10 bits."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


def compute(backbone: str, device: str, compile: Compile, weights: Sequence[np.ndarray] | None = None) -> Computed:
    """Gather, augmentation of policy `seed`, forward, loss and backward on a device."""
    cells = synthetic_cells(64, SIZE)
    with tf.device(device):
        model = build_classifier(backbone, image_size=SIZE, num_classes=NUM_CLASSES, dropout=0.2, seed=0)
        if weights is not None:
            model.set_weights(weights)
        function = gradient_function(
            model,
            build_policy("seed", image_size=SIZE, num_classes=NUM_CLASSES),
            make_loss("cross_entropy", label_smoothing=0.05),
            num_classes=NUM_CLASSES,
            global_batch_size=BATCH,
            seed=11,
            compile=compile,
        )
        gradients, losses, probabilities = function(
            tf.constant(cells.images),
            tf.constant(cells.labels),
            tf.constant(INDICES),
            tf.constant(0),
            tf.constant(3),
            tf.constant(1.0),
        )
    assert {tensor.device.split("/")[-1] for tensor in (*gradients, losses)} == {f"device:{device}"}
    arrays = [np.asarray(gradient) for gradient in gradients]
    return Computed(arrays, np.asarray(losses), np.asarray(probabilities), model.get_weights())


def flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays]).astype(np.float64)


def distance(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Of all gradients together, relative to their size."""
    return float(np.linalg.norm(flat(found) - flat(expected)) / np.linalg.norm(flat(expected)))


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("backbone", ["cnn", "mobilenetv3small"])
def test_one_program_computes_what_the_cpu_does(device: str, backbone: str, record_property: Record) -> None:
    found = compute(backbone, device, Compile(model=True, parts=True))
    expected = compute(backbone, "CPU:0", Compile(model=False, parts=False), found.weights)
    assert np.isfinite(flat(found.gradients)).all() and np.isfinite(found.losses).all()
    apart = distance(found.gradients, expected.gradients)
    record_property("relative distance of the gradients", f"{apart:.1e}")
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-2)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-2, atol=1e-4)
    assert apart < 1e-2
