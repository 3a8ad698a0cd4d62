"""How many pictures a second augmentation makes on a CPU: stock KerasCV layers against ours.

    .venv/bin/python benchmarks/augmentation.py --threads 1

Each of our layers is compiled with XLA, its random numbers included; each stock layer runs in a plain tf.function, the
only way in which all of them run. Both take uint8 pictures with labels. They take turns, so that whatever else the
machine does meets both; a turn is a number of steps, as some layers draw one way out of several for the whole batch.

Measured on one of 2 cores (AMD EPYC, virtual), TensorFlow 2.18.1, Keras 3.15.1, KerasCV 0.9.0, 25 November 2026,
64 pictures of 96x96, medians of 5 turns of 16 steps:

| | ours, pictures/s | stock, pictures/s | times faster |
|---|---|---|---|
| flip | 11,576 | 5,251 | 2.2 |
| rotation | 10,552 | 3,575 | 3.0 |
| zoom | 11,166 | 4,101 | 2.7 |
| shear | 10,191 | 2,135 | 4.8 |
| translation | 11,206 | 4,089 | 2.7 |
| all five moves | 11,280 | 754 | 15.0 |
| brightness | 162,837 | 83,633 | 1.9 |
| contrast | 53,352 | 13,257 | 4.0 |
| saturation | 36,562 | 4,596 | 8.0 |
| hue | 33,502 | 4,309 | 7.8 |
| degeneration | 65,013 | 16,084 | 4.0 |
| auto-contrast | 61,045 | 5,598 | 10.9 |
| equalisation | 13,257 | 3,965 | 3.3 |
| posterisation | 165,694 | 37,190 | 4.5 |
| solarisation | 120,967 | 9,973 | 12.1 |
| sharpness | 32,443 | 7,135 | 4.5 |
| blur | 24,063 | 15,186 | 1.6 |
| JPEG | 14,471 | 8,869 | 1.6 |
| GridMask | 51,297 | 2,599 | 19.7 |
| Cutout | 70,825 | 10,892 | 6.5 |
| CutMix | 45,865 | 10,925 | 4.2 |
| MixUp | 73,693 | 36,553 | 2.0 |
| FourierMix | 28,654 | 1,208 | 23.7 |
| RandAugment | 7,041 | 1,384 | 5.1 |
| stain | 9,799 | - | - |
| illumination | 146,024 | - | - |
| noise | 52,164 | - | - |
| policy light | 8,915 | 548 | 16.3 |
| policy seed | 4,774 | 416 | 11.5 |
| policy robust | 3,383 | 511 | 6.6 |

All layers of one affine map take one time, as it resamples once. Policy robust has stain jitter, uneven illumination
and noise, which the stock one lacks. RandAugment stands for all its ten operations on both sides.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bloodcell_dist import runtime  # noqa: F401  before Keras: it imports TensorFlow quietly

# isort: split

import keras_cv
import numpy as np
import tensorflow as tf

from bloodcell_dist.augment import camera, colour, erase, focus, fourier, jpeg, mixing, stain, tones
from bloodcell_dist.augment.affine import RandomAffine
from bloodcell_dist.augment.base import StatelessAugmentation
from bloodcell_dist.augment.fused import FusedPolicy
from bloodcell_dist.augment.policies import POLICY_NAMES, Policy, build_policy
from bloodcell_dist.augment.rand_augment import RandAugment
from bloodcell_dist.augment.stock import StockPolicy, of_unit_range

CLASSES = 8
SEED = 7

stock = keras_cv.layers
Step = Callable[[tf.Tensor], tf.Tensor]

LAYERS: dict[str, tuple[Callable[[], StatelessAugmentation], Callable[[], Sequence[object]]]] = {
    "flip": (lambda: RandomAffine(0.5, 0.5), lambda: [stock.RandomFlip("horizontal_and_vertical")]),
    "rotation": (lambda: RandomAffine(rotation=0.5), lambda: [stock.RandomRotation(0.5)]),
    "zoom": (lambda: RandomAffine(zoom=0.1), lambda: [stock.RandomZoom(0.1)]),
    "shear": (lambda: RandomAffine(shear_x=0.1, shear_y=0.1), lambda: [stock.RandomShear(0.1, 0.1)]),
    "translation": (
        lambda: RandomAffine(translate_x=0.1, translate_y=0.1),
        lambda: [stock.RandomTranslation(0.1, 0.1)],
    ),
    "all five moves": (
        lambda: RandomAffine(0.5, 0.5, False, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1),
        lambda: [
            stock.RandomFlip("horizontal_and_vertical"),
            stock.RandomRotation(0.5),
            stock.RandomZoom(0.1),
            stock.RandomShear(0.1, 0.1),
            stock.RandomTranslation(0.1, 0.1),
        ],
    ),
    "brightness": (lambda: colour.RandomBrightness(0.2), lambda: [stock.RandomBrightness(0.2)]),
    "contrast": (lambda: colour.RandomContrast(0.2), lambda: [stock.RandomContrast((0, 255), 0.2)]),
    "saturation": (lambda: colour.RandomSaturation((0.3, 0.7)), lambda: [stock.RandomSaturation((0.3, 0.7))]),
    "hue": (lambda: colour.RandomHue(0.2), lambda: [stock.RandomHue(0.2, (0, 255))]),
    "degeneration": (
        lambda: colour.RandomColorDegeneration((0.0, 0.5)),
        lambda: [stock.RandomColorDegeneration((0.0, 0.5))],
    ),
    "auto-contrast": (lambda: tones.AutoContrast(), lambda: [stock.AutoContrast((0, 255))]),
    "equalisation": (lambda: tones.Equalization(), lambda: [stock.Equalization((0, 255))]),
    "posterisation": (lambda: tones.Posterization(4), lambda: [stock.Posterization((0, 255), 4)]),
    "solarisation": (
        lambda: tones.Solarization((0.0, 110.0), (100.0, 255.0)),
        lambda: [stock.Solarization((0, 255), (0.0, 110.0), (100.0, 255.0))],
    ),
    "sharpness": (lambda: focus.RandomSharpness((0.0, 0.5)), lambda: [stock.RandomSharpness((0.0, 0.5), (0, 255))]),
    "blur": (
        lambda: focus.RandomGaussianBlur(7, (0.5, 1.5)),
        lambda: [stock.RandomGaussianBlur(7, (0.5, 1.5))],
    ),
    "JPEG": (
        lambda: jpeg.RandomJpegQuality((40.0, 95.0)),
        lambda: [of_unit_range(stock.RandomJpegQuality((40, 95)))],
    ),
    "GridMask": (lambda: erase.GridMask(), lambda: [stock.GridMask()]),
    "Cutout": (
        lambda: erase.RandomCutout((0.1, 0.4), (0.1, 0.4)),
        lambda: [stock.RandomCutout((0.1, 0.4), (0.1, 0.4))],
    ),
    "CutMix": (lambda: mixing.CutMix(), lambda: [stock.CutMix()]),
    "MixUp": (lambda: mixing.MixUp(), lambda: [stock.MixUp()]),
    "FourierMix": (lambda: fourier.FourierMix(), lambda: [stock.FourierMix()]),
    "RandAugment": (lambda: RandAugment(3), lambda: [stock.RandAugment((0, 255), 3, 0.5)]),
    "stain": (lambda: stain.RandomStain(), lambda: []),
    "illumination": (lambda: camera.RandomIllumination(), lambda: []),
    "noise": (lambda: camera.RandomNoise(), lambda: []),
}
"""Name -> our layer and the stock layers that do the same; none where KerasCV has no such."""

NAMES = (*LAYERS, *(f"policy {name}" for name in POLICY_NAMES if name != "none"))


@dataclass(frozen=True)
class Result:
    """Seconds per step of each turn; `stock_s` is empty where there is no such stock layer."""

    name: str
    ours_s: list[float]
    stock_s: list[float]

    @property
    def ratio(self) -> float:
        """How many times faster ours is, by the medians."""
        return statistics.median(self.stock_s) / statistics.median(self.ours_s)


def pair(name: str, size: int) -> tuple[Policy, Policy | None]:
    """Ours and the stock one, for pictures of `size` pixels."""
    if name.startswith("policy "):
        options = {"image_size": size, "num_classes": CLASSES}
        name = name.removeprefix("policy ")
        return build_policy(name, **options), build_policy(name, engine="kerascv", **options)
    ours, theirs = (make() for make in LAYERS[name])
    stock_policy = StockPolicy(name, tuple(theirs)) if theirs else None
    return FusedPolicy(name, (ours,), size, CLASSES), stock_policy


def measure(name: str, *, batch: int, size: int, rounds: int, steps: int) -> Result:
    """`rounds` turns of `steps` steps of each kind, after one to warm up."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (batch, -(-size // 4), -(-size // 4), 3))
    pictures = tf.cast(tf.image.resize(coarse, (size, size)), tf.uint8)  # smooth, as photographs are
    labels = tf.one_hot(rng.integers(0, CLASSES, batch), CLASSES)
    ours, theirs = pair(name, size)
    calls = [compiled(policy, pictures, labels) for policy in (ours, theirs) if policy is not None]
    times: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for call, found in zip(calls, times, strict=False):
            begun = time.perf_counter()
            for step in range(turn * steps, (turn + 1) * steps):
                call(tf.constant(step)).numpy()  # which waits for it
            found.append((time.perf_counter() - begun) / steps)
    return Result(name, *(found[1:] for found in times))


def compiled(policy: Policy, pictures: tf.Tensor, labels: tf.Tensor) -> Step:
    """(step) to the new pictures; ours compiled with XLA, stock ones not."""
    positions = tf.range(len(pictures))

    def step(number: tf.Tensor) -> tf.Tensor:
        return policy(pictures, labels, SEED, number, positions)[0]

    if isinstance(policy, FusedPolicy):
        return tf.function(step, jit_compile=True, autograph=False)
    return tf.function(step)


def line(result: Result, batch: int) -> str:
    """A row of the table: name, pictures per second of ours and of stock, ratio."""
    ours = f"| {result.name} | {batch / statistics.median(result.ours_s):,.0f} | "
    if not result.stock_s:
        return ours + "- | - |"
    return ours + f"{batch / statistics.median(result.stock_s):,.0f} | {result.ratio:.1f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Times augmentation on the CPU, KerasCV's layers and ours.")
    parser.add_argument("--size", type=int, default=96, metavar="PIXELS", help="side of the pictures (96)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="pictures per step (64)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each (5)")
    parser.add_argument("--steps", type=int, default=16, metavar="N", help="steps in a turn (16)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (all)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    given = parser.parse_args(arguments)
    if given.threads:
        tf.config.threading.set_intra_op_parallelism_threads(given.threads)
        tf.config.threading.set_inter_op_parallelism_threads(given.threads)
    print(f"augmentation, {given.batch} pictures of {given.size}x{given.size} pixels, pictures per second, CPU")
    print("| | ours | stock | times faster |\n|---|---|---|---|", flush=True)
    results = []
    for name in given.only:
        with tf.device("CPU:0"):
            size, rounds, steps = given.size, given.rounds, given.steps
            results.append(measure(name, batch=given.batch, size=size, rounds=rounds, steps=steps))
        print(line(results[-1], given.batch), flush=True)
    compared = [result for result in results if result.stock_s]
    if compared:
        least = min(compared, key=lambda result: result.ratio)
        print(f"least gain: {least.name}, {least.ratio:.1f} times faster than stock")


if __name__ == "__main__":
    main()
