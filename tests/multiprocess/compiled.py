"""One compiled step of every policy in both placements: `python compiled.py FOLDER STRATEGY DEVICES`."""

import sys
from pathlib import Path

import keras
import numpy as np

from bloodcell_dist import commandline, logs, runtime
from bloodcell_dist.augment.policies import POLICY_NAMES, build_policy
from bloodcell_dist.launch import ending_together, launched, this_process
from bloodcell_dist.models.dropout import StatelessDropout
from bloodcell_dist.training.losses import make_loss
from bloodcell_dist.training.naming import align_names
from bloodcell_dist.training.optimizers import make_rule
from bloodcell_dist.training.placement import DeviceCells, HostCells
from bloodcell_dist.training.replication import Replication, replicate
from bloodcell_dist.training.step import Compile, Step, gradient_function
from bloodcell_dist.training.update import Update

folder, strategy, devices = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
SIZE, BATCH = 32, 16
DRAWN = np.random.default_rng(0)
IMAGES, LABELS = DRAWN.integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8), np.arange(40) % 8
BATCHES = DRAWN.permutation(40)[: 2 * BATCH].astype(np.int32).reshape(2, BATCH)


def network() -> keras.Model:
    """What a network of the package has besides convolutions, which would compile for long: dropout by position."""
    keras.utils.set_random_seed(0)
    pictures = keras.Input((SIZE, SIZE, 3))
    features = keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 255)(pictures))
    features = StatelessDropout(0.3, stream=0)(keras.layers.Flatten()(features))
    return keras.Model(pictures, keras.layers.Dense(8, dtype="float32")(features))


def losses_of_steps(replication: Replication, policy: str, kind: type) -> np.ndarray:
    """Of two updates in one call, by a gradient function that is one program: [2, BATCH]."""
    with replication.scope():
        model = network()
        weights = [variable.value for variable in model.trainable_variables]
        names = [variable.path for variable in model.trainable_variables]
        update = Update(weights, names, make_rule("sgd"), weight_decay=0.0, clip_norm=1.0, ema_decay=None)
    gradients = gradient_function(
        model,
        build_policy(policy, image_size=SIZE, num_classes=8),
        make_loss("cross_entropy", label_smoothing=0.1),
        num_classes=8,
        global_batch_size=BATCH,
        seed=5,
        compile=Compile(model=True, parts=True),
    )
    assert gradients._jit_compile is True  # type: ignore[attr-defined]
    cells = kind(IMAGES, LABELS, replication)
    # One device makes two passes, so that all worlds share the programs of 8. That the size of a pass changes nothing
    # is for test_same_training and the unit tests of policies and dropout to show.
    step = Step(gradients, update, replication, cells=cells, per_replica_batch_size=BATCH // 2)
    (batch,) = cells.feed(BATCHES, [2])
    align_names()  # what another test has compiled, XLA need not compile again
    outputs = step(batch, 3, [0.1, 0.1])
    mine = np.stack([np.concatenate(replication.local(output.losses)) for output in outputs])
    return replication.gather([mine], axis=1)[0]


def main() -> None:
    process = this_process()
    with launched(process) as joined, ending_together(joined):
        replication = replicate(joined, strategy, devices=devices)
        runtime.configure(precision="float32", deterministic=True, eager=False)
        found = {
            f"{policy} {kind.__name__}": losses_of_steps(replication, policy, kind)
            for policy in POLICY_NAMES
            for kind in (DeviceCells, HostCells)
        }
        np.savez(folder / f"{process.rank}.npz", **found)


with logs.console():
    sys.exit(commandline.run_command(main, True))
