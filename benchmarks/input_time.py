"""How long a step waits for its input, in both placements, and whether the size of the set matters.

    .venv/bin/python benchmarks/input_time.py

MobileNetV3Small, 96x96 pixels, batches of 64, policy `seed`, float32; noise in a memory-mapped file, once, four and
sixteen times as many pictures. The package's own loop; the share of input is what its log tells.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from trainer import CLASSES, Trainer, interleaved, quiet, ratios, set_up, show

PLACEMENTS = ("device", "host")


def mapped_noise(folder: Path, count: int, size: int = 96) -> np.ndarray:
    """A memory map of random pictures, written in parts."""
    images = np.lib.format.open_memmap(folder / f"{count}.npy", "w+", np.uint8, (count, size, size, 3))
    generator = np.random.default_rng(0)
    for start in range(0, count, 1024):
        part = images[start : start + 1024]
        part[:] = generator.integers(0, 256, part.shape, dtype=np.uint8)
    images.flush()
    return np.load(folder / f"{count}.npy", mmap_mode="r")


def measure(
    folder: Path, *, backbone: str, policy: str, counts: Sequence[int], batch: int, steps: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """images/s and the share of input, by placement and number of pictures, round by round."""
    shares: dict[str, list[float]] = {}

    def turn(name: str, trainer: Trainer) -> Callable[[], float]:
        def rate() -> float:
            found = trainer.train(steps).per_step()
            shares.setdefault(name, []).append(found["input_s"] / found["step_s"])
            return found["images_per_s"]

        return rate

    turns = {}
    for count in counts:
        images = mapped_noise(folder, count)
        for placement in PLACEMENTS:
            settings = (f"model.backbone={backbone}", f"augment.policy={policy}", f"train.global_batch_size={batch}")
            trainer = Trainer(images, np.arange(count) % CLASSES, (*settings, f"data.placement={placement}"))
            turns[f"{placement}, {count} pictures"] = turn(f"{placement}, {count} pictures", trainer)
    with quiet():
        rates = interleaved(turns, rounds)
    return rates, {name: found[1:] for name, found in shares.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilenetv3small")
    parser.add_argument("--policy", default="seed")
    parser.add_argument("--count", type=int, default=3072, help="pictures of the smallest set")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="updates per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args(arguments)
    set_up(given.threads)
    counts = [given.count, 4 * given.count, 16 * given.count]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        rates, shares = measure(
            Path(folder),
            backbone=given.backbone,
            policy=given.policy,
            counts=counts,
            batch=given.batch,
            steps=given.steps,
            rounds=given.rounds,
        )
    show(rates)
    show({name: [100 * share for share in found] for name, found in shares.items()}, "% of the step waits for input")
    for placement in PLACEMENTS:
        small, *larger = (rates[f"{placement}, {count} pictures"] for count in counts)
        for times, found in zip((4, 16), larger, strict=True):
            print(f"{placement}: {times} times the pictures / once: {ratios(found, small)}")


if __name__ == "__main__":
    main()
