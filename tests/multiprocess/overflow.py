"""Steps whose gradients overflow on the last replica only: `python overflow.py FOLDER STRATEGY DEVICES COMPRESSION`."""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from bloodcell_dist import commandline, logs
from bloodcell_dist.launch import ending_together, launched, this_process
from bloodcell_dist.training.optimizers import make_rule
from bloodcell_dist.training.placement import DeviceCells
from bloodcell_dist.training.replication import replicate
from bloodcell_dist.training.step import Step
from bloodcell_dist.training.update import Update

folder, strategy, devices, compression = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
SIZE = 4  # examples per replica


def main() -> None:
    process = this_process()
    with launched(process) as joined, ending_together(joined):
        replication = replicate(joined, strategy, devices=devices, gradient_compression=compression)
        with replication.scope():
            weights = [tf.Variable(tf.ones([3])), tf.Variable(tf.fill([2, 2], 2.0))]
            update = Update(
                weights,
                ["a", "b"],
                make_rule("sgd", 0.0),
                weight_decay=0.0,
                clip_norm=1.0,
                ema_decay=None,
                loss_scaling=True,
            )

        def gradients(images, labels, indices, first, step, loss_scale):  # type: ignore[no-untyped-def]
            """Replica r finds a gradient of r + 1 everywhere; at step 1 the last one overflows."""
            replica = tf.cast(first // SIZE, tf.float32)
            last = first // SIZE == replication.num_replicas - 1
            factor = tf.where(last & (step == 1), np.inf, 1.0) * loss_scale * (replica + 1.0) / 1024
            losses = tf.cast(tf.gather(labels, indices), tf.float32)
            return [tf.ones([3]) * factor, tf.ones([2, 2]) * factor], losses, tf.ones([SIZE, 1])

        cells = DeviceCells(np.zeros((64, 2, 2, 3), np.uint8), np.arange(64), replication)
        step = Step(
            tf.function(gradients, jit_compile=True, autograph=False),
            update,
            replication,
            cells=cells,
            per_replica_batch_size=SIZE,
        )
        batches = np.arange(3 * SIZE * replication.num_replicas, dtype=np.int32).reshape(3, -1)
        trace: dict[str, list[np.ndarray]] = {"a": [], "b": [], "scale": [], "finite": [], "norm": [], "losses": []}
        for number, batch in enumerate(cells.feed(batches, [1, 1, 1])):
            (output,) = step(batch, number, [0.5])
            for name, variable in (("a", weights[0]), ("b", weights[1]), ("scale", update.loss_scale)):
                copies = variable.values if hasattr(variable, "values") else [variable]
                trace[name].append(np.stack([np.asarray(copy) for copy in copies]))
            trace["finite"].append(np.stack(replication.local(output.finite)))
            trace["norm"].append(np.stack(replication.local(output.gradient_norm)))
            (losses,) = replication.gather([np.concatenate(replication.local(output.losses))])
            trace["losses"].append(losses)
        np.savez(folder / f"{process.rank}.npz", **{name: np.stack(values) for name, values in trace.items()})


with logs.console():
    sys.exit(commandline.run_command(main, True))
