"""Each augmentation policy alone."""

from __future__ import annotations

import contextlib
import math
from functools import partial

import numpy as np
import tensorflow as tf

from bloodcell_dist.assembly import what_to_compile
from bloodcell_dist.augment.policies import POLICY_NAMES, Policy, build_policy
from bloodcell_dist.bench.figures import AugmentationFigures, Speed
from bloodcell_dist.bench.timing import agreed_calls, interleaved, timed
from bloodcell_dist.bench.workbench import Workbench
from bloodcell_dist.errors import UserError
from bloodcell_dist.training.step import augmentation

DRAWS = 32
"""At least so many batches per turn: a policy may choose for a whole batch, and some choices cost more than others."""


def measure_augmentation(bench: Workbench) -> AugmentationFigures:
    """The policies with the engine and magnitude of the settings, on one device of each worker. A collective."""
    policies = _build_all(bench)
    unit = math.lcm(*(policy.group_size for policy in policies.values()))
    per_pass = bench.replica_batch_size // bench.settings.optimizer.accumulate_steps
    size = -(-per_pass // unit) * unit
    turns = {name: _Turns(policy, bench, size) for name, policy in policies.items()}
    draws = agreed_calls(bench.replication, max(turn.seconds(1) for turn in turns.values()), DRAWS)
    measured = interleaved({name: partial(turn.seconds, draws) for name, turn in turns.items()}, bench.rounds)
    return AugmentationFigures(size, draws, {name: Speed.of(seconds, size) for name, seconds in measured.items()})


def _build_all(bench: Workbench) -> dict[str, Policy]:
    """By name, those that the engine has."""
    augment, policies = bench.settings.augment, {}
    for name in POLICY_NAMES:
        with contextlib.suppress(UserError):  # the stock layers need not be able to do all that ours do
            policies[name] = build_policy(
                name,
                engine=augment.engine,
                image_size=bench.settings.data.image_size,
                num_classes=len(bench.data.train.class_names),
                magnitude=augment.magnitude,
            )
    return policies


class _Turns:
    """A policy, compiled as in a training, on the same pictures with the numbers of one step after the other."""

    def __init__(self, policy: Policy, bench: Workbench, size: int) -> None:
        self._workers, self._seed = bench.replication, bench.settings.train.seed
        train, rows = bench.data.train, np.resize(np.arange(bench.data.train.num_examples), size)
        self._pictures = tf.constant(np.asarray(train.images[rows]))
        self._targets = tf.one_hot(train.labels[rows], len(train.class_names))
        compile = what_to_compile(bench.settings.train.xla, policy)
        self._apply = augmentation(policy, compile)
        self._call = tf.function(self._augment, jit_compile=compile.model or None, autograph=not policy.deterministic)
        self._step = 0
        self.seconds(1)  # traces and compiles

    def seconds(self, draws: int) -> float:
        """Of a batch, the mean of so many; of the slowest worker."""
        return timed(self._workers, lambda: self._draw(draws)) / draws

    def _draw(self, draws: int) -> None:
        for _ in range(draws):
            changed, _ = self._call(self._pictures, self._targets, tf.constant(self._step, tf.int32))
            self._step += 1
        np.asarray(changed[0, 0, 0])  # waits

    def _augment(self, pictures: tf.Tensor, targets: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        positions = tf.range(pictures.shape[0])
        return self._apply(pictures, targets, self._seed, step, positions)
