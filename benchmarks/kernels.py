"""What the CPU kernels of `models/kernels.py` are worth: a step's gradients with them and with Keras' layers, in turn.

    .venv/bin/python benchmarks/kernels.py                      # all six networks
    .venv/bin/python benchmarks/kernels.py --filters            # the filter gradients of depthwise convolutions
    .venv/bin/python benchmarks/kernels.py --norms              # BatchNorm with its gradients
    .venv/bin/python benchmarks/kernels.py --folded             # 1x1 convolutions with their BatchNorm and gradients

Forward in training mode, cross-entropy and the gradients of all weights, float32, 96x96 pixels, without an update.

Measured on 2 cores (Intel Xeon with AVX-512, virtual), TensorFlow 2.18.1, 30 November 2026, times as fast as Keras:
MobileNetV3Small 1.99 (87 for 173 ms), EfficientNetB0 1.90, EfficientNetV2S 1.47, EfficientNetV2M 1.48. The
limits in `models/folded.py` are from `--folded --rounds 9`, batch x side x side x channels; what has a reason beside it
is not folded:

    64 x 24x24x16 to 72     1.72        32 x 6x6x112 to 672     0.95    (1.11 before) too many inputs
    64 x 12x12x24 to 88     1.21        16 x 12x12x80 to 320    1.06    likewise
    64 x 6x6x40 to 240      1.14        16 x 6x6x160 to 960     0.81    likewise
    64 x 6x6x48 to 288      1.19        16 x 6x6x176 to 1056    0.75    likewise
    32 x 48x48x16 to 96     1.60        32 x 3x3x192 to 1152    0.69    likewise, and too few outputs
    32 x 24x24x24 to 144    1.43        16 x 3x3x304 to 1824    0.43    both
    32 x 12x12x40 to 240    1.20        64 x 3x3x96 to 576      1.17    (0.97, 1.22 before) too few outputs
    32 x 6x6x80 to 480      1.06        64 x 24x24x16 to 16     0.95    widens nothing
    16 x 12x12x64 to 256    1.16
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from trainer import CLASSES, interleaved, noise, ratios, set_up

# isort: split

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.models.depthwise import filter_gradient
from bloodcell_dist.models.folded import convolve_and_normalize
from bloodcell_dist.models.kernels import cpu_kernels
from bloodcell_dist.models.normalize import normalize

Case = tuple[str, dict[str, Callable[[], float]]]
"""What is measured, and seconds of a turn before and after."""

BATCHES = {
    "cnn": 64,
    "mobilenetv3small": 64,
    "efficientnetb0": 32,
    "efficientnetv2s": 16,
    "efficientnetv2m": 16,
    "convnextbase": 16,
}
FILTERS = (  # batch, side of the map, channels, size, stride
    *((64, 24, 72, 3, 2), (64, 12, 96, 5, 2), (64, 6, 240, 5, 1), (64, 3, 576, 5, 1)),  # MobileNetV3Small
    *((32, 24, 144, 5, 2), (32, 12, 240, 5, 1), (32, 6, 672, 5, 1), (32, 3, 1152, 5, 1)),  # EfficientNetB0
    *((16, 24, 128, 7, 1), (16, 12, 256, 7, 1), (16, 6, 512, 7, 1), (16, 3, 1024, 7, 1)),  # ConvNeXtBase
)
NORMS = (  # batch, side of the map, channels
    *((64, 48, 16), (64, 24, 72), (64, 12, 88), (64, 12, 96), (64, 6, 40), (64, 6, 240)),  # MobileNetV3Small
    *((32, 48, 32), (32, 24, 144), (32, 12, 40), (32, 3, 1152)),  # EfficientNetB0
)
FOLDED = (  # batch, side of the map, channels before, after
    *((64, 24, 16, 72), (64, 12, 24, 88), (64, 6, 40, 240), (64, 6, 48, 288), (64, 3, 96, 576)),  # MobileNetV3Small
    *((32, 48, 16, 96), (32, 24, 24, 144), (32, 12, 40, 240), (32, 6, 80, 480), (32, 6, 112, 672)),  # EfficientNetB0
    *((16, 12, 64, 256), (16, 12, 80, 320), (16, 6, 160, 960), (16, 6, 176, 1056)),  # EfficientNetV2S, V2M
    *((64, 24, 16, 16), (32, 3, 192, 1152), (16, 3, 304, 1824)),  # from 16 to 16 channels, and the last blocks
)


def network_turn(model: keras.Model, batch: int, active: bool) -> Callable[[], float]:
    """Seconds of one step's gradients."""
    images, labels = noise(batch)
    pictures, targets = tf.constant(images, tf.float32), tf.one_hot(labels, CLASSES)
    weights = [variable.value for variable in model.trainable_variables]

    @tf.function(autograph=False)
    def gradients(pictures: tf.Tensor, targets: tf.Tensor) -> list[tf.Tensor]:
        with cpu_kernels(active), tf.GradientTape(watch_accessed_variables=False) as tape, keras.StatelessScope():
            tape.watch(weights)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, model(pictures, training=True)))
        return tape.gradient(loss, weights)

    def seconds() -> float:
        begun = time.perf_counter()
        gradients(pictures, targets)[0].numpy()
        return time.perf_counter() - begun

    return seconds


def filter_turn(case: tuple[int, int, int, int, int], ours: bool) -> Callable[[], float]:
    """Seconds of the gradient of one depthwise filter, padding SAME."""
    batch, side, channels, size, stride = case
    generator = np.random.default_rng(0)
    outputs = -(-side // stride)
    inputs = tf.constant(generator.normal(size=(batch, side, side, channels)), tf.float32)
    upstream = tf.constant(generator.normal(size=(batch, outputs, outputs, channels)), tf.float32)

    def of(inputs: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        if ours:
            return filter_gradient(inputs, upstream, size, stride, "SAME")
        return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=inputs,
            filter_sizes=[size, size, channels, 1],
            out_backprop=upstream,
            strides=[1, stride, stride, 1],
            padding="SAME",
        )

    return mean_of_ten(tf.function(of, autograph=False), inputs, upstream)


def norm_turn(case: tuple[int, int, int], ours: bool) -> Callable[[], float]:
    """Seconds of a normalization of a batch with its gradients."""
    _, _, channels = case
    return layer_turn(normalize if ours else stock_normalize, case, channels, [tf.ones([channels])])


def folded_turn(case: tuple[int, int, int, int], together: bool) -> Callable[[], float]:
    """Seconds of a 1x1 convolution and its normalization, with their gradients."""
    batch, side, channels, features = case

    def apart(inputs: tf.Tensor, filters: tf.Tensor, *norm: tf.Tensor | float) -> tf.Tensor:
        rows = tf.matmul(tf.reshape(inputs, [-1, channels]), tf.reshape(filters, [channels, features]))
        return normalize(tf.reshape(rows, [batch, side, side, features]), *norm)

    filters = tf.constant(np.random.default_rng(1).normal(size=(1, 1, channels, features)), tf.float32)
    given = [filters, tf.ones([features])]
    return layer_turn(convolve_and_normalize if together else apart, (batch, side, channels), features, given)


def stock_normalize(inputs: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> tf.Tensor:
    """By the operation alone."""
    empty = tf.zeros([0])
    return tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=scale, offset=offset, mean=empty, variance=empty, epsilon=epsilon, is_training=True
    ).y


def layer_turn(
    layer: Callable[..., tf.Tensor], shape: tuple[int, int, int], features: int, weights: Sequence[tf.Tensor]
) -> Callable[[], float]:
    """Seconds of `layer` of maps (batch, side, channels), of weights, an offset and epsilon, with all gradients."""
    batch, side, channels = shape
    generator = np.random.default_rng(0)
    maps, upstream = (
        tf.constant(generator.normal(size=(batch, side, side, count)), tf.float32) for count in (channels, features)
    )

    def of(upstream: tf.Tensor, *given: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(given)
            outputs = layer(*given, 1e-3)
        return [outputs, *tape.gradient(outputs, given, upstream)]

    return mean_of_ten(tf.function(of, autograph=False), upstream, maps, *weights, tf.zeros([features]))


def mean_of_ten(function: Callable[..., object], *arguments: tf.Tensor) -> Callable[[], float]:
    """Seconds of a call."""

    def seconds() -> float:
        begun = time.perf_counter()
        for _ in range(10):
            function(*arguments)
        return (time.perf_counter() - begun) / 10

    return seconds


def filters(given: argparse.Namespace) -> Iterator[Case]:
    """Filter gradients of depthwise convolutions instead of networks."""
    for case in FILTERS:
        batch, side, channels, size, stride = case
        name = f"{batch} x {side}x{side}x{channels}, {size}x{size}, stride {stride}"
        yield name, {"Keras": filter_turn(case, False), "ours": filter_turn(case, True)}


def norms(given: argparse.Namespace) -> Iterator[Case]:
    """BatchNorm layers instead of networks."""
    for case in NORMS:
        batch, side, channels = case
        yield f"{batch} x {side}x{side}x{channels}", {"Keras": norm_turn(case, False), "ours": norm_turn(case, True)}


def folded(given: argparse.Namespace) -> Iterator[Case]:
    """1x1 convolutions with BatchNorm instead of networks."""
    for case in FOLDED:
        batch, side, channels, features = case
        name = f"{batch} x {side}x{side}x{channels}, to {features}"
        yield name, {"apart": folded_turn(case, False), "both": folded_turn(case, True)}


def networks(given: argparse.Namespace) -> Iterator[Case]:
    """Whole networks."""
    for backbone in given.backbones.split(","):
        batch = given.batch or BATCHES[backbone]
        model = build_classifier(backbone, image_size=96, num_classes=CLASSES, dropout=0.0, seed=0)
        turns = {"Keras": network_turn(model, batch, False), "ours": network_turn(model, batch, True)}
        yield f"{backbone}, batch {batch}", turns


def report(cases: Iterable[Case], rounds: int) -> None:
    """A line each: milliseconds of both, and how much faster the second is."""
    for number, (name, turns) in enumerate(cases):
        if number == 0:
            print(" " * 34 + "".join(f"{which + ' ms':>9}" for which in turns) + "  times faster")
        before, after = interleaved(turns, rounds).values()
        times = "".join(f"{1000 * statistics.median(seconds):9.1f}" for seconds in (before, after))
        print(f"{name:34}{times}  {ratios(before, after)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", default=",".join(BATCHES), help="separated by commas")
    parser.add_argument("--batch", type=int, help="pictures per step (16 to 64, by network)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.set_defaults(cases=networks)
    layers = parser.add_mutually_exclusive_group()
    for cases in (filters, norms, folded):
        name, text = f"--{cases.__name__}", cases.__doc__
        layers.add_argument(name, dest="cases", action="store_const", const=cases, help=text)
    given = parser.parse_args(arguments)
    set_up(given.threads)
    report(given.cases(given), given.rounds)


if __name__ == "__main__":
    main()
