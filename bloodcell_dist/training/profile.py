"""A trace of a few steps for TensorBoard's profiler: which operation ran when, on the host and on the devices."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

log = logging.getLogger(__name__)

LEFT_OUT = 2  # calls after the one that compiled: caches fill, memory is asked for
TRACED = 10  # calls; a trace of a large network takes some MB for each


class Profile:
    """Traces some calls of the step once in the life of a process.

    Args:
        folder: TensorBoard's; None traces nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._calls = 0
        self._active = False

    @contextlib.contextmanager
    def around(self, step: int, compiles: bool) -> Iterator[None]:
        """Surrounds each call of the step; `step` is the number of its first update."""
        if self._folder is None:
            yield
            return
        self._calls = 0 if compiles and not self._active else self._calls + 1
        if self._calls == LEFT_OUT + 1 and not self._active:
            tf.profiler.experimental.start(str(self._folder))
            self._active = True
        with tf.profiler.experimental.Trace("train", step_num=step, _r=1) if self._active else contextlib.nullcontext():
            yield
        if self._active and self._calls >= LEFT_OUT + TRACED:
            self.end()

    def end(self) -> None:
        """Write what was traced so far, if anything."""
        if self._active:
            tf.profiler.experimental.stop()
            log.info("traced %d calls of the step: tensorboard --logdir %s", self._calls - LEFT_OUT, self._folder)
            self._folder, self._active = None, False
