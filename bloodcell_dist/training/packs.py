"""Many small tensors as few large ones.

A network has hundreds of weights of a few numbers each. To update them one by one takes longer to start than to
compute, and XLA compiles each by itself: for minutes, with EfficientNetV2M's 649. So what is kept for the small ones
lies in common tensors, of rows that belong to one weight each. A large one stays as it is, for to join and to part
would move as much memory as the update does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

LARGE = 2**16  # numbers from which a tensor is alone: 256 kB
PACK = 2**19  # numbers at which a pack is full, so that several threads have one each
LANES = 64  # numbers in a row: what a row shares is computed once for all, and little is lost at a weight's end


@dataclass(frozen=True)
class Pack:
    """Some of a list of tensors, as one.

    Attributes:
        members: their places in the list.
        shapes: of each member.
    """

    members: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pack: the member's own where it is alone, else [rows, LANES]."""
        return self.shapes[0] if self._alone else (sum(self._rows), LANES)

    def join(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        """The members' values as one tensor; zeros fill the rows that a member ends in."""
        if self._alone:
            return tensors[0]
        flat = [tf.reshape(tensor, [-1]) for tensor in tensors]
        ends = [tf.zeros([length]) for length in self._lengths[1::2]]
        return tf.reshape(tf.concat([part for pair in zip(flat, ends, strict=True) for part in pair], 0), self.shape)

    def split(self, value: tf.Tensor) -> list[tf.Tensor]:
        """The members' values, in their shapes."""
        if self._alone:
            return [value]
        parts = tf.split(tf.reshape(value, [-1]), self._lengths)[::2]
        return [tf.reshape(part, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def cut(self, value: np.ndarray) -> list[np.ndarray]:
        """The same of an array: views of it."""
        if self._alone:
            return [value]
        parts = np.split(value.reshape(-1), np.cumsum(self._lengths)[:-1])[::2]
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def spread(self, vectors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Vectors that have a number for each tensor of the list, each in a shape that goes with the pack's."""
        if self._alone:
            return [vector[self.members[0]] for vector in vectors]
        owners = np.repeat(np.array(self.members, np.int64), self._rows)
        return tf.unstack(tf.gather(tf.stack(vectors, -1), owners)[:, tf.newaxis], axis=-1)

    @property
    def _alone(self) -> bool:
        return len(self.members) == 1

    @property
    def _rows(self) -> list[int]:
        return [-(-math.prod(shape) // LANES) for shape in self.shapes]

    @property
    def _lengths(self) -> list[int]:
        """Of each member, and of the rest of its last row, in turn."""
        sizes = [math.prod(shape) for shape in self.shapes]
        return [length for size in sizes for length in (size, -size % LANES)]


def make_packs(shapes: Sequence[Sequence[int]]) -> list[Pack]:
    """All tensors of these shapes, each in one pack; the same for the same shapes."""
    groups: list[list[int]] = []
    filled = PACK  # of the last group of small ones
    small: list[int] = []
    for place, shape in enumerate(shapes):
        size = math.prod(shape)
        if size >= LARGE:
            groups.append([place])
            continue
        if filled + size > PACK:
            small, filled = [], 0
            groups.append(small)
        small.append(place)
        filled += size
    return [Pack(tuple(group), tuple(tuple(shapes[place]) for place in group)) for group in groups]
