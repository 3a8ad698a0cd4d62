"""How much faster a whole training step is than in the script that most people would write (`usual_script.py`).

    .venv/bin/python benchmarks/end_to_end.py --cells training_set.npz

MobileNetV3Small, 96x96 pixels, batches of 64, float32, policy `seed`, Lion, weights averaged. Ours is the package's own
training loop, the other KerasCV in tf.data with parallel calls and `model.fit`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from trainer import Trainer, cells, interleaved, quiet, ratios, set_up, show
from usual_script import usual_training


def measure(
    backbone: str, path: str | None, *, policy: str, batch: int, steps: int, rounds: int
) -> dict[str, list[float]]:
    """images/s of both, round by round."""
    images, labels = cells(path)
    trainer = Trainer(
        images,
        labels,
        (f"model.backbone={backbone}", f"train.global_batch_size={batch}", f"augment.policy={policy}"),
    )
    usual = usual_training(images, labels, backbone=backbone, batch=batch, policy=policy)
    turns = {
        "ours": lambda: trainer.train(steps).per_step()["images_per_s"],
        "usual": lambda: batch * steps / usual(steps),
    }
    with quiet():
        return interleaved(turns, rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilenetv3small")
    parser.add_argument("--cells", metavar="NPZ", help="real cells instead of noise")
    parser.add_argument("--policy", default="seed")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="updates per turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args(arguments)
    set_up(given.threads, deterministic=False)
    rates = measure(
        given.backbone,
        given.cells,
        policy=given.policy,
        batch=given.batch,
        steps=given.steps,
        rounds=given.rounds,
    )
    show(rates)
    print(f"ours / usual: {ratios(rates['ours'], rates['usual'])}")


if __name__ == "__main__":
    main()
