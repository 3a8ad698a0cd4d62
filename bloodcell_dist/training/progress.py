"""What a person sees while it trains: a bar with ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

import tqdm

log = logging.getLogger(__name__)

LINE_EVERY_S = 15.0


class EpochProgress:
    """Shows the steps of one epoch.

    Args:
        epoch: from 1.
        epochs: of the run.
        done: steps of this epoch made before (a resumed run).
        steps: of this epoch.
        examples_per_step: for the pace.
        shown: whether this worker shows it.
        clock: seconds; passed in so that tests need not wait.
    """

    def __init__(
        self,
        epoch: int,
        epochs: int,
        done: int,
        steps: int,
        *,
        examples_per_step: int,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = f"epoch {epoch}/{epochs}"
        self._done, self._steps, self._first = done, steps, done
        self._shown, self._clock, self._examples = shown, clock, examples_per_step
        self._started = self._spoke = clock()
        self._bar = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=steps, initial=done, desc=self._label, unit="step", leave=False)

    def advance(self, steps: int, describe: Callable[[], str]) -> None:
        """So many steps more; `describe` gives the latest figures and is called only when they are shown."""
        self._done += steps
        if self._bar is not None:
            if self._bar.update(steps):  # true when it redraws
                self._bar.set_postfix_str(describe(), refresh=False)
        elif self._shown and self._clock() - self._spoke >= LINE_EVERY_S:
            self._spoke = self._clock()
            pace = (self._clock() - self._started) / max(1, self._done - self._first)
            seconds = round(pace * (self._steps - self._done))
            log.info(
                "%s step %d/%d, %s, %.0f images/s, %d:%02d left",
                *(self._label, self._done, self._steps, describe(), self._examples / max(pace, 1e-9)),
                *divmod(seconds, 60),
            )

    def leave_out(self, steps: int) -> None:
        """Begin the pace after the next `steps`, which were traced and compiled first."""
        self._started = self._spoke = self._clock()
        self._first = self._done + steps

    def __enter__(self) -> EpochProgress:
        """The progress itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()
