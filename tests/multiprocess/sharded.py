"""Predicts a set over all replicas, twice: `python sharded.py FOLDER`; each rank writes what it got."""

import sys
from pathlib import Path

import numpy as np

from bloodcell_dist import commandline, logs
from bloodcell_dist.evaluation.metrics import confusion
from bloodcell_dist.evaluation.predict import make_forward, predict
from bloodcell_dist.launch import ending_together, launched, this_process
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.training.replication import replicate

folder = Path(sys.argv[1])
strategy, devices = sys.argv[2], int(sys.argv[3])


def main() -> None:
    process = this_process()
    with launched(process) as joined, ending_together(joined):
        replication = replicate(joined, strategy, devices=devices)
        with replication.scope():
            model = build_classifier("cnn", image_size=32, num_classes=8, dropout=0.0, seed=3)
        images = np.random.default_rng(0).integers(0, 256, (401, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(401) % 8
        counted: list[int] = []
        forward = make_forward(model, logits=True, xla=False)
        each = replication._each

        def counting(function, batches):  # type: ignore[no-untyped-def]
            counted.extend(len(batch) for batch in batches)
            return each(function, batches)

        replication._each = counting  # type: ignore[method-assign]
        for size in (256, 20):
            probabilities = predict(forward, images, size, replication)
            counts = confusion(probabilities, labels, 8)
            file = folder / f"{process.rank}-{size}.npz"
            np.savez(file, probabilities=probabilities, confusion=counts, passes=counted)
            counted.clear()


with logs.console():
    sys.exit(commandline.run_command(main, True))
