"""What the benchmarks share: the package's own training on given cells, some updates at a time, and a stock network."""

from __future__ import annotations

import contextlib
import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bloodcell_dist import runtime  # before Keras: it imports TensorFlow quietly

# isort: split

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.bench import timing
from bloodcell_dist.config import load_settings
from bloodcell_dist.data.dataset import ArrayDataset
from bloodcell_dist.data.prepare import Prepared
from bloodcell_dist.data.rows import Images
from bloodcell_dist.models.backbones import BACKBONES
from bloodcell_dist.resolve import Machine
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.session import Session
from bloodcell_dist.settings import BLOOD_CELLS
from bloodcell_dist.start import settle
from bloodcell_dist.training.loop import Actions, Length, run_loop
from bloodcell_dist.training.preemption import StopRequest
from bloodcell_dist.training.record import Times
from bloodcell_dist.training.replication import Replication, SingleDevice

CLASSES = len(BLOOD_CELLS)


class Trainer:
    """A run of the package, without folder and evaluation, that trains so many updates whenever it is asked to.

    Args:
        images: uint8 [N, H, W, 3], square.
        labels: int [N].
        overrides: settings as texts, such as `model.backbone=cnn`.
        replication: of all ranks; one device if there is none.
    """

    def __init__(
        self, images: Images, labels: np.ndarray, overrides: Sequence[str], replication: Replication | None = None
    ) -> None:
        given = ("data.source=synthetic", f"data.image_size={images.shape[1]}", *overrides)
        replication = replication or SingleDevice()
        settings, _ = settle(load_settings(None, given), Machine(num_gpus=0, process=replication.process))
        cells = ArrayDataset(images, labels.astype(np.int64), BLOOD_CELLS)
        self._folder = tempfile.TemporaryDirectory(prefix="benchmark-")
        run = RunDir(Path(self._folder.name, "run"))
        run.create()
        self.session = Session(settings, run, Prepared(cells, cells, None, cells, None), replication)
        self.session.resume(None)
        self.step = 0

    def train(self, steps: int, save: Callable[[int], None] | None = None, every_steps: int | None = None) -> Times:
        """Where the time of so many updates went, as the log of a training tells it.

        An epoch is as long as the turn; its first update, for which the loop makes ready to compile, is not timed.
        """
        session, times = self.session, Times()

        def keep_times(epoch: int, step: int) -> None:
            nonlocal times
            times = session.record.times

        run_loop(
            session.assembly.step,
            feed=session.assembly.cells.feed,
            plan=session.arithmetic.plan,
            stages=session.arithmetic.stages,
            replication=session.replication,
            length=Length(steps, self.step + steps),
            first_step=self.step,
            record=session.record,
            actions=Actions(keep_times, save or (lambda step: None), lambda: None),
            every_steps=every_steps,
            stop=StopRequest(),
            steps_per_call=session.settings.train.steps_per_call,
        )
        self.step += steps
        return times


def noise(count: int, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Random pictures uint8 [count, size, size, 3] and labels."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return images, np.arange(count) % CLASSES


def cells(path: str | None, count: int = 3000, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """The pictures and labels of an npz file, or random ones."""
    if path is None:
        return noise(count, size)
    with np.load(path) as file:
        return file["images"], file["labels"].ravel()


def stock_classifier(backbone: str, size: int) -> keras.Model:
    """What a person builds from keras.applications: raw pictures in, logits out."""
    keras.utils.set_random_seed(0)
    pictures = keras.Input((size, size, 3))
    features = keras.layers.GlobalAveragePooling2D()(BACKBONES[backbone].stock(pictures).output)
    return keras.Model(pictures, keras.layers.Dense(CLASSES)(keras.layers.Dropout(0.2)(features)))


def interleaved(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each turn returns in every round, after one before the first, which compiles and is not counted."""
    timing.interleaved(turns, 1)
    return timing.interleaved(turns, rounds)


def ratios(of: Sequence[float], to: Sequence[float]) -> str:
    """`1.92 (round by round 1.85 to 2.16)`: of the medians."""
    each = [one / other for one, other in zip(of, to, strict=True)]
    return f"{statistics.median(of) / statistics.median(to):.2f} (round by round {min(each):.2f} to {max(each):.2f})"


def show(rates: Mapping[str, Sequence[float]], unit: str = "images/s") -> None:
    """A line for each: median, least and greatest."""
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):.1f} {unit} ({min(values):.1f} to {max(values):.1f})")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the loop's lines about first steps."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def set_up(threads: int, deterministic: bool = True) -> None:
    """TensorFlow as a training has it, on so many threads; 0 for all. KerasCV's layers are refused if deterministic."""
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    runtime.configure(precision="float32", deterministic=deterministic, eager=False)
