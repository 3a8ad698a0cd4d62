import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as tf_config

from bloodcell_dist.augment.fused import FusedPolicy
from bloodcell_dist.augment.mixing import BatchChoice
from bloodcell_dist.augment.policies import POLICY_NAMES, build_policy
from bloodcell_dist.augment.shared_warp import SharedWarp
from bloodcell_dist.errors import UserError

BATCH, SIZE, CLASSES = 16, 32, 5
# Rounding differs between shapes and compilers; a pixel at a threshold (hole, mask, solarise) may go either way.
TOLERANCE, EXCEPTIONS = 0.05, 0.005


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    smooth = tf.image.resize(random.uniform(0, 255, (BATCH, 8, 8, 3)), [SIZE, SIZE])
    labels = np.eye(CLASSES, dtype=np.float32)[random.integers(0, CLASSES, BATCH)]
    return tf.cast(smooth, tf.uint8), tf.constant(labels)


@pytest.fixture(scope="module")
def policies():
    return {name: build_policy(name, image_size=SIZE, num_classes=CLASSES) for name in POLICY_NAMES}


def run(policy, batch, seed=7, step=0, places=range(BATCH)):
    images, labels = (tf.gather(part, list(places)) for part in batch)
    images, labels = policy(images, labels, seed, tf.constant(step), tf.constant(list(places), tf.int32))
    return images.numpy(), labels.numpy()


def assert_same(got, expected):
    assert np.mean(np.abs(got[0] - expected[0]) > TOLERANCE) < EXCEPTIONS
    np.testing.assert_allclose(got[1], expected[1], atol=EXCEPTIONS)


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_pictures_and_labels_keep_their_shapes_and_ranges(policies, batch, name):
    for step in range(4):
        images, labels = run(policies[name], batch, step=step)
        assert images.dtype == np.float32 and images.shape == (BATCH, SIZE, SIZE, 3)
        assert images.min() >= 0.0 and images.max() <= 255.0
        assert labels.shape == (BATCH, CLASSES)
        np.testing.assert_allclose(labels.sum(axis=1), 1.0, atol=1e-6)


def test_none_only_casts(policies, batch):
    images, labels = run(policies["none"], batch)
    np.testing.assert_array_equal(images, batch[0])
    np.testing.assert_array_equal(labels, batch[1])


@pytest.mark.parametrize("name", ["light", "robust"])
def test_only_seed_changes_labels(policies, batch, name):
    images, labels = run(policies[name], batch)
    np.testing.assert_array_equal(labels, batch[1])
    assert np.abs(images - batch[0]).mean() > 3.0


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("name", ["light", "seed", "robust"])
def test_replicas_see_the_pictures_that_one_would(policies, batch, name, replicas):
    for step in range(4):
        whole = run(policies[name], batch, step=step)
        slices = [run(policies[name], batch, step=step, places=part) for part in np.split(np.arange(BATCH), replicas)]
        assert_same([np.concatenate(parts) for parts in zip(*slices, strict=True)], whole)


def test_draws_of_a_slice_are_the_batchs_to_the_bit(policies):
    policy, step = policies["seed"], tf.constant(3)
    whole = policy._draws(7, step, tf.range(BATCH))
    part = policy._draws(7, step, tf.range(4, 8))
    for ours, all_of_them in zip(part, whole, strict=True):
        np.testing.assert_array_equal(ours, all_of_them[4:8])


def test_repeats_itself_and_differs_by_seed_and_step(policies, batch):
    first, _ = run(policies["seed"], batch)
    np.testing.assert_array_equal(first, run(policies["seed"], batch)[0])
    for other in ({"seed": 8}, {"step": 1}):
        assert np.abs(first - run(policies["seed"], batch, **other)[0]).mean() > 10.0


@pytest.mark.parametrize("name", ["light", "seed", "robust"])
def test_compiled_equals_eager(policies, batch, name):
    policy = policies[name]

    @tf.function(jit_compile=True)
    def compiled(images, labels, step, positions):
        return policy(images, labels, 7, step, positions)

    for step in range(6):
        got = compiled(*batch, tf.constant(step), tf.range(BATCH))
        assert_same([part.numpy() for part in got], run(policy, batch, step=step))


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, 17])
def test_seed_takes_the_smallest_pictures(size):
    policy = build_policy("seed", image_size=size, num_classes=CLASSES)
    images = tf.random.stateless_uniform([8, size, size, 3], [1, 2], 0, 255)
    labels = tf.one_hot(np.arange(8) % CLASSES, CLASSES)
    call = tf.function(policy, autograph=False)  # traces every mixing layer, where eager calls run the chosen one
    for step in range(4):
        mixed, soft = call(images, labels, 7, tf.constant(step), tf.range(8))
        assert mixed.shape == images.shape and np.isfinite(mixed).all()
        np.testing.assert_allclose(np.sum(soft, axis=1), 1.0, atol=1e-6)


@pytest.fixture
def deterministic():
    tf.config.experimental.enable_op_determinism()
    yield
    tf_config.disable_op_determinism()


@pytest.mark.slow
def test_compiles_inside_a_deterministic_gradient_function(batch, deterministic):
    policy = build_policy("seed", image_size=SIZE, num_classes=CLASSES)
    weights = tf.Variable(tf.fill([3, CLASSES], 0.01))

    def gradient(step):
        with tf.GradientTape() as tape:
            images, labels = policy(batch[0], batch[1], 7, step, tf.range(BATCH))
            logits = tf.reduce_mean(images, axis=(1, 2)) @ weights
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
        return loss, tape.gradient(loss, weights)

    whole = tf.function(gradient, jit_compile=True)
    nested = tf.function(tf.function(gradient, jit_compile=True))
    for step in range(3):
        loss, gradients = whole(tf.constant(step))
        assert np.isfinite(loss) and np.abs(gradients).max() > 0.0
        np.testing.assert_array_equal(gradients, whole(tf.constant(step))[1])
        np.testing.assert_array_equal(gradients, nested(tf.constant(step))[1])
        np.testing.assert_allclose(gradients, gradient(tf.constant(step))[1], atol=0.1)


@pytest.mark.parametrize("replicas", [2, 4])
def test_what_groups_of_four_share_does_not_depend_on_the_cut(policies, batch, replicas):
    """RandAugment alone: every example's operations and pictures, at several steps."""
    (layer,) = policies["seed"].layers[1].layers[:1]
    policy = FusedPolicy("alone", (SharedWarp([layer]),), SIZE, CLASSES)
    assert policy.group_size == 4
    for step in range(3):
        whole = run(policy, batch, step=step)
        slices = [run(policy, batch, step=step, places=part) for part in np.split(np.arange(BATCH), replicas)]
        assert_same([np.concatenate(parts) for parts in zip(*slices, strict=True)], whole)


@pytest.mark.slow
def test_seed_mixes_a_quarter_of_the_batches_each_way(policies):
    choice = policies["seed"].layers[0]
    assert isinstance(choice, BatchChoice)
    shares = np.array([policies["seed"]._draws(7, tf.constant(step), tf.range(4))[0][:, 1] for step in range(200)])
    assert np.all(shares == shares[:, :1])
    assert np.bincount((4 * shares[:, 0]).astype(int)) / 200 == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("name", ["light", "seed", "robust"])
def test_magnitude_scales_the_strength(batch, name):
    def change(magnitude):
        policy = build_policy(name, image_size=SIZE, num_classes=CLASSES, magnitude=magnitude)
        flat = (tf.broadcast_to([160.0, 100.0, 130.0], [BATCH, SIZE, SIZE, 3]), batch[1])
        return np.mean([np.abs(run(policy, flat, step=step)[0] - flat[0]).mean() for step in range(4)])

    assert change(0.0) < change(0.25) < change(1.0)


def test_groups(policies):
    assert [policies[name].group_size for name in POLICY_NAMES] == [1, 1, 4, 1]
    assert all(policy.deterministic for policy in policies.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["light", "seed", "robust"])
def test_stock_engine_runs_the_same_policy_but_promises_nothing(batch, name):
    policy = build_policy(name, engine="kerascv", image_size=SIZE, num_classes=CLASSES)
    assert not policy.deterministic and policy.group_size == 1

    @tf.function
    def call(images, labels, step, positions):
        return policy(images, labels, 7, step, positions)

    images, labels = call(batch[0][:4], batch[1][:4], tf.constant(0), tf.range(4))
    assert images.shape == (4, SIZE, SIZE, 3) and images.dtype == tf.float32
    assert np.min(images) >= 0.0 and np.max(images) <= 255.0
    np.testing.assert_allclose(np.sum(labels, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "strong"}, "augment.policy=strong: there is no such policy; use one of none, light, seed, robust"),
        ({"engine": "torch"}, "augment.engine=torch: there is no such engine; use one of fused, kerascv"),
        ({"magnitude": 1.5}, r"augment.magnitude=1.5: expected a number from 0 to 1 \(default 0.5\)"),
    ],
)
def test_impossible_settings_are_the_persons_mistake(arguments, message):
    with pytest.raises(UserError, match=message):
        build_policy(**{"name": "light", "image_size": SIZE, "num_classes": CLASSES, **arguments})


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((16, 30, 32, 3), CLASSES, r"expects images \[B, 32, 32, 3\], got shape \(16, 30, 32, 3\)"),
        ((16, SIZE, SIZE, 3), 4, r"expects labels \[B, 5\], got shape \(16, 4\)"),
        ((6, SIZE, SIZE, 3), CLASSES, "mixes groups of 4; 6 examples are not a multiple of it"),
    ],
)
def test_wrong_shapes_are_refused_when_traced(policies, shape, classes, message):
    with pytest.raises(ValueError, match=f"policy 'seed' {message}"):
        policies["seed"](tf.zeros(shape), tf.zeros([shape[0], classes]), 7, tf.constant(0), tf.range(shape[0]))
