"""RandAugment's operations, for a batch in which each picture undergoes its own."""

from typing import NamedTuple

import tensorflow as tf

from bloodcell_dist.augment import geometry
from bloodcell_dist.augment.base import per_pixel
from bloodcell_dist.augment.colour import channel_statistics, clip, grey
from bloodcell_dist.augment.geometry import Affine
from bloodcell_dist.augment.histogram import equalize
from bloodcell_dist.augment.layout import along_rows, from_rows, picture_size, rows, settled
from bloodcell_dist.augment.mixing import GROUP_SIZE
from bloodcell_dist.augment.tones import stretch

OPERATIONS = (
    "equalize",
    "color",
    "auto_contrast",
    "contrast",
    "solarize",
    "brightness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
REDRAWN = OPERATIONS[:2]  # for one member of each group
STRETCHED = OPERATIONS[2:4]  # for another one
RESERVED = len(REDRAWN) + len(STRETCHED)


class Operation(NamedTuple):
    """One operation per example, with its strengths.

    Strengths as KerasCV's RandAugment draws them: `level` (Normal, clipped to [0, 1]) for solarize's addition, color
    and shear; `threshold` (Normal, clipped to [0, 1]) for solarize; `spread` (uniform in [-magnitude, magnitude]) for
    contrast, brightness and translation; its sign is also shear's.

    Attributes:
        kind: int32 [B], place in `OPERATIONS`, -1 for none.
        level, threshold, spread: float32 [B].
        turn: int32 [B / 4], the member of each group of four, 0 to 3, that may undergo equalize or color; the one two
            places on, counted round, may undergo auto-contrast or contrast.
    """

    kind: tf.Tensor
    level: tf.Tensor
    threshold: tf.Tensor
    spread: tf.Tensor
    turn: tf.Tensor

    def where(self, name: str, value: tf.Tensor, otherwise: float = 0.0) -> tf.Tensor:
        """`value` for the examples that undergo the operation `name`, and `otherwise` for the rest."""
        return tf.where(self.kind == OPERATIONS.index(name), value, otherwise)


def recolour_once(images: tf.Tensor, operation: Operation) -> tf.Tensor:
    """Carry out each example's colour operation; pictures with another operation, or none, stay as they are."""
    _, width = picture_size(images)
    redrawn = rows(_redraw(images, operation))[:, None]
    scale, offset = settled(*(along_rows(part, width) for part in _lines(images, operation)))
    values = clip(scale * rows(images) + offset)
    threshold = operation.where("solarize", 255.0 * operation.threshold, otherwise=256.0)[:, None, None]
    values = tf.where(values < threshold, values, 255.0 - values)
    is_redrawn = tf.reshape((operation.kind >= 0) & (operation.kind < len(REDRAWN)), [-1, GROUP_SIZE, 1, 1])
    groups = tf.where(is_redrawn, redrawn, tf.reshape(values, [-1, GROUP_SIZE, *values.shape[1:]]))
    return from_rows(tf.reshape(groups, [-1, *values.shape[1:]]))


def _redraw(images: tf.Tensor, operation: Operation) -> tf.Tensor:
    """The pictures whose turn it is, equalised or degenerated: float32 [B / 4, H, W, 3]."""
    pictures = settled(_members(images, operation.turn))
    kind, level = (per_pixel(_members(each, operation.turn)) for each in (operation.kind, operation.level))
    degenerate = pictures + level * (grey(pictures) - pictures)
    return settled(tf.where(kind == OPERATIONS.index("color"), degenerate, equalize(pictures)))


def _lines(images: tf.Tensor, operation: Operation) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale and offset of each channel, float32 [B, 1, 1, 3] each; 1 and 0 where the operation has no such."""

    def pick(name: str, value: tf.Tensor) -> tf.Tensor:
        return per_pixel(operation.where(name, value))

    pictures = settled(_members(images, opposite(operation.turn)))
    low, mean, high = (tf.repeat(part, GROUP_SIZE, axis=0) for part in channel_statistics(pictures))
    stretched_scale, stretched_offset = stretch(low, high)
    stretches = per_pixel(operation.kind == OPERATIONS.index("auto_contrast"))
    contrast = pick("contrast", operation.spread)
    # KerasCV adds at most 110 before it solarises, so as not to wipe the picture out.
    added = pick("brightness", 255.0 * operation.spread) + pick("solarize", 110.0 * operation.level)
    scale = tf.where(stretches, stretched_scale, 1.0 + contrast)
    return scale, tf.where(stretches, stretched_offset, added - contrast * mean)


def _members(values: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """One of each group of four: [B, ...] and int32 [B / 4], 0 to 3 -> [B / 4, ...]."""
    groups = tf.unstack(tf.reshape(values, [-1, GROUP_SIZE, *values.shape[1:]]), axis=1)
    places = tf.reshape(places, [-1, *[1] * (len(values.shape) - 1)])
    chosen = groups[0]
    for place, others in enumerate(groups[1:], start=1):  # not a gather: this vectorises
        chosen = tf.where(places == place, others, chosen)
    return chosen


def is_member(places: tf.Tensor) -> tf.Tensor:
    """Which examples are chosen: int32 [B / 4] -> bool [B]."""
    return tf.reshape(places[:, None] == tf.range(GROUP_SIZE), [-1])


def opposite(turn: tf.Tensor) -> tf.Tensor:
    """The member of each group that may undergo auto-contrast or contrast, see `Operation.turn`."""
    return (turn + 2) % GROUP_SIZE


def move_once(operation: Operation, height: int, width: int) -> Affine:
    """The map of each example's geometric operation; identity for the others."""
    signed_level = operation.level * tf.where(operation.spread < 0.0, -1.0, 1.0)
    sheared = geometry.shear(operation.where("shear_x", signed_level), operation.where("shear_y", signed_level))
    moved = geometry.translation(
        operation.where("translate_x", width * operation.spread),
        operation.where("translate_y", height * operation.spread),
    )
    return geometry.compose(sheared, moved)
