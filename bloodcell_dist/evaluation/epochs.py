"""The end of an epoch: evaluate on the validation set, record, remember the best."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist import memory
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.data.dataset import ArrayDataset
from bloodcell_dist.data.sampling import IndexPlan
from bloodcell_dist.errors import TrainingFailed
from bloodcell_dist.evaluation.metrics import classification_metrics
from bloodcell_dist.evaluation.predict import Forward, predict
from bloodcell_dist.history import append_metrics
from bloodcell_dist.models.batchnorm import Recalibration
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.training.naming import align_names
from bloodcell_dist.training.record import REMEDIES, EpochRecord
from bloodcell_dist.training.replication import Replication
from bloodcell_dist.training.stages import Stages
from bloodcell_dist.training.state import TrainingState

log = logging.getLogger(__name__)

RECALIBRATION_EXAMPLES = 2048


@dataclass
class Standing:
    """What a run knows of itself across restarts; saved in checkpoints as JSON.

    Attributes:
        best_epoch: from 0, None before the first evaluation.
        best_step: updates made at its end.
        best_value: of the selecting metric; None where it was not a number.
        train_seconds: spent in training steps.
        examples: trained on in that time; the first step of each life, which compiles, is not counted.
        wall_seconds: lived, all lives of the run together.
        gpu_seconds: the same, times the GPUs in use.
    """

    best_epoch: int | None = None
    best_step: int = 0
    best_value: float | None = None
    train_seconds: float = 0.0
    examples: int = 0
    wall_seconds: float = 0.0
    gpu_seconds: float = 0.0

    def note(self, epoch: int, step: int, value: float, lower_is_better: bool) -> bool:
        """Whether this epoch is the best so far; the earlier one wins a tie, any number beats NaN."""
        number = None if math.isnan(value) else value
        if self.best_value is None:
            ahead = self.best_epoch is None or number is not None
        else:
            sign = -1 if lower_is_better else 1
            ahead = number is not None and sign * number > sign * self.best_value
        if ahead:
            self.best_epoch, self.best_step, self.best_value = epoch, step, number
        return ahead


class Evaluation:
    """The network as it is evaluated: averaged weights, fresh BatchNorm statistics, inference mode.

    Args:
        model: being trained.
        forward: `predict.make_forward` of it.
        state: gives it its evaluation weights.
        replication: shares the work.
        train: cells to recalibrate on.
        plan: their order.
        batch_size: examples per pass.
        xla: compile the recalibration.
    """

    def __init__(
        self,
        model: keras.Model,
        forward: Forward,
        state: TrainingState,
        replication: Replication,
        *,
        train: ArrayDataset,
        plan: IndexPlan,
        batch_size: int,
        xla: bool,
    ) -> None:
        order = plan.epoch_order(0)[:RECALIBRATION_EXAMPLES]
        size = min(batch_size, len(order))
        self._batches = order[: len(order) // size * size].reshape(-1, size)
        self._model, self._xla, self._replication = model, xla, replication
        self.layers_changed()
        self._forward, self._state, self._images, self._batch_size = forward, state, train.images, batch_size

    def layers_changed(self) -> None:
        """Heed which layers are frozen now: those keep their BatchNorm statistics."""
        self._recalibration = Recalibration(self._model, self._xla)
        self._traced = False

    def weights(self) -> Any:
        """A context in which the network has its evaluation weights."""
        if not self._traced:
            align_names()
        self._traced = True
        return self._state.evaluation_weights(self.recalibrate)

    def keep_best(self) -> None:
        """Remember the weights that the network has now, on the chief."""
        if self._replication.is_chief:
            self._state.keep_best()

    def take_best(self) -> None:
        """Give the network the best epoch's weights, for good. A collective."""
        if self._replication.is_chief:
            self._state.take_best()
        self._replication.broadcast(self._state.weights())

    def probabilities(self, dataset: ArrayDataset) -> np.ndarray:
        """float32 [N, C] with the weights the network has, on every worker. A collective."""
        return predict(self._forward, dataset.images, self._batch_size, self._replication)

    def recalibrate(self) -> None:
        """Fresh BatchNorm statistics for the layers that train. A collective."""
        self._recalibration([self._images[rows] for rows in self._batches], self._replication.map)


class EpochEnd:
    """Evaluates and records; called by the loop with (epoch from 0, steps made). A collective.

    Args:
        run: where the chief writes; None on other workers.
        evaluation: of the network.
        workers: the predictions come from all; the chief computes metrics of them and tells the others.
        val: validation cells.
        train_labels: int [N], of the set the plan points into.
        plan: order of the training examples.
        record: what the epoch's steps left.
        standing: brought up to date.
        select_by: metric that names the best epoch.
        stages: of the run: the learning rate of an update, and how long the time of an epoch tells of the next.
        epochs: of the run.
    """

    def __init__(
        self,
        run: RunDir | None,
        evaluation: Evaluation,
        workers: Workers,
        *,
        val: ArrayDataset,
        train_labels: np.ndarray,
        plan: IndexPlan,
        record: EpochRecord,
        standing: Standing,
        select_by: str,
        stages: Stages,
        epochs: int,
    ) -> None:
        self._run, self._evaluation, self._workers = run, evaluation, workers
        self._val, self._train_labels, self._plan = val, train_labels, plan
        self._record, self._standing, self._select_by = record, standing, select_by
        self._stages, self._epochs = stages, epochs
        self._clock = time.monotonic()
        self._boards = (
            {name: tf.summary.create_file_writer(str(run.tensorboard / name)) for name in ("train", "val")}
            if run
            else {}
        )

    def __call__(self, epoch: int, step: int) -> None:
        """Evaluate the epoch that ended after `step` updates."""
        train = self._training_metrics(epoch) if self._run is not None else {}
        with self._evaluation.weights():
            val = self._validation_metrics()
            value = val[self._select_by]
            best = self._standing.note(epoch, step, value, self._select_by == "loss")
            if best:
                self._evaluation.keep_best()
        self._standing.train_seconds += self._record.times.seconds
        self._standing.examples += self._record.times.examples
        if self._run is not None:
            self._write(self._run, epoch, step, train, val, best)

    def _write(
        self, run: RunDir, epoch: int, step: int, train: dict[str, float], val: dict[str, float], best: bool
    ) -> None:
        row = {
            "epoch": epoch,
            "step": step,
            "learning_rate": self._stages.learning_rate(step - 1),
            **{f"train_{name}": number for name, number in train.items()},
            **{f"val_{name}": number for name, number in val.items()},
            "skipped_updates": self._record.skipped_updates(),
            **self._record.times.per_step(),
            "memory_gb": memory.peak_of_devices()[0] / 1e9,
        }
        append_metrics(run.metrics, row)
        self._to_tensorboard(epoch, train, val, row)
        log.info("%s%s%s", _line(row), " | best so far" if best else "", self._time_left(epoch, step))

    def _validation_metrics(self) -> dict[str, float]:
        """Of the predictions of all workers; computed once, so that all agree on the best epoch."""
        probabilities = self._evaluation.probabilities(self._val)
        mine = classification_metrics(probabilities, self._val.labels) if self._workers.is_chief else None
        metrics: dict[str, float] = self._workers.share(mine)
        return metrics

    def _training_metrics(self, epoch: int) -> dict[str, float]:
        probabilities = self._record.probabilities()
        rows = self._plan.epoch_batches(epoch).ravel()[: len(probabilities)]
        return training_metrics(probabilities, self._record.losses(), self._train_labels[rows])

    def _time_left(self, epoch: int, step: int) -> str:
        """` | 12 min left`, from the time since the last epoch's end; nothing after the last.

        Nor before the last stage: an epoch of the head alone takes a fraction of one of all layers.
        """
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        left = seconds * (self._epochs - epoch - 1)
        return (
            f" | {math.ceil(left / 60)} min left" if left and self._stages.at(step) is self._stages.stages[-1] else ""
        )

    def _to_tensorboard(self, epoch: int, train: dict[str, float], val: dict[str, float], row: dict[str, Any]) -> None:
        speed = {name: row[name] for name in ("learning_rate", "images_per_s", "step_s", "input_s", "collective_s")}
        for board, numbers in (("train", train | speed), ("val", val)):
            with self._boards[board].as_default(step=epoch + 1):
                for name, number in numbers.items():
                    tf.summary.scalar(name, number)
            self._boards[board].flush()


def training_metrics(probabilities: np.ndarray, losses: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of the predictions made while training: augmented pictures, dropout on, weights of the moment.

    Passes that overflowed (mixed_float16 while the loss scale is being found) are left out.

    Args:
        probabilities: float32 [N, C].
        losses: float32 [N].
        labels: int [N], of the pictures before any mixing.

    Raises:
        TrainingFailed: nothing is finite.
    """
    finite = np.isfinite(losses) & np.isfinite(probabilities).all(axis=1)
    if not finite.any():
        raise TrainingFailed(f"training diverged: no prediction of the epoch is finite; {REMEDIES}")
    return classification_metrics(probabilities[finite], labels[finite], loss=float(np.mean(losses[finite])))


def _line(row: dict[str, Any]) -> str:
    """The line of an epoch in the log."""
    return (
        f"epoch {row['epoch'] + 1}: "
        f"train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f} | "
        f"val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f} macro-F1 {row['val_macro_f1']:.4f} | "
        f"{row['images_per_s']:.0f} images/s{_split(row)}"
    )


def _split(row: dict[str, Any]) -> str:
    """, where the time of a step went and the memory that was taken at most; nothing where no step was timed."""
    if not row["step_s"]:
        return ""
    named = ("input", "compute", "collective") if row["collective_s"] else ("input", "compute")
    parts = [f"{100 * row[f'{name}_s'] / row['step_s']:.1f}% {name}" for name in named]
    return f", {1000 * row['step_s']:.0f} ms a step: {' + '.join(parts)}; up to {row['memory_gb']:.1f} GB"
