"""What the training loop costs beside the network: the trainer against a bare loop, and against Keras' `model.fit`.

    .venv/bin/python benchmarks/loop.py

The same network (MobileNetV3Small, 96x96 pixels, batches of 64, float32, no augmentation), the same loss and the same
rule (Lion, decoupled decay, norm clipped to 1, average of the weights) three times:

- trainer: the package's loop as it runs in a training: index plan, tf.data, record, stop requests, progress;
- bare: one compiled function of one fixed batch (gradients, then the same update), called in a Python loop;
- fit: Keras' `model.fit` of the network from keras.applications with Keras' Lion, on the same pictures in memory,
  `jit_compile=False`, which is what is faster for it on a CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from trainer import CLASSES, Trainer, cells, interleaved, quiet, ratios, set_up, show, stock_classifier

# isort: split

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.models.kernels import cpu_kernels
from bloodcell_dist.training.losses import make_loss
from bloodcell_dist.training.optimizers import make_rule
from bloodcell_dist.training.update import Update

RATE, DECAY, CLIP, EMA, SMOOTHING = 1e-4, 0.1, 1.0, 0.998, 0.05


def bare_loop(backbone: str, images: np.ndarray, labels: np.ndarray) -> Callable[[int], float]:
    """Seconds of so many updates of one batch."""
    model = build_classifier(backbone, image_size=images.shape[1], num_classes=CLASSES, dropout=0.2, seed=0)
    weights = [variable.value for variable in model.trainable_variables]
    names = [variable.path for variable in model.trainable_variables]
    update = Update(weights, names, make_rule("lion"), weight_decay=DECAY, clip_norm=CLIP, ema_decay=EMA)
    loss = make_loss("cross_entropy", label_smoothing=SMOOTHING)
    pictures, targets = tf.constant(images, tf.float32), tf.one_hot(labels, CLASSES)

    @tf.function(autograph=False)
    def step(pictures: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape, keras.StatelessScope(), cpu_kernels():
            tape.watch(weights)
            losses = loss(targets, model(pictures, training=True))
            mean = tf.reduce_mean(losses)
        norm, _ = update.apply(tape.gradient(mean, weights), tf.constant(RATE))
        return norm

    def seconds(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            norm = step(pictures, targets)
        norm.numpy()
        return time.perf_counter() - begun

    return seconds


def keras_fit(backbone: str, images: np.ndarray, labels: np.ndarray, batch: int) -> Callable[[int], float]:
    """Seconds of `model.fit` on so many batches."""
    model = stock_classifier(backbone, images.shape[1])
    model.compile(
        keras.optimizers.Lion(RATE, weight_decay=DECAY, global_clipnorm=CLIP, use_ema=True, ema_momentum=EMA),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=SMOOTHING),
        jit_compile=False,
    )
    targets = np.eye(CLASSES, dtype=np.float32)[labels]

    def seconds(steps: int) -> float:
        rows = slice(0, steps * batch)
        begun = time.perf_counter()
        model.fit(images[rows], targets[rows], batch_size=batch, verbose=0)
        return time.perf_counter() - begun

    return seconds


def measure(backbone: str, path: str | None, batch: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """images/s of each, round by round."""
    images, labels = cells(path, count=batch * steps)
    trainer = Trainer(
        images,
        labels,
        (
            f"model.backbone={backbone}",
            f"train.global_batch_size={batch}",
            *("augment.policy=none", "data.placement=device", "optimizer.schedule=constant"),
            f"optimizer.learning_rate={RATE}",
        ),
    )
    bare = bare_loop(backbone, images[:batch], labels[:batch])
    fit = keras_fit(backbone, images, labels, batch)
    steps = min(steps, len(images) // batch)
    work = batch * steps
    turns = {
        "trainer": lambda: trainer.train(steps).per_step()["images_per_s"],
        "bare": lambda: work / bare(steps),
        "fit": lambda: work / fit(steps),
    }
    with quiet():
        return interleaved(turns, rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilenetv3small")
    parser.add_argument("--cells", metavar="NPZ", help="real cells instead of noise")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30, help="updates per turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args(arguments)
    set_up(given.threads)
    rates = measure(given.backbone, given.cells, given.batch, given.steps, given.rounds)
    show(rates)
    print(f"trainer / bare: {ratios(rates['trainer'], rates['bare'])}")
    print(f"trainer / fit: {ratios(rates['trainer'], rates['fit'])}")


if __name__ == "__main__":
    main()
