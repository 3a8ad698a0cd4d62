"""How pictures lie in memory and when they are computed, so that XLA makes fast programs of them."""

from typing import Any

import tensorflow as tf


def picture_size(images: tf.Tensor) -> tuple[int, int]:
    """(H, W) of images [B, H, W, 3] as Python ints; ValueError where they are not known when traced."""
    height, width = images.shape[1:3]
    if height is None or width is None:
        raise ValueError(f"height and width of the images must be known when traced, got shape {images.shape}")
    return height, width


def settled(*tensors: tf.Tensor) -> Any:
    """The same tensors, computed once: on a CPU behind a branch that is always taken, across which XLA does not fuse.

    There XLA would compute a tensor anew for each of its readers: seven times for the taps of a blur, once per pixel
    for a table of colours. The branch costs no copy, and a compiler cannot know which way it goes. With a GPU in sight
    it is left out: XLA weighs its fusions there, and a branch makes the host wait.

    Args:
        tensors: of any shapes; the first one's values are >= 0.

    Returns:
        One tensor, or the list of several.
    """
    if tf.config.get_visible_devices("GPU"):
        return list(tensors) if len(tensors) > 1 else tensors[0]
    first = tf.cast(tf.reshape(tensors[0], [-1])[0], tf.float32)
    kept = tf.cond(
        tf.logical_not(first <= -1.0),  # so that NaN stays NaN
        lambda: list(tensors),
        lambda: [_other(tensor) for tensor in tensors],
    )
    return kept if len(tensors) > 1 else kept[0]


def _other(tensor: tf.Tensor) -> tf.Tensor:
    """What the branch that is never taken makes of a tensor.

    It must need the tensor too: what one branch alone needs, TensorFlow's optimizer moves into that branch where the
    compiled function is called from another one (`experimental_conditional_code_motion`), and nothing is settled.
    """
    return tf.logical_not(tensor) if tensor.dtype == tf.bool else tensor + tf.ones_like(tensor)


def rows(images: tf.Tensor) -> tf.Tensor:
    """Pictures with pixels side by side, [B, H, W, 3] -> [B, H, W * 3].

    Loops over a long last axis vectorise on a CPU, those over three channels do not: to scale and clip 64 pictures of
    96 x 96 takes 0.4 ms instead of 1.0.
    """
    height, width = picture_size(images)
    return tf.reshape(images, [-1, height, 3 * width])


def from_rows(values: tf.Tensor) -> tf.Tensor:
    """The inverse of `rows`; `values` >= 0 are computed as rows, before they are reshaped."""
    return tf.reshape(settled(values), [-1, values.shape[1], values.shape[2] // 3, 3])


def along_rows(channels: tf.Tensor, width: int) -> tf.Tensor:
    """A number per channel, to combine it with `rows` of `width` pixels: [B, 1, 1, 3] -> [B, 1, 3 * width]."""
    return tf.tile(channels[:, 0], [1, 1, width])
