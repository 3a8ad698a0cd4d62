"""How much longer a step takes that begins a checkpoint, which a thread then writes while the training goes on.

    .venv/bin/python benchmarks/checkpoint_stall.py

ConvNeXtBase, 96x96 pixels, batches of 16, float32, Lion, weights averaged: a checkpoint holds the weights, Lion's
momentum and the averages, 1.05 GB. A step's time counts from its batch to the next one's, so that what saving costs is
in it. Turns without a checkpoint alternate with turns whose third step begins one. Three kinds of steps: plain ones,
the one that begins a checkpoint, and those during which it is written.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np
from trainer import Trainer, noise, quiet, set_up, show

from bloodcell_dist.training.placement import Batch

SAVED_AFTER = 3
"""Steps of a turn."""


class Clock:
    """When the batches of each turn were asked for, and when a checkpoint was begun and finished."""

    def __init__(self, trainer: Trainer) -> None:
        self.turns: list[list[float]] = []
        self.begun: list[float] = []
        self.written: list[float] = []
        cells, saves = trainer.session.assembly.cells, trainer.session._saves
        feed, write = cells.feed, saves._checkpoints.save

        def timed_feed(batches: np.ndarray, lengths: Sequence[int]) -> Iterator[Batch]:
            self.turns.append([])
            for batch in feed(batches, lengths):
                self.turns[-1].append(time.perf_counter())
                yield batch
            self.turns[-1].append(time.perf_counter())

        def timed_write(*arguments: object) -> object:
            path = write(*arguments)  # type: ignore[arg-type]
            self.written.append(time.perf_counter())
            return path

        cells.feed = timed_feed  # type: ignore[method-assign]
        saves._checkpoints.save = timed_write  # type: ignore[method-assign,assignment]

    def steps(self) -> dict[str, list[float]]:
        """Seconds of each kind of step, without each turn's first, before which the loop makes ready to compile."""
        found: dict[str, list[float]] = {"plain": [], "begins a checkpoint": [], "while it is written": []}
        writing = list(zip(self.begun, self.written, strict=True))
        for start, end in (step for asked in self.turns for step in list(itertools.pairwise(asked))[1:]):
            if any(start <= begun < end for begun in self.begun):
                kind = "begins a checkpoint"
            elif any(begun < end and start < written for begun, written in writing):
                kind = "while it is written"
            else:
                kind = "plain"
            found[kind].append(end - start)
        return found


def measure(backbone: str, *, batch: int, steps: int, rounds: int, size: int = 96) -> dict[str, list[float]]:
    """Seconds of the steps of each kind."""
    images, labels = noise(batch * steps, size)
    settings = (f"model.backbone={backbone}", "augment.policy=none", f"train.global_batch_size={batch}")
    trainer = Trainer(images, labels, settings)

    def save(step: int) -> None:
        if step % steps == SAVED_AFTER:
            clock.begun.append(time.perf_counter())
            trainer.session._save(step)

    with quiet():
        trainer.train(steps)  # compiles
        clock = Clock(trainer)
        for _ in range(rounds):
            trainer.train(steps)
            trainer.train(steps, save, every_steps=1)
            trainer.session._saves.settle()
    return clock.steps()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="convnextbase")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12, help="per turn")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args(arguments)
    set_up(given.threads)
    found = measure(given.backbone, batch=given.batch, steps=given.steps, rounds=given.rounds)
    show(
        {f"{kind} ({len(times)} steps)": [1000 * each for each in times] for kind, times in found.items() if times},
        "ms",
    )
    plain = statistics.median(found["plain"])
    for kind in ("begins a checkpoint", "while it is written"):
        if found[kind]:
            times = [each / plain for each in found[kind]]
            print(f"{kind} / plain: {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
