"""The update: decay, multipliers, averages, loss scaling, and the skipping of gradients that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.training import packs
from bloodcell_dist.training import update as update_module
from bloodcell_dist.training.advance import Advance
from bloodcell_dist.training.optimizers import make_rule
from bloodcell_dist.training.update import INITIAL_LOSS_SCALE, Update

SHAPES = [(5, 4), (4,)]
NAMES = ["dense/kernel", "dense/bias"]
RATE = 0.01


def make(rule: str = "adamw", *, values: Sequence[np.ndarray] | None = None, **options: Any):
    """An update and the weights it moves."""
    weights = [tf.Variable(value) for value in (values if values is not None else start())]
    settings = {"weight_decay": 0.1, "clip_norm": 1.0, "ema_decay": 0.9, "xla": False, **options}
    return Update(weights, NAMES, make_rule(rule), **settings), weights


def start() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype(np.float32) for shape in SHAPES]


def gradients(step: int, scale: float = 1.0) -> list[tf.Tensor]:
    generator = np.random.default_rng([1, step])
    return [tf.constant((generator.normal(size=shape) * scale).astype(np.float32)) for shape in SHAPES]


def advance(update: Update, grads: list[tf.Tensor], rate: float = RATE) -> tuple[float, bool]:
    norm, finite = update.apply(grads, tf.constant(rate))
    return float(norm), bool(finite)


def snapshot(update: Update, weights: list[tf.Variable]) -> dict[str, np.ndarray]:
    state = {name: np.array(array) for name, array in update.arrays().items()}
    return state | {f"weights/{name}": weight.numpy() for name, weight in zip(NAMES, weights, strict=True)}


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], but: Sequence[str] = ()) -> None:
    assert set(found) == set(expected)
    for name in set(found) - set(but):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("rule", ["lion", "adamw", "sgd"])
def test_updates_follow_keras_with_clipping_and_biases_not_decayed(rule: str) -> None:
    update, weights = make(rule, ema_decay=None)
    common = {"learning_rate": RATE, "weight_decay": 0.1, "global_clipnorm": 1.0}
    theirs = {
        "lion": lambda: keras.optimizers.Lion(**common),
        "adamw": lambda: keras.optimizers.AdamW(**common),
        "sgd": lambda: keras.optimizers.SGD(momentum=0.9, **common),
    }[rule]()
    variables = [keras.Variable(value) for value in start()]
    theirs.exclude_from_weight_decay(var_list=[variables[1]])
    for step in range(12):
        _, finite = advance(update, gradients(step))
        theirs.apply(gradients(step), variables)
        assert finite
        for ours, expected in zip(weights, variables, strict=True):
            np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=3e-6, atol=3e-6)


def test_a_multiplier_is_a_factor_of_the_learning_rate_of_one_weight() -> None:
    free = {"clip_norm": None, "ema_decay": None}
    update, weights = make("lion", multipliers=[0.25, 0.0], **free)
    slow, slow_weights = make("lion", **free)
    for step in range(10):
        advance(update, gradients(step))
        advance(slow, gradients(step), RATE * 0.25)
    np.testing.assert_array_equal(weights[0].numpy(), slow_weights[0].numpy())
    np.testing.assert_array_equal(weights[1].numpy(), start()[1])


def test_the_norm_is_that_of_the_true_gradients_before_clipping() -> None:
    update, _ = make(clip_norm=0.01, loss_scaling=True)
    norm, finite = advance(update, [g * INITIAL_LOSS_SCALE for g in gradients(0)])
    expected = np.sqrt(sum(float(np.sum(g.numpy() ** 2)) for g in gradients(0)))
    assert finite
    np.testing.assert_allclose(norm, expected, rtol=1e-6)


def test_averages_follow_the_weights_fast_at_first_then_at_their_decay() -> None:
    update, weights = make("sgd", ema_decay=0.5)
    expected = [value.astype(np.float64) for value in start()]
    for step in range(1, 13):
        advance(update, gradients(step), rate=0.5)
        decay = min(0.5, (1 + step) / (10 + step))  # 2/11, 3/12, ... and 0.5 from the eighth update on
        expected = [decay * e + (1 - decay) * w.numpy() for e, w in zip(expected, weights, strict=True)]
        assert list(update.averages()) == [0, 1]
        for place, average in update.averages().items():
            np.testing.assert_allclose(average.numpy(), expected[place], rtol=1e-5, atol=1e-6)


def test_without_a_decay_no_averages_are_kept() -> None:
    update, _ = make(ema_decay=None)
    assert update.averages() == {}
    assert not any(name.startswith("average/") for name in update.arrays())


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("xla", [False, True])
def test_one_value_that_is_not_finite_skips_everything_and_halves_the_scale(
    bad: float, clip: float | None, xla: bool
) -> None:
    update, weights = make(loss_scaling=True, clip_norm=clip, xla=xla)
    advance(update, gradients(0, INITIAL_LOSS_SCALE))
    before = snapshot(update, weights)
    kernel, bias = gradients(1, INITIAL_LOSS_SCALE)
    spoilt = bias.numpy()
    spoilt[2] = bad
    _, finite = advance(update, [kernel, tf.constant(spoilt)])
    after = snapshot(update, weights)
    assert not finite
    assert_same_bits(after, before, but=["loss_scale", "finite_updates"])
    assert after["loss_scale"] == before["loss_scale"] / 2
    assert before["finite_updates"] == 1
    assert after["finite_updates"] == 0


def test_without_loss_scaling_a_bad_gradient_is_skipped_too() -> None:
    update, weights = make()
    before = snapshot(update, weights)
    _, finite = advance(update, [gradients(0)[0], tf.fill([4], np.nan)])
    assert not finite
    assert_same_bits(snapshot(update, weights), before)
    assert advance(update, gradients(0))[1]


def test_the_scale_doubles_after_a_long_run_without_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_module, "LOSS_SCALE_PATIENCE", 3)
    update, _ = make(loss_scaling=True)
    scales = []
    for step in range(10):
        grads = gradients(step) if step != 4 else [g * np.inf for g in gradients(step)]
        advance(update, grads)
        scales.append(float(update.loss_scale) / INITIAL_LOSS_SCALE)
    assert scales == [1, 1, 2, 2, 1, 1, 1, 2, 2, 2]


def test_the_scale_never_falls_below_one() -> None:
    update, _ = make(loss_scaling=True)
    for _ in range(20):
        advance(update, [g * np.nan for g in gradients(0)])
    assert float(update.loss_scale) == 1.0


def test_scaled_gradients_make_the_same_update() -> None:
    scaled, scaled_weights = make(loss_scaling=True)
    plain, plain_weights = make()
    for step in range(5):
        advance(scaled, gradients(step, INITIAL_LOSS_SCALE))
        advance(plain, gradients(step))
    for one, other in zip(scaled_weights, plain_weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())  # the scale is a power of two


@pytest.mark.parametrize("rule", ["lion", "adamw", "sgd"])
def test_an_update_goes_on_from_its_saved_state_to_the_bit(rule: str) -> None:
    update, weights = make(rule, loss_scaling=True)
    for step in range(4):
        advance(update, gradients(step, INITIAL_LOSS_SCALE))
    saved = snapshot(update, weights)
    again, again_weights = make(rule, loss_scaling=True, values=[np.zeros(shape, np.float32) for shape in SHAPES])
    again.restore(saved)
    for name, weight in zip(NAMES, again_weights, strict=True):
        weight.assign(saved[f"weights/{name}"])
    for step in range(4, 8):
        advance(update, gradients(step, INITIAL_LOSS_SCALE))
        advance(again, gradients(step, INITIAL_LOSS_SCALE))
    assert_same_bits(snapshot(again, again_weights), snapshot(update, weights))


def test_names_in_the_state_say_what_they_are() -> None:
    update, _ = make("adamw")
    assert {"loss_scale", "finite_updates", "counts", "mean/dense/kernel", "square/dense/bias"} < set(update.arrays())


@pytest.mark.parametrize("rule", ["lion", "adamw", "sgd"])
def test_compiled_and_plain_updates_agree(rule: str) -> None:
    plain, plain_weights = make(rule, loss_scaling=True)
    compiled, compiled_weights = make(rule, loss_scaling=True, xla=True)
    for step in range(12):
        grads = gradients(step, INITIAL_LOSS_SCALE * (np.inf if step == 5 else 1.0))
        assert advance(plain, grads)[1] == advance(compiled, grads)[1] == (step != 5)
    found, expected = snapshot(compiled, compiled_weights), snapshot(plain, plain_weights)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_update_is_traced_once() -> None:
    update, _ = make(loss_scaling=True)
    for step in range(4):
        advance(update, gradients(step), rate=RATE / (step + 1))
    assert update.apply.experimental_get_tracing_count() == 1


def test_counters_live_on_the_device() -> None:
    """TensorFlow keeps int32 variables in host memory, even on GPUs."""
    update, _ = make(loss_scaling=True)
    assert all(variable.dtype != tf.int32 for variable in update.variables())


def test_only_selected_weights_move_and_the_state_of_the_others_stays() -> None:
    update, weights = make("adamw")
    advance(update, gradients(0))
    update.select([1])
    before = snapshot(update, weights)
    for step in range(1, 4):
        advance(update, gradients(step)[1:])
    after = snapshot(update, weights)
    for name in ("weights/dense/kernel", "mean/dense/kernel", "square/dense/kernel"):
        np.testing.assert_array_equal(after[name], before[name])
    assert not np.array_equal(after["weights/dense/bias"], before["weights/dense/bias"])
    np.testing.assert_array_equal(after["counts"], [1, 4])
    update.select([0, 1])
    advance(update, gradients(4))
    np.testing.assert_array_equal(snapshot(update, weights)["counts"], [2, 5])


def test_the_average_of_a_weight_that_never_trained_is_the_weight_to_the_bit() -> None:
    update, weights = make("lion")
    update.select([1])
    for step in range(5):
        advance(update, gradients(step)[1:])
    np.testing.assert_array_equal(update.averages()[0], weights[0])
    assert not np.array_equal(update.averages()[1], weights[1])


@pytest.mark.parametrize("rule", ["lion", "adamw", "sgd"])
def test_a_weight_that_joins_later_moves_as_in_a_training_of_its_own(rule: str) -> None:
    """Its slots begin at zero, so AdamW's bias correction must count its own updates, not the run's."""
    free: dict[str, Any] = {"clip_norm": None, "weight_decay": 0.0}
    late, late_weights = make(rule, **free)
    late.select([1])
    for step in range(50):
        advance(late, gradients(step)[1:])
    late.select([0, 1])
    fresh, fresh_weights = make(rule, **free)
    for step in range(50, 54):
        advance(late, gradients(step))
        advance(fresh, gradients(step))
    np.testing.assert_array_equal(late_weights[0], fresh_weights[0])
    np.testing.assert_array_equal(late.averages()[0], fresh.averages()[0])


class Staged:
    """A training of weights with different decay, rate and age, the last stages without some of them."""

    SHAPES = ((3, 3, 4, 5), (5,), (70,), (64, 2), (1, 1, 5, 7), ())
    STAGES = ((1, 4), (0, 1, 2, 3, 4, 5), (5,), (0, 1, 2))

    def __init__(self, rule: str, **options: Any) -> None:
        self.names = [f"w{place}" for place in range(len(self.SHAPES))]
        drawn = np.random.default_rng(3)
        self.weights = [tf.Variable(drawn.normal(size=shape).astype(np.float32)) for shape in self.SHAPES]
        settings = {"weight_decay": 0.1, "clip_norm": None, "ema_decay": 0.9, "xla": False, **options}
        rates = [1.0, 0.5, 1.0, 0.25, 2.0, 1.0]
        self.update = Update(self.weights, self.names, make_rule(rule), multipliers=rates, **settings)

    def train(self, stages: Sequence[int] = range(len(STAGES))) -> dict[str, np.ndarray]:
        """What all has become after three updates in each stage, one of them not finite."""
        for stage in stages:
            active, drawn = self.STAGES[stage], np.random.default_rng([4, stage])
            self.update.select(active)
            for scale in (1.0, np.nan, 3.0):
                shapes = [self.SHAPES[place] for place in active]
                grads = [tf.constant((drawn.normal(size=shape) * scale).astype(np.float32)) for shape in shapes]
                assert advance(self.update, grads)[1] == np.isfinite(scale)
        return self.state()

    def state(self) -> dict[str, np.ndarray]:
        state = {name: np.array(value) for name, value in self.update.arrays().items()}
        weights = zip(self.names, self.weights, strict=True)
        return state | {f"weights/{name}": weight.numpy() for name, weight in weights}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], rule: str) -> None:
    """To the bit, but for AdamW: powers of a vector are rounded otherwise than those of a number."""
    for name, value in expected.items():
        limit = 2e-6 if rule == "adamw" else 0.0
        np.testing.assert_allclose(found[name], value, rtol=limit, atol=limit, err_msg=name)


LAYOUTS = {"each alone": {"LARGE": 1}, "two packs of three": {"PACK": 300}, "two alone, four in a pack": {"LARGE": 100}}
RULES = ["lion", "adamw", "sgd"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_weights_are_packed_changes_nothing(rule: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Staged(rule).train()
    for name, value in LAYOUTS[layout].items():
        monkeypatch.setattr(packs, name, value)
    assert_same(Staged(rule).train(), expected, rule)


def test_clipping_goes_by_the_norm_of_all_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Staged("sgd", clip_norm=0.5).train()
    monkeypatch.setattr(packs, "LARGE", 100)
    for name, value in Staged("sgd", clip_norm=0.5).train().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    free = Staged("sgd").train()
    assert np.abs(free["weights/w0"] - expected["weights/w0"]).max() > 0.01


@pytest.mark.parametrize("rule", RULES)
def test_a_checkpoint_does_not_know_how_weights_were_packed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    later = range(2, len(Staged.STAGES))
    with monkeypatch.context() as alone:
        alone.setattr(packs, "LARGE", 1)
        old = Staged(rule)
        saved = old.train(range(2))
        expected = old.train(later)
    again = Staged(rule)
    again.update.restore(saved)
    for weight, name in zip(again.weights, again.names, strict=True):
        weight.assign(saved[f"weights/{name}"])
    found = again.state()
    assert {name: array.shape for name, array in found.items()} == {name: a.shape for name, a in saved.items()}
    assert_same_bits(found, saved)
    assert_same(again.train(later), expected, rule)


@pytest.mark.parametrize("ema_decay", [0.9, None])
@pytest.mark.parametrize("rule", RULES)
def test_one_program_of_all_packs_as_on_a_gpu_makes_the_same_update(
    rule: str, ema_decay: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "LARGE", 100)
    expected = Staged(rule, ema_decay=ema_decay, xla=True).train()
    programs = []

    def together(*arguments: Any, **options: Any) -> Any:
        programs.append(tf.function(Advance(*arguments, **options), jit_compile=True, autograph=False))
        return programs[-1]

    monkeypatch.setattr(update_module, "Advance", together)
    found = Staged(rule, ema_decay=ema_decay, xla=True).train()
    assert programs[0].experimental_get_tracing_count() > 0
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
