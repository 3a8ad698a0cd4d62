"""How many pictures a second augmentation makes on a CPU: stock KerasCV layers against ours.

    .venv/bin/python benchmarks/augmentation.py --threads 1

Each of our layers is compiled with XLA, its random numbers included; each stock layer runs in a plain tf.function, the
only way in which all of them run. Both take uint8 pictures with labels. They take turns, so that whatever else the
machine does meets both; a turn is a number of steps, as some layers draw one way out of several for the whole batch.

Measured on one of 2 cores (Intel Xeon with AVX-512, virtual), TensorFlow 2.18.1, Keras 3.15.1, KerasCV 0.9.0,
30 November 2026, 64 pictures of 96x96, medians of 3 turns of 16 steps (`--rounds 3`):

| | ours, pictures/s | stock, pictures/s | times faster |
|---|---|---|---|
| flip | 5,468 | 1,516 | 3.6 |
| rotation | 5,534 | 1,312 | 4.2 |
| zoom | 5,293 | 1,246 | 4.2 |
| shear | 5,221 | 618 | 8.4 |
| translation | 6,483 | 1,550 | 4.2 |
| all five moves | 5,720 | 257 | 22.3 |
| brightness | 30,921 | 15,413 | 2.0 |
| contrast | 20,485 | 3,822 | 5.4 |
| saturation | 14,317 | 1,339 | 10.7 |
| hue | 11,154 | 1,485 | 7.5 |
| degeneration | 22,081 | 5,515 | 4.0 |
| auto-contrast | 18,174 | 1,862 | 9.8 |
| equalisation | 5,672 | 1,688 | 3.4 |
| posterisation | 31,409 | 9,727 | 3.2 |
| solarisation | 30,649 | 3,098 | 9.9 |
| sharpness | 18,565 | 3,135 | 5.9 |
| blur | 13,779 | 4,917 | 2.8 |
| JPEG | 5,958 | 3,350 | 1.8 |
| GridMask | 19,478 | 891 | 21.9 |
| Cutout | 25,752 | 4,579 | 5.6 |
| CutMix | 15,920 | 3,748 | 4.2 |
| MixUp | 23,193 | 10,353 | 2.2 |
| FourierMix | 11,882 | 645 | 18.4 |
| RandAugment | 3,281 | 599 | 5.5 |
| stain | 5,048 | - | - |
| illumination | 34,673 | - | - |
| noise | 21,702 | - | - |
| policy light | 4,184 | 194 | 21.6 |
| policy seed | 2,369 | 175 | 13.6 |
| policy robust | 1,579 | 219 | 7.2 |

All layers of one affine map take one time, as it resamples once. Policy robust has stain jitter, uneven illumination
and noise, which the stock one lacks. RandAugment stands for all its ten operations on both sides.

Another run of that day: light 17.2, seed 14.1, robust 7.9. On another machine (AMD EPYC), 25 November 2026: single
layers 1.6 (blur, JPEG) to 23.7 (FourierMix), light 16.3, seed 11.5, robust 6.6, twice as many pictures on both sides.
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
