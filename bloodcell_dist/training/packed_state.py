"""What the optimizer keeps of the weights of a pack: slots and average, each as one variable."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell_dist.training.advance import Values
from bloodcell_dist.training.packs import Pack


@dataclass(frozen=True)
class Part:
    """An array that is cut from a pack when somebody looks at it.

    Attributes:
        cut: the arrays of all members.
        number: of this one among them.
        shape: its own.
    """

    cut: Callable[[], list[np.ndarray]]
    number: int
    shape: tuple[int, ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.cut()[self.number], dtype, copy=copy)


class PackedState:
    """Slots, zero at the start, and average of some weights.

    Args:
        pack: which.
        weights: all, of which the pack takes its own; they stay variables of their own.
        names: of all.
        slot_names: what is kept for each.
        averaged: keep averages, which begin at the weights.
    """

    def __init__(
        self,
        pack: Pack,
        weights: Sequence[tf.Variable],
        names: Sequence[str],
        slot_names: Sequence[str],
        averaged: bool,
    ) -> None:
        self.pack = pack
        self._weights = [weights[place] for place in pack.members]
        self._names = [names[place] for place in pack.members]
        self._slots = {name: tf.Variable(tf.zeros(pack.shape), trainable=False) for name in slot_names}
        self._average = tf.Variable(self._weight(), trainable=False) if averaged else None

    def join_gradients(self, by_weight: Mapping[int, tf.Tensor]) -> tf.Tensor | None:
        """The gradients by the number of a weight, as one tensor: zeros where there is none, None without any."""
        members = zip(self.pack.members, self.pack.shapes, strict=True)
        if by_weight.keys().isdisjoint(self.pack.members):
            return None
        return self.pack.join([by_weight[place] if place in by_weight else tf.zeros(shape) for place, shape in members])

    def values(self) -> Values:
        """As they are now."""
        slots = tuple(slot.read_value() for slot in self._slots.values())
        return Values(self._weight(), slots, None if self._average is None else self._average.read_value())

    def assign(self, values: Values, active: Collection[int]) -> None:
        """Take what `values` became; of the weights those of these numbers only, as no other has changed."""
        if values.weight is not None:
            parts = zip(self.pack.members, self._weights, self.pack.split(values.weight), strict=True)
            for place, weight, value in parts:
                if place in active:
                    weight.assign(value)
            for slot, value in zip(self._slots.values(), values.slots, strict=True):
                slot.assign(value)
        if self._average is not None:
            self._average.assign(values.average)

    def averages(self) -> dict[int, tf.Tensor]:
        """By the number of the weight."""
        if self._average is None:
            return {}
        return dict(zip(self.pack.members, self.pack.split(self._average.read_value()), strict=True))

    def restart_average(self) -> None:
        """Let it begin at the weights as they are now."""
        if self._average is not None:
            self._average.assign(self._weight())

    def variables(self) -> dict[str, tf.Variable]:
        """By what is kept in them."""
        return self._slots | ({} if self._average is None else {"average": self._average})

    def arrays(self) -> dict[str, Part]:
        """For each weight, `momentum/conv/kernel`, as it is now."""
        arrays = {}
        for kind, variable in self.variables().items():
            whole = tf.convert_to_tensor(variable)
            # Those who read a checkpoint's arrays one after the other copy a pack from its device once.
            cut = functools.cache(lambda whole=whole: self.pack.cut(np.asarray(whole)))
            for number, (name, shape) in enumerate(zip(self._names, self.pack.shapes, strict=True)):
                arrays[f"{kind}/{name}"] = Part(cut, number, shape)
        return arrays

    def restore(self, arrays: Mapping[str, Any]) -> None:
        """Take up what `arrays` gave."""
        for kind, variable in self.variables().items():
            variable.assign(self.pack.join([tf.constant(arrays[f"{kind}/{name}"], tf.float32) for name in self._names]))

    def _weight(self) -> tf.Tensor:
        return self.pack.join([weight.read_value() for weight in self._weights])
