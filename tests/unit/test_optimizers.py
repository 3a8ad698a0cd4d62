"""Our update rules against Keras' own optimizers, step by step on one device."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.training.optimizers import clip_factor, make_rule, new_weight, sgd

SHAPES = [(5, 4), (4,), (3, 3, 2, 4)]
STEPS = 15
RATE = 0.02


def keras_optimizer(name: str, decay: float, clip: float | None = None) -> keras.optimizers.Optimizer:
    common = {"learning_rate": RATE, "weight_decay": decay, "global_clipnorm": clip}
    return {
        "lion": lambda: keras.optimizers.Lion(beta_1=0.9, beta_2=0.99, **common),
        "adamw": lambda: keras.optimizers.AdamW(**common),
        "sgd": lambda: keras.optimizers.SGD(momentum=0.9, **common),
        "plain sgd": lambda: keras.optimizers.SGD(**common),
    }[name]()


def our_rule(name: str):
    return sgd(0.0) if name == "plain sgd" else make_rule(name)


def start() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype(np.float32) for shape in SHAPES]


def gradients_of_steps() -> list[list[np.ndarray]]:
    """Gradients of very different sizes, some exactly zero, as dead units have."""
    generator = np.random.default_rng(1)
    steps = []
    for step in range(STEPS):
        gradients = [(generator.normal(size=shape) * 10.0 ** (step % 4 - 2)).astype(np.float32) for shape in SHAPES]
        gradients[0][0] = 0.0
        steps.append(gradients)
    return steps


def with_keras(name: str, decay: float, clip: float | None = None) -> list[list[np.ndarray]]:
    optimizer = keras_optimizer(name, decay, clip)
    variables = [keras.Variable(value) for value in start()]
    path = []
    for gradients in gradients_of_steps():
        optimizer.apply([tf.constant(gradient) for gradient in gradients], variables)
        path.append([variable.numpy() for variable in variables])
    return path


def with_ours(name: str, decay: float, clip: float | None = None) -> list[list[np.ndarray]]:
    rule = our_rule(name)
    weights = [tf.constant(value) for value in start()]
    slots = [tuple(tf.zeros_like(weight) for _ in rule.slot_names) for weight in weights]
    path = []
    for step, arrays in enumerate(gradients_of_steps()):
        factor = clip_factor(tf.linalg.global_norm([tf.constant(array) for array in arrays]), clip)
        for index, array in enumerate(arrays):
            weights[index], slots[index] = new_weight(
                rule,
                weights[index],
                array * factor,
                slots[index],
                learning_rate=tf.constant(RATE),
                weight_decay=decay,
                count=tf.constant(step + 1.0),
            )
        path.append([weight.numpy() for weight in weights])
    return path


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", ["lion", "adamw", "sgd", "plain sgd"])
def test_each_rule_follows_keras_at_every_step(name: str, decay: float) -> None:
    for theirs, ours in zip(with_keras(name, decay), with_ours(name, decay), strict=True):
        for expected, found in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-6)


def test_weight_decay_moves_the_weights() -> None:
    plain, decayed = with_ours("adamw", 0.0)[-1], with_ours("adamw", 0.3)[-1]
    assert np.abs(plain[0] - decayed[0]).max() > 0.01


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_clipping_follows_keras_global_clipnorm(name: str) -> None:
    clipped, free = with_ours(name, 0.1, clip=0.5), with_ours(name, 0.1)
    assert np.abs(clipped[-1][0] - free[-1][0]).max() > 1e-3
    for theirs, ours in zip(with_keras(name, 0.1, clip=0.5), clipped, strict=True):
        for expected, found in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize(
    ("limit", "norm", "expected"),
    [(1.0, 5.0, 0.2), (5.0, 5.0, 1.0), (50.0, 5.0, 1.0), (None, 5.0, 1.0), (1.0, 0.0, 1.0)],
)
def test_clipping_takes_a_norm_down_to_its_limit(limit: float | None, norm: float, expected: float) -> None:
    np.testing.assert_allclose(float(clip_factor(tf.constant(norm), limit)), expected, rtol=1e-6)


def test_a_rule_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError, match="rmsprop"):
        make_rule("rmsprop")
