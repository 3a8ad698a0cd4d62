"""The split step: one compiled program, the same sum of gradients however the global batch is cut."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment.policies import build_policy
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.models.dropout import StatelessDropout
from bloodcell_dist.training.losses import make_loss
from bloodcell_dist.training.optimizers import make_rule
from bloodcell_dist.training.placement import Batch, DeviceCells
from bloodcell_dist.training.replication import SingleDevice
from bloodcell_dist.training.step import Compile, Step, gradient_function
from bloodcell_dist.training.update import Update

SIZE, NUM_CLASSES, BATCH = 32, 8, 16
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (64, SIZE, SIZE, 3), dtype=np.uint8)
LABELS = GENERATOR.integers(0, NUM_CLASSES, 64).astype(np.int32)
INDICES = GENERATOR.permutation(64)[:BATCH].astype(np.int32)

PLAIN = Compile(model=False, parts=False)
PARTS = Compile(model=False, parts=True)
WHOLE = Compile(model=True, parts=True)

Gradients = Any  # a tf.function; TensorFlow has no types


def network(dropout: float = 0.4) -> keras.Model:
    """Without BatchNorm, whose statistics depend on how the batch is cut; with dropout."""
    keras.utils.set_random_seed(0)
    pictures = keras.Input((SIZE, SIZE, 3))
    features = keras.layers.Rescaling(1 / 127.5, -1.0)(pictures)
    for width in (8, 16):
        features = keras.layers.Conv2D(width, 3, strides=2, activation="relu")(features)
    features = StatelessDropout(dropout, stream=1)(features)
    features = keras.layers.GlobalAveragePooling2D()(features)
    features = StatelessDropout(dropout, stream=0)(features)
    return keras.Model(pictures, keras.layers.Dense(NUM_CLASSES, dtype="float32")(features))


def function(model: keras.Model, *, policy: str = "seed", compile: Compile = PLAIN, batch: int = BATCH) -> Gradients:
    return gradient_function(
        model,
        build_policy(policy, image_size=SIZE, num_classes=NUM_CLASSES),
        make_loss("cross_entropy", label_smoothing=0.1),
        num_classes=NUM_CLASSES,
        global_batch_size=batch,
        seed=11,
        compile=compile,
    )


def call(gradients: Gradients, indices: np.ndarray = INDICES, first: int = 0, step: int = 3, scale: float = 1.0):
    """Gradients, losses and probabilities as arrays."""
    found, losses, probabilities = gradients(
        tf.constant(IMAGES),
        tf.constant(LABELS, tf.int64),
        tf.constant(indices),
        tf.constant(first),
        tf.constant(step),
        tf.constant(scale),
    )
    return [np.asarray(gradient) for gradient in found], np.asarray(losses), np.asarray(probabilities)


def flat(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays]).astype(np.float64)


def distance(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Of all gradients together, relative to their size."""
    return float(np.linalg.norm(flat(found) - flat(expected)) / np.linalg.norm(flat(expected)))


@functools.cache
def small(compile: Compile) -> tuple[keras.Model, Gradients, list[np.ndarray]]:
    """The small network, its gradients with policy `seed`, and its first weights; traced once for all tests."""
    model = network()
    return model, function(model, compile=compile), model.get_weights()


def fresh(compile: Compile = PARTS) -> Gradients:
    """`small` with its first weights."""
    model, gradients, start = small(compile)
    model.set_weights(start)
    return gradients


@pytest.fixture
def gradients() -> Gradients:
    """Compiled as on a CPU."""
    return fresh()


@pytest.mark.slow
def test_outputs_are_per_example_and_float32(gradients: Gradients) -> None:
    found, losses, probabilities = call(gradients)
    assert [gradient.shape for gradient in found] == [tuple(w.shape) for w in network().trainable_variables]
    assert {gradient.dtype for gradient in found} == {np.dtype(np.float32)}
    assert (losses.shape, losses.dtype) == ((BATCH,), np.float32)
    assert (probabilities.shape, probabilities.dtype) == ((BATCH, NUM_CLASSES), np.float32)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)


def test_gradients_are_those_of_the_mean_loss() -> None:
    """Without augmentation and dropout, a few lines of Keras compute the same."""
    model = network(dropout=0.0)
    found, losses, _ = call(function(model, policy="none"), scale=4.0)
    targets = np.eye(NUM_CLASSES)[LABELS[INDICES]]
    with tf.GradientTape() as tape:
        logits = model(IMAGES[INDICES].astype(np.float32), training=True)
        mean = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)(targets, logits)
    expected = tape.gradient(mean, [variable.value for variable in model.trainable_variables])
    assert losses.mean() == pytest.approx(float(mean), rel=1e-6)
    assert distance(found, [4.0 * gradient.numpy() for gradient in expected]) < 1e-6


@pytest.mark.parametrize(
    ("slices", "compile"),
    [
        pytest.param(4, PLAIN, id="4-plain"),
        pytest.param(4, PARTS, id="4-parts", marks=pytest.mark.slow),
        pytest.param(2, WHOLE, id="2-whole", marks=pytest.mark.slow),
        pytest.param(2, PLAIN, id="2-plain", marks=pytest.mark.thorough),
        pytest.param(2, PARTS, id="2-parts", marks=pytest.mark.thorough),
        pytest.param(4, WHOLE, id="4-whole", marks=pytest.mark.thorough),
    ],
)
def test_slices_of_the_global_batch_sum_to_the_whole(slices: int, compile: Compile) -> None:
    gradients = fresh(compile)
    whole, losses, probabilities = call(gradients)
    size = BATCH // slices
    parts = [call(gradients, INDICES[start : start + size], first=start) for start in range(0, BATCH, size)]
    sums = [np.sum(each, axis=0) for each in zip(*(part[0] for part in parts), strict=True)]
    assert distance(sums, whole) < 1e-5
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), losses, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([part[2] for part in parts]), probabilities, rtol=1e-5)


@pytest.mark.slow
def test_a_slice_at_another_place_is_another_draw(gradients: Gradients) -> None:
    """What would happen if every replica began at position 0."""
    half = INDICES[: BATCH // 2]
    assert distance(call(gradients, half, first=0)[0], call(gradients, half, first=8)[0]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("compile", [PARTS, WHOLE], ids=["parts", "whole"])
def test_compiled_and_plain_gradients_agree(compile: Compile) -> None:
    plain, compiled = call(fresh(PLAIN)), call(fresh(compile))
    assert distance(compiled[0], plain[0]) < 1e-3
    np.testing.assert_allclose(compiled[1], plain[1], rtol=1e-3)


def test_the_same_step_gives_the_same_bits_and_another_one_other_pictures(gradients: Gradients) -> None:
    one, same, other = call(gradients, step=3), call(gradients, step=3), call(gradients, step=4)
    for a, b in zip(flat(one[0]), flat(same[0]), strict=True):
        assert a == b
    np.testing.assert_array_equal(one[1], same[1])
    assert np.abs(one[1] - other[1]).min() > 0
    assert distance(other[0], one[0]) > 0.1


@pytest.mark.slow
def test_a_new_function_of_the_same_seed_gives_the_same_bits() -> None:
    """As a resumed run does."""
    for one, other in zip(call(fresh(PLAIN)), call(function(network())), strict=True):
        np.testing.assert_array_equal(flat(list(one)), flat(list(other)))


def test_pictures_without_augmentation_change_with_the_step_by_dropout_only() -> None:
    with_dropout, without = function(network(), policy="none"), function(network(0.0), policy="none")
    assert np.abs(call(with_dropout, step=1)[1] - call(with_dropout, step=2)[1]).max() > 1e-3
    np.testing.assert_array_equal(call(without, step=1)[1], call(without, step=2)[1])


def test_one_program_serves_all_steps() -> None:
    gradients = function(network(), policy="none")
    for step in range(4):
        call(gradients, first=step * BATCH, step=step, scale=2.0**step)
    assert gradients.experimental_get_tracing_count() == 1


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    keras.mixed_precision.set_dtype_policy(request.param)
    yield request.param
    keras.mixed_precision.set_dtype_policy("float32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"], indirect=True)
def test_half_precision_gives_float32_gradients_near_the_full_ones(precision: str) -> None:
    scale = 2.0**15
    found, losses, _ = call(function(network()), scale=scale)
    keras.mixed_precision.set_dtype_policy("float32")
    expected, full_losses, _ = call(fresh(PLAIN))
    assert {gradient.dtype for gradient in found} == {np.dtype(np.float32)}
    np.testing.assert_allclose(losses, full_losses, rtol=0.05)
    assert distance([gradient / scale for gradient in found], expected) < 0.05


@pytest.mark.parametrize("precision", ["mixed_float16"], indirect=True)
def test_loss_scaling_saves_gradients_that_float16_cannot_hold(precision: str) -> None:
    def tiny(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return make_loss("cross_entropy")(labels, logits) * 1e-6

    def zeros(scale: float) -> float:
        gradients = gradient_function(
            network(),
            build_policy("none", image_size=SIZE, num_classes=NUM_CLASSES),
            tiny,
            num_classes=NUM_CLASSES,
            global_batch_size=BATCH,
            seed=0,
            compile=PLAIN,
        )
        return float(np.mean(call(gradients, scale=scale)[0][0] == 0))

    assert zeros(1.0) > 0.5
    assert zeros(2.0**15) < 0.1


def make_step(passes: int, *, rule: str = "sgd", loss_scaling: bool = False, compile: Compile = PARTS):
    """A step of `passes` accumulation passes from the first weights, its network and its update."""
    gradients = fresh(compile)
    model = small(compile)[0]
    weights = model.trainable_variables
    update = Update(
        [weight.value for weight in weights],
        [weight.path for weight in weights],
        make_rule(rule),
        weight_decay=0.0,
        clip_norm=None,
        ema_decay=0.9,
        loss_scaling=loss_scaling,
        xla=compile.parts,
    )
    size = BATCH // passes
    cells = DeviceCells(IMAGES, LABELS, SingleDevice())
    step = Step(gradients, update, SingleDevice(), cells=cells, per_replica_batch_size=size)
    return step, model, update


@pytest.mark.slow
@pytest.mark.parametrize("passes", [2, 4])
@pytest.mark.parametrize("loss_scaling", [False, True])
def test_accumulation_makes_the_same_update(passes: int, loss_scaling: bool) -> None:
    outputs, moves = [], []
    for count in (1, passes):
        step, model, _ = make_step(count, loss_scaling=loss_scaling and count > 1)
        before = model.get_weights()
        outputs.append(step(Batch(tf.constant(INDICES[None])), 0, [1.0])[0])
        moves.append([after - old for after, old in zip(model.get_weights(), before, strict=True)])
    one, other = outputs
    assert distance(moves[1], moves[0]) < 1e-5
    np.testing.assert_allclose(other.losses, one.losses, rtol=1e-5)
    np.testing.assert_allclose(other.probabilities, one.probabilities, rtol=1e-5)
    np.testing.assert_allclose(float(other.gradient_norm), float(one.gradient_norm), rtol=1e-5)
    assert bool(one.finite) and bool(other.finite)


def test_several_steps_repeat_to_the_bit_and_are_traced_once() -> None:
    finals, traces = [], []
    for _ in range(2):
        step, model, update = make_step(2, rule="lion")
        for number in range(4):
            step(Batch(tf.constant(np.roll(INDICES, number)[None])), number, [0.01 / (number + 1)])
        finals.append(model.get_weights())
        traces.append(small(PARTS)[1].experimental_get_tracing_count())
        assert update.apply.experimental_get_tracing_count() == 1
    assert traces[0] == traces[1]
    for one, other in zip(*finals, strict=True):
        np.testing.assert_array_equal(one, other)


class SecondRank(SingleDevice):
    """What a rank of Horovod is to the step: its number is known when traced."""

    rank = 1


def test_all_passes_of_all_ranks_share_a_program() -> None:
    """A program of its own for each would cost its compilation, and no rank would find what another has compiled."""
    model = network()
    gradients = function(model, policy="none")
    for replication in (SingleDevice(), SecondRank()):
        weights = [weight.value for weight in model.trainable_variables]
        names = [weight.path for weight in model.trainable_variables]
        update = Update(weights, names, make_rule("sgd"), weight_decay=0.0, clip_norm=None, ema_decay=None, xla=False)
        cells = DeviceCells(IMAGES, LABELS, replication)
        step = Step(gradients, update, replication, cells=cells, per_replica_batch_size=BATCH // 4)
        step(Batch(tf.constant(INDICES[None])), 0, [0.01])
    assert gradients.experimental_get_tracing_count() == 1


def test_training_lowers_the_loss() -> None:
    step, _, _ = make_step(1, rule="adamw")
    losses = [float(np.mean(step(Batch(tf.constant(INDICES[None])), number, [0.01])[0].losses)) for number in range(40)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05


def mobilenet(compile: Compile):
    """Policy `light`: in `seed` equalise makes whole levels of the last bit's difference."""
    model = build_classifier("mobilenetv3small", image_size=SIZE, num_classes=NUM_CLASSES, dropout=0.2, seed=0)
    return call(function(model, policy="light", compile=compile)), model


def test_training_leaves_the_moving_statistics_alone() -> None:
    """They would follow each replica's own slices; `models.batchnorm` measures them when they are needed."""
    keras.utils.set_random_seed(0)
    pictures = keras.Input((SIZE, SIZE, 3))
    features = keras.layers.Conv2D(8, 3, strides=4)(pictures)
    features = keras.layers.BatchNormalization(name="norm")(features)
    features = keras.layers.GlobalAveragePooling2D()(features)
    model = keras.Model(pictures, keras.layers.Dense(NUM_CLASSES, dtype="float32")(features))
    found, _, _ = call(function(model, policy="none"))
    norm = model.get_layer("norm")
    assert np.all(norm.moving_mean.numpy() == 0) and np.all(norm.moving_variance.numpy() == 1)
    with tf.GradientTape() as tape:  # the same gradients as with them
        logits = model(IMAGES[INDICES].astype(np.float32), training=True)
        targets = np.eye(NUM_CLASSES)[LABELS[INDICES]]
        mean = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)(targets, logits)
    expected = tape.gradient(mean, [variable.value for variable in model.trainable_variables])
    assert np.abs(norm.moving_mean.numpy()).max() > 0
    assert distance(found, [gradient.numpy() for gradient in expected]) < 1e-5


@pytest.mark.slow
def test_the_whole_of_mobilenets_gradients_compiles_and_agrees() -> None:
    """Gather, augment, forward, loss and backward as one `jit_compile=True` program."""
    plain, plain_model = mobilenet(PLAIN)
    compiled, compiled_model = mobilenet(WHOLE)
    np.testing.assert_allclose(compiled[1], plain[1], rtol=1e-3)
    np.testing.assert_allclose(compiled[2], plain[2], rtol=5e-3, atol=1e-4)
    assert distance(compiled[0], plain[0]) < 1e-3
    for one, other in zip(compiled_model.get_weights(), plain_model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)  # the moving statistics moved alike
