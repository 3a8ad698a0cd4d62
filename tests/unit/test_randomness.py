import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from bloodcell_dist import randomness


# Random123's kat_vectors, "threefry2x32 20": counter, key, result.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_published_known_answers(counter, key, answer, jit):
    words = [tf.constant(word, tf.uint32) for word in (*key, *counter)]
    block = tf.function(randomness.threefry2x32, jit_compile=jit)
    assert tuple(int(word) for word in block(*words)) == answer


def draw(seed=3, step=5, positions=range(8), stream=0, count=9):
    step = step if tf.is_tensor(step) else tf.constant(step)
    keys = randomness.example_keys(seed, step, tf.constant(list(positions), tf.int32), stream)
    return randomness.uniform(keys, count).numpy()


def test_same_bits_eagerly_and_compiled():
    positions = tf.range(8)

    @tf.function(jit_compile=True)
    def compiled(step):
        return randomness.uniform(randomness.example_keys(3, step, positions, 0), 9)

    np.testing.assert_array_equal(compiled(tf.constant(5)), draw())


def test_a_slice_of_the_batch_draws_what_the_batch_draws():
    np.testing.assert_array_equal(draw(positions=range(4, 8)), draw()[4:])


def test_fewer_draws_are_the_first_ones():
    np.testing.assert_array_equal(draw(count=4), draw()[:, :4])


def test_int32_and_int64_steps_draw_alike():
    np.testing.assert_array_equal(draw(step=tf.constant(5, tf.int64)), draw(step=tf.constant(5, tf.int32)))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"seed": 3 + 2**32},
        {"seed": -3},
        {"step": 6},
        {"step": tf.constant(5 + 2**32, tf.int64)},
        {"stream": 1},
        {"positions": range(8, 16)},
        {"positions": range(-8, 0)},
    ],
    ids=str,
)
def test_every_part_of_the_key_counts(other):
    assert not np.any(np.isclose(draw(**other), draw(), atol=1e-6))


def test_draws_are_uniform_and_independent():
    draws = draw(positions=range(500), count=40)
    assert draws.dtype == np.float32
    assert 0.0 <= draws.min() < 1e-3 and 1 - 1e-3 < draws.max() < 1.0
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 1e-3
    correlations = np.corrcoef(draws, rowvar=False) - np.eye(40)
    assert np.abs(correlations).max() < 5 / np.sqrt(500)


def test_normal_draws_follow_the_normal_law():
    draws = randomness.normal(tf.constant(draw(positions=range(500), count=40))).numpy()
    assert stats.kstest(draws.ravel(), "norm").pvalue > 1e-3


def test_normal_is_finite_at_the_ends():
    ends = tf.constant([[0.0, 1.0 - 2.0**-24, 0.0, 1.0 - 2.0**-24]])
    assert np.all(np.isfinite(randomness.normal(ends)))


@pytest.mark.parametrize("concentration", [0.2, 0.5, 1.0, 3.0])
def test_beta_draws_follow_the_beta_law(concentration):
    draws = randomness.beta(tf.constant(draw(positions=range(500), count=20)), concentration).numpy()
    assert draws.min() >= 0.0 and draws.max() <= 1.0
    assert stats.kstest(draws.ravel(), stats.beta(concentration, concentration).cdf).pvalue > 1e-3


def test_beta_refuses_a_concentration_of_zero():
    with pytest.raises(ValueError, match="concentration must be positive, got 0"):
        randomness.beta(tf.zeros([2]), 0)
