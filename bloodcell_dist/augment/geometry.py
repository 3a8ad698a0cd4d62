"""Affine maps of a batch of pictures, and the one resampling that applies them."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from bloodcell_dist.augment.layout import picture_size, settled

FILL_MODES = ("reflect", "nearest", "constant")

_SHIFTS = (0, 21, 42)  # of the channels in a word
_CHANNEL = 2**21 - 1
_STEPS = 8192.0  # 255 * 8192 < 2**21


class Affine(NamedTuple):
    """One map per example from places in the new picture to places in the old one, each float32 [B].

    Pixels, x to the right, y down, measured from the picture's centre ((W - 1) / 2, (H - 1) / 2):
    old_x = xx * x + xy * y + x0, old_y = yx * x + yy * y + y0. As in KerasCV the map runs backwards, from new to old.
    """

    xx: tf.Tensor
    xy: tf.Tensor
    x0: tf.Tensor
    yx: tf.Tensor
    yy: tf.Tensor
    y0: tf.Tensor


def compose(first: Affine, second: Affine) -> Affine:
    """The map of a picture that undergoes `first` and then `second`."""
    return Affine(
        xx=first.xx * second.xx + first.xy * second.yx,
        xy=first.xx * second.xy + first.xy * second.yy,
        x0=first.xx * second.x0 + first.xy * second.y0 + first.x0,
        yx=first.yx * second.xx + first.yy * second.yx,
        yy=first.yx * second.xy + first.yy * second.yy,
        y0=first.yx * second.x0 + first.yy * second.y0 + first.y0,
    )


def chain(steps: Sequence[Affine]) -> Affine:
    """The map of a picture that undergoes the steps in order."""
    total = steps[0]
    for step in steps[1:]:
        total = compose(total, step)
    return total


def linear(xx: tf.Tensor, xy: tf.Tensor, yx: tf.Tensor, yy: tf.Tensor) -> Affine:
    """A map that keeps the centre; each argument float32 [B]."""
    return Affine(xx, xy, tf.zeros_like(xx), yx, yy, tf.zeros_like(xx))


def identity(like: tf.Tensor) -> Affine:
    """Leaves pictures alone; `like`: any float32 [B]."""
    return scale(tf.ones_like(like), tf.ones_like(like))


def scale(x: tf.Tensor, y: tf.Tensor) -> Affine:
    """Old = factor * new: above 1 zooms out, below 1 zooms in, -1 flips (x: left-right, y: up-down); float32 [B]."""
    return linear(x, tf.zeros_like(x), tf.zeros_like(x), y)


def rotation(angle: tf.Tensor) -> Affine:
    """Rotate by `angle` radians, float32 [B]; positive is counter-clockwise."""
    cosine, sine = tf.cos(angle), tf.sin(angle)
    return linear(cosine, -sine, sine, cosine)


def right_angle_rotation(quarter_turns: tf.Tensor) -> Affine:
    """Rotate counter-clockwise by 0, 1, 2 or 3 quarter turns (float32 [B] of whole numbers), to the bit."""
    odd = tf.math.floormod(quarter_turns, 2.0)
    cosine = (1.0 - odd) * (1.0 - quarter_turns)
    sine = odd * (2.0 - quarter_turns)
    return linear(cosine, -sine, sine, cosine)


def shear(x: tf.Tensor, y: tf.Tensor) -> Affine:
    """Shear along x by `x` pixels per row, then along y by `y` pixels per column; float32 [B]."""
    one = tf.ones_like(x)
    return linear(one + x * y, x, y, one)


def translation(x: tf.Tensor, y: tf.Tensor) -> Affine:
    """Move by (x, y) pixels, positive to the right and down; float32 [B]."""
    one, zero = tf.ones_like(x), tf.zeros_like(x)
    return Affine(one, zero, -x, zero, one, -y)


def select(condition: tf.Tensor, where_true: Affine, where_false: Affine) -> Affine:
    """Per example, one map or the other; condition: bool [B]."""
    return Affine(*(tf.where(condition, a, b) for a, b in zip(where_true, where_false, strict=True)))


def warp(images: tf.Tensor, affine: Affine, fill_mode: str = "reflect", fill_value: float = 0.0) -> tf.Tensor:
    """Resample pictures bilinearly, once.

    Agrees with ImageProjectiveTransformV3, the kernel under KerasCV's geometric layers, which XLA cannot compile. A
    pixel travels as one word of 64 bits, 21 for each channel, so colours are read to the nearest 1/8192: whole numbers
    keep every bit, and so do pictures that do not move. On a CPU a gather of words is 7 times faster than one of three
    floats.

    The `tf.cond` is worth more than it looks: XLA does not fuse across it, and otherwise repeats the work before and
    after the gathers for each of the four neighbours and of the three channels (64 pictures of 96 x 96, one core: 12 ms
    with gathers of floats, 6.7 ms with words, 4.6 ms with words and places that both pass through the branch).

    Args:
        images: float32 [B, H, W, 3], H and W at least 2.
        affine: one map per example.
        fill_mode: what lies outside the picture: "reflect" (d c b a | a b c d | d c b a), "nearest" or "constant".
        fill_value: the constant, in [0, 255].
    """
    height, width = picture_size(images)
    images = settled(images)
    moves = tf.reduce_any([a != b for a, b in zip(affine, identity(affine.xx), strict=True)], axis=0)
    old_x, old_y = _old_places(affine, height, width)
    pixels, size = images, (height, width)
    if fill_mode == "constant":
        pixels = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=fill_value)
        old_x, old_y, size = old_x + 1.0, old_y + 1.0, (height + 2, width + 2)
    elif fill_mode == "reflect":
        old_x, old_y = _reflected(old_x, width), _reflected(old_y, height)
    left, right_share = _cell(old_x, size[1])
    top, bottom_share = _cell(old_y, size[0])
    words, corner = _pack(pixels), top * size[1] + left

    def read() -> list[tf.Tensor]:
        offsets = (0, 1, size[1], size[1] + 1)
        return [tf.gather(words, corner + offset, batch_dims=1) for offset in offsets] + [right_share, bottom_share]

    def skip() -> list[tf.Tensor]:
        # With the words, or they are made in the other branch, see `layout.settled`.
        return [tf.zeros_like(corner, tf.uint64) + words[:, :1, None]] * 4 + [right_share, bottom_share]

    *corners, right_share, bottom_share = tf.cond(tf.reduce_any(moves), read, skip)
    upper_left, upper_right, lower_left, lower_right = (_unpack(corner) for corner in corners)
    upper = _between(upper_left, upper_right, right_share)
    lower = _between(lower_left, lower_right, right_share)
    moved = tf.minimum(_between(upper, lower, bottom_share) / _STEPS, 255.0)  # interpolation may round past the end
    return tf.where(moves[:, None, None, None], moved, images)


def _pack(images: tf.Tensor) -> tf.Tensor:
    """Pixels as words: float32 [B, H, W, 3] in [0, 255] -> uint64 [B, H * W]."""
    channels = tf.unstack(tf.cast(tf.cast(images * _STEPS + 0.5, tf.int32), tf.uint64), axis=-1)
    words = [tf.bitwise.left_shift(c, tf.constant(b, tf.uint64)) for c, b in zip(channels, _SHIFTS, strict=True)]
    return tf.reshape(functools.reduce(tf.bitwise.bitwise_or, words), [-1, images.shape[1] * images.shape[2]])


def _unpack(words: tf.Tensor) -> tf.Tensor:
    """Colours of words, in units of 1 / _STEPS: uint64 [...] -> float32 [..., 3]."""
    shifted = tf.bitwise.right_shift(words[..., None], tf.constant(_SHIFTS, tf.uint64))
    channels = tf.bitwise.bitwise_and(shifted, tf.constant(_CHANNEL, tf.uint64))
    return tf.cast(tf.cast(channels, tf.int32), tf.float32)  # by way of int32: from uint64 it is far slower


def _old_places(affine: Affine, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Pixel coordinates in the old picture for every pixel of the new one, float32 [B, H, W] each."""
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    x = (tf.range(width, dtype=tf.float32) - centre_x)[None, None, :]
    y = (tf.range(height, dtype=tf.float32) - centre_y)[None, :, None]
    xx, xy, x0, yx, yy, y0 = (part[:, None, None] for part in affine)
    return xx * x + xy * y + (x0 + centre_x), yx * x + yy * y + (y0 + centre_y)


def _reflected(places: tf.Tensor, length: int) -> tf.Tensor:
    """Fold coordinates back into the picture about the outer edges of its border pixels."""
    period = 2.0 * length
    folded = places + 0.5
    folded = folded - period * tf.floor(folded / period)
    return tf.minimum(folded, period - folded) - 0.5


def _cell(places: tf.Tensor, length: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Index of the pixel at or before each place, and the share of the next one; places outside go to the border."""
    places = tf.clip_by_value(places, 0.0, length - 1.0)
    before = tf.minimum(tf.floor(places), length - 2.0)
    return tf.cast(before, tf.int32), places - before


def _between(first: tf.Tensor, second: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Weighted mean, exact at the ends, so that flips and quarter turns keep every bit; share: [B, H, W]."""
    share = share[..., None]
    return (1.0 - share) * first + share * second


def turns_to_radians(turns: tf.Tensor) -> tf.Tensor:
    """Fractions of a full turn, KerasCV's unit of rotation, as radians."""
    return 2.0 * math.pi * turns
