"""The arithmetic of an update: what packs of weights, slots and averages become. Nothing here has a state.

Each pack is compiled by itself: packs of the same shape share a program, and the threads of a CPU have one each. Where
to start a program costs more, as on a GPU, the whole of it can be compiled as one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from bloodcell_dist.training.optimizers import Rule, Slots, clip_factor, new_weight
from bloodcell_dist.training.packs import Pack


class Values(NamedTuple):
    """Of a pack, tensors in its shape."""

    weight: tf.Tensor | None  # None, and no slots, after an update in which it did not train
    slots: Slots
    average: tf.Tensor | None  # None: not kept


class Advanced(NamedTuple):
    """After an update, or as before it where a gradient was not finite."""

    norm: tf.Tensor  # float32 scalar, of all gradients, before clipping
    finite: tf.Tensor  # bool scalar: the update was made
    counts: tf.Tensor  # float32, a number for each weight
    packs: list[Values]


class Advance:
    """One update of packs.

    Args:
        packs: of all weights that ever train.
        rule: the update rule.
        decays: decoupled weight decay of each weight.
        multipliers: factor of the learning rate of each.
        clip_norm, ema_decay: see `Update`.
        xla: compile each pack's part.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        rule: Rule,
        *,
        decays: Sequence[float],
        multipliers: Sequence[float],
        clip_norm: float | None,
        ema_decay: float | None,
        xla: bool,
    ) -> None:
        self._packs, self._rule = packs, rule
        self._decays, self._multipliers = decays, multipliers
        self._clip_norm, self._ema_decay = clip_norm, ema_decay
        compiled = functools.partial(tf.function, jit_compile=xla or None, autograph=False)
        self._sum_of_squares, self._train, self._follow = map(compiled, (_sum_of_squares, self._trained, _followed))

    def __call__(
        self,
        before: Sequence[Values],
        gradients: Sequence[tf.Tensor | None],
        *,
        counts: tf.Tensor,
        trains: tf.Tensor,
        learning_rate: tf.Tensor,
        scale: tf.Tensor,
    ) -> Advanced:
        """What packs become.

        Args:
            before: each pack.
            gradients: of each, of the loss times `scale`; None where no weight of it trains.
            counts: float32, updates that each weight had so far.
            trains: float32, 1 for each weight that trains now, else 0.
            learning_rate, scale: float32 scalars.
        """
        norm = tf.sqrt(tf.add_n([self._sum_of_squares(some, scale) for some in gradients if some is not None]))
        finite = tf.math.is_finite(norm)
        factor = clip_factor(norm, self._clip_norm) / scale
        # Each weight has its own count: one that joins later has slots that begin at zero, and AdamW's correction for
        # that goes by the number of its own updates.
        counts = tf.where(finite, counts + trains, counts)
        of_weights = [learning_rate * self._multipliers, tf.constant(self._decays, tf.float32), counts, trains]
        # Early on the averages forget faster, so as not to remember the random start.
        shares = (
            [] if self._ema_decay is None else [1.0 - tf.minimum(self._ema_decay, (1.0 + counts) / (10.0 + counts))]
        )
        after = []
        for pack, (weight, slots, average), gradient in zip(self._packs, before, gradients, strict=True):
            if gradient is not None:
                weight, slots = self._train(weight, slots, gradient, pack.spread(of_weights), factor, finite)
            if average is not None:
                average = self._follow(average, weight, *pack.spread(shares), finite)
            after.append(Values(weight, slots, average) if gradient is not None else Values(None, (), average))
        return Advanced(norm, finite, counts, after)

    def _trained(
        self,
        weight: tf.Tensor,
        slots: Slots,
        gradient: tf.Tensor,
        spread: Sequence[tf.Tensor],
        factor: tf.Tensor,
        finite: tf.Tensor,
    ) -> tuple[tf.Tensor, Slots]:
        """A pack's weights and slots; as they were where a weight does not train, or nothing does."""
        rate, decay, count, trains = spread
        value, moved = new_weight(
            self._rule, weight, gradient * factor, slots, learning_rate=rate, weight_decay=decay, count=count
        )
        live = finite & (trains > 0)
        slots = tuple(tf.where(live, new, old) for new, old in zip(moved, slots, strict=True))
        return tf.where(live, value, weight), slots


def _sum_of_squares(scaled: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum((scaled / scale) ** 2)


def _followed(average: tf.Tensor, weight: tf.Tensor, share: tf.Tensor, finite: tf.Tensor) -> tf.Tensor:
    """An average after its share of the way to the weight; that of a weight which never trained is equal to it."""
    return tf.where(finite, average + (weight - average) * share, average)
