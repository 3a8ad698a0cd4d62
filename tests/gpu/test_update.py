"""The compiled update on a GPU: an overflow is skipped, the loss scale follows."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.training.optimizers import make_rule
from bloodcell_dist.training.update import INITIAL_LOSS_SCALE, Update

pytestmark = pytest.mark.gpu

SHAPES = [(64, 32), (32,), (256, 256), ()]  # a pack of three and one that is alone
RATE = 0.01


def draw(seed: int, scale: float) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [(scale * generator.normal(size=shape)).astype(np.float32) for shape in SHAPES]


class Run:
    """An update with loss scaling whose state lies on a device."""

    def __init__(self, device: str, rule: str) -> None:
        self.device = device
        with tf.device(device):
            self.weights = [tf.Variable(value) for value in draw(0, 1.0)]
            self.update = Update(
                self.weights,
                ["kernel", "bias", "large", "scalar"],
                make_rule(rule),
                weight_decay=0.1,
                clip_norm=1.0,
                ema_decay=0.9,
                loss_scaling=True,
            )

    def advance(self, gradients: list[np.ndarray]) -> bool:
        """Whether the update was made."""
        with tf.device(self.device):
            _, finite = self.update.apply([tf.constant(gradient) for gradient in gradients], tf.constant(RATE))
        return bool(finite)

    def state(self) -> dict[str, np.ndarray]:
        named = {name: np.array(array) for name, array in self.update.arrays().items()}
        return named | {f"weights/{number}": weight.numpy() for number, weight in enumerate(self.weights)}


@pytest.mark.parametrize("rule", ["lion", "adamw", "sgd"])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_value_that_is_not_finite_skips_the_update_and_halves_the_scale(device: str, rule: str, bad: float) -> None:
    run = Run(device, rule)
    assert run.advance(draw(1, INITIAL_LOSS_SCALE))
    before = run.state()
    gradients = draw(2, INITIAL_LOSS_SCALE)
    gradients[1][3] = bad
    assert not run.advance(gradients)
    after = run.state()
    assert after["loss_scale"] == before["loss_scale"] / 2 == INITIAL_LOSS_SCALE / 2
    assert (before["finite_updates"], after["finite_updates"]) == (1, 0)
    for name in set(before) - {"loss_scale", "finite_updates"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert run.advance(draw(3, INITIAL_LOSS_SCALE / 2))
    assert not np.array_equal(run.state()["weights/0"], after["weights/0"])


@pytest.mark.parametrize("rule", ["lion", "adamw", "sgd"])
def test_updates_are_those_of_the_cpu(device: str, rule: str) -> None:
    here, there = Run(device, rule), Run("CPU:0", rule)
    for step in range(1, 11):
        active = [0, 1, 2, 3] if step < 8 else [0, 3]
        gradients = [draw(step, INITIAL_LOSS_SCALE)[place] for place in active]
        for run in (here, there):
            if step in (1, 8):
                run.update.select(active)
            assert run.advance(gradients)
    expected = there.state()
    for name, value in here.state().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_all_of_its_state_lies_on_the_gpu(device: str) -> None:
    run = Run(device, "adamw")
    assert {variable.device.split("/")[-1] for variable in run.update.variables()} == {f"device:{device}"}
