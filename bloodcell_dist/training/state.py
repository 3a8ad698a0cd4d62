"""The state of a run between two updates: what a checkpoint holds, and the weights that evaluation uses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.errors import UserError
from bloodcell_dist.models.finetune import weight_names
from bloodcell_dist.training.record import EpochRecord
from bloodcell_dist.training.update import Update


class TrainingState:
    """Weights, optimizer state and the running epoch's record, as named arrays.

    Only the chief reads and writes them; `variables` are what the other workers need of it.

    Args:
        model: the network being trained.
        update: the optimizer's state.
        record: of the running epoch.
    """

    def __init__(self, model: keras.Model, update: Update, record: EpochRecord) -> None:
        self._model = model
        self._update = update
        self._record = record
        self._best: dict[str, np.ndarray] = {}

    def _named(self) -> list[tuple[str, Any]]:
        return list(zip(weight_names(self._model), self._model.weights, strict=True))

    def variables(self) -> list[tf.Variable]:
        """Weights and optimizer state, in an order that is the same on all workers."""
        return [*self.weights(), *self._update.variables()]

    def weights(self) -> list[tf.Variable]:
        """Of the network."""
        return [variable.value for _, variable in self._named()]

    def arrays(self) -> dict[str, Any]:
        """Everything as it is now, by name: NumPy arrays, or what becomes one and is left alone by later updates.

        Nothing is copied: TensorFlow shares a variable's buffer with those who have read it, and gives the next update
        another one as long as somebody holds it.

        The best epoch's weights are among it: in a file of their own they could be newer than the checkpoint that a
        run continues from.
        """
        weights = {f"weights/{name}": tf.convert_to_tensor(variable.value) for name, variable in self._named()}
        optimizer = {f"optimizer/{name}": array for name, array in self._update.arrays().items()}
        best = {f"best/{name}": value for name, value in self._best.items()}
        return weights | optimizer | best | self._record.arrays()

    def keep_best(self) -> None:
        """Remember the weights that the network has now as the best."""
        self._best = {name: variable.numpy() for name, variable in self._named()}

    def take_best(self) -> None:
        """Give the network the best weights."""
        for name, variable in self._named():
            variable.assign(self._best[name])

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up the arrays of a checkpoint. Raises UserError if they are another network's or optimizer's."""
        weights = {f"weights/{name}": variable for name, variable in self._named()}
        optimizer = {f"optimizer/{name}": tuple(array.shape) for name, array in self._update.arrays().items()}
        shapes = {name: tuple(variable.shape) for name, variable in weights.items()} | optimizer
        saved = {name for name in arrays if not name.startswith(("epoch/", "best/"))}
        if saved != set(shapes):
            odd = sorted(saved ^ set(shapes))
            raise UserError(
                f"the checkpoint holds another network or optimizer: {len(odd)} names differ, such as {odd[0]}; "
                "use another --run-dir"
            )
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise UserError(
                    f"the checkpoint holds another network: {name} has shape {arrays[name].shape}, expected "
                    f"{shape}; use another --run-dir"
                )
        for name, variable in weights.items():
            variable.assign(arrays[name])
        self._update.restore({name.removeprefix("optimizer/"): arrays[name] for name in optimizer})
        self._best = {name.removeprefix("best/"): arrays[name] for name in arrays if name.startswith("best/")}
        self._record.restore(arrays)

    @contextlib.contextmanager
    def evaluation_weights(self, recalibrate: Callable[[], None]) -> Iterator[None]:
        """Inside, the network has averaged weights (where they are kept) and fresh BatchNorm statistics.

        Afterwards it has its training weights and statistics back to the bit, so evaluating never changes the
        training.
        """
        before = self._model.get_weights()
        try:
            for number, average in self._update.averages().items():
                self._update.weights[number].assign(average)
            recalibrate()
            yield
        finally:
            self._model.set_weights(before)
