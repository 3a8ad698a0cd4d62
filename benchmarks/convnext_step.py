"""How long a training step of ConvNeXtBase takes on a CPU: Keras' network against ours.

    .venv/bin/python benchmarks/convnext_step.py --batch 8 --threads 2

A step is the forward pass in training mode, cross-entropy and the gradients of all weights, without an update, in
float32. Both networks have the same weights and see the same pictures. They take turns, so that whatever else the
machine does meets both.

Measured on 2 cores (AMD EPYC, virtual), TensorFlow 2.18.1, Keras 3.15.1, 25 November 2026; with 16 pictures in the last
row with the CPU kernels of `models/kernels.py`, as the script has them now, before that without:

| pictures 96x96 | Keras, s (median, min-max) | ours, s (median, min-max) | times faster | gradients differ by |
|---|---|---|---|---|
| 8 | 3.94 (3.92-4.05) | 0.66 (0.62-1.01) | 5.9 | 4.1e-6 |
| 16 | 6.17 (6.01-6.31) | 1.09 (1.09-1.20) | 5.6 | 2.5e-6 |
| 16, kernels | 6.05 (5.88-6.21) | 0.89 (0.86-0.91) | 6.8 | 2.3e-6 |

On 2 cores of an Intel Xeon (AVX-512, virtual), 30 November 2026, the last row was 7.2 and 7.9 times in two runs, the
gradients equal to 3e-6.

Why Keras' is slow: ConvNeXt's depthwise convolutions are written there as `Conv2D(groups=channels)`. As TensorFlow has
no gradients for grouped convolutions on CPUs without oneDNN ("Gradients for grouped convolutions are not supported on
CPU", tried), Keras compiles each of them with XLA, always and on every device (`needs_xla`, `_conv_xla` in
keras/src/backend/tensorflow/nn.py, read). On CPUs XLA then runs a loop over the groups, in which Eigen gathers patches
of one single channel and multiplies them by one single filter (`EigenConv2DImpl` in
xla/service/cpu/runtime_conv_impl.h, read). `DepthwiseConv2D` calls TensorFlow's own kernel instead. That it is XLA's
convolution and not the layer: 8 pictures of 24x24x128, 7x7 filters, took 1.2 ms as a grouped convolution with oneDNN
and 1.0 ms as a depthwise one, but 122 ms and 86 ms compiled with XLA (forward; the gradients 11 and 8 ms, but 484 and
331 ms; the same machine and day).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bloodcell_dist import runtime  # noqa: F401  before Keras: it imports TensorFlow quietly

# isort: split

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.models.backbones import BACKBONES, HEAD, build_classifier
from bloodcell_dist.models.kernels import cpu_kernels
from bloodcell_dist.models.stored import of_model
from bloodcell_dist.models.transfer import transfer

BACKBONE = "convnextbase"
CLASSES = 8

Step = Callable[[tf.Tensor, tf.Tensor], list[tf.Tensor]]


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        stock_s: seconds of each step of Keras' network.
        ours_s: seconds of each step of ours.
        difference: the largest of the gradients, relative to the largest value of the same weight's gradient.
    """

    stock_s: list[float]
    ours_s: list[float]
    difference: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is, by the medians."""
        return statistics.median(self.stock_s) / statistics.median(self.ours_s)


def measure(size: int, batch: int, rounds: int) -> Result:
    """Steps on `batch` random pictures of `size` pixels, `rounds` of each network in turn after one to warm up."""
    stock = stock_network(size)
    ours = build_classifier(BACKBONE, image_size=size, num_classes=CLASSES, dropout=0.0, seed=0)
    transfer(ours, of_model(stock), "stock")
    rng = np.random.default_rng(0)
    pictures = tf.constant(rng.uniform(0, 255, (batch, size, size, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, CLASSES, batch))
    steps = [training_step(stock, kernels=False), training_step(ours, kernels=True)]
    difference = largest_difference(*(step(pictures, labels) for step in steps))
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for step, found in zip(steps, times, strict=True):
            begun = time.perf_counter()
            [gradient.numpy() for gradient in step(pictures, labels)]  # which waits for them
            found.append(time.perf_counter() - begun)
    return Result(times[0], times[1], difference)


def stock_network(size: int) -> keras.Model:
    """The network of keras.applications with a head like ours."""
    keras.utils.set_random_seed(0)
    pictures = keras.Input((size, size, 3))
    network = keras.Model(pictures, keras.layers.Dense(CLASSES, name=HEAD)(BACKBONES[BACKBONE].stock(pictures).output))
    for layer in network.layers:
        if layer.name.endswith("layer_scale"):
            layer.gamma.assign(tf.ones_like(layer.gamma))  # the initial 1e-6 would hide what the blocks do
    return network


def training_step(network: keras.Model, kernels: bool) -> Step:
    """(pictures [B, H, W, 3], labels [B]) to the gradients of all weights; `kernels`: ours for CPUs."""

    @tf.function(autograph=False)
    def step(pictures: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        with cpu_kernels(kernels), tf.GradientTape() as tape:
            logits = network(pictures, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return tape.gradient(loss, [variable.value for variable in network.trainable_variables])

    return step


def largest_difference(stock: Sequence[tf.Tensor], ours: Sequence[tf.Tensor]) -> float:
    """See `Result.difference`; a grouped kernel's gradient [h, w, 1, C] and ours [h, w, C, 1] hold the same numbers."""
    pairs = [(theirs.numpy().ravel(), own.numpy().ravel()) for theirs, own in zip(stock, ours, strict=True)]
    return max(float(np.abs(theirs - own).max() / np.abs(theirs).max()) for theirs, own in pairs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Times a training step of ConvNeXtBase, Keras' and ours, on the CPU.")
    parser.add_argument("--size", type=int, default=96, metavar="PIXELS", help="side of the pictures (96)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures per step (8)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="steps of each network (5)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (all)")
    given = parser.parse_args(arguments)
    if given.threads:
        tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    with tf.device("CPU:0"):
        result = measure(given.size, given.batch, given.rounds)
    print(f"{BACKBONE}, training step, float32, {given.batch} pictures of {given.size}x{given.size} pixels, CPU")
    print(f"{'':6}{'median s':>10}{'min s':>8}{'max s':>8}{'pictures/s':>12}")
    for name, times in (("stock", result.stock_s), ("ours", result.ours_s)):
        median = statistics.median(times)
        print(f"{name:6}{median:10.2f}{min(times):8.2f}{max(times):8.2f}{given.batch / median:12.2f}")
    print(
        f"ours is {result.ratio:.1f} times faster; largest relative difference of the gradients {result.difference:.1e}"
    )


if __name__ == "__main__":
    main()
