"""How much faster two Horovod ranks of one thread each train than one.

    .venv/bin/python benchmarks/two_ranks.py

Starts itself as two ranks under horovodrun, each with one thread on a core of its own. In every round rank 0 first
makes some updates alone, while rank 1 waits; then each makes as many on its own at the same time, which shows what the
machine has to give; then both make as many together. Each rank has the same number of pictures in every turn. So all
figures meet whatever else the machine does. An update is the package's own step: gather, augmentation (policy
`light`), forward, backward, all-reduce, clipping, AdamW; MobileNetV3Small, 96x96 pixels, float32.

Measured on 2 cores (AMD EPYC, virtual), Horovod 0.28.1 with Gloo, 25 November 2026, `--rounds 12`, in images/s: one
rank 438; two, each on its own, 863; two together 841. So two ranks train 1.92 times as fast as one (round by round 1.85
to 2.16), and the exchange costs 3%. Four runs without the turn "each on its own", in which rank 1 comes from a long
wait, gave 1.71, 1.75, 2.00 and 2.00, some beside other work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if "HOROVOD_LOCAL_RANK" in os.environ:  # before TensorFlow counts the cores for its threads
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["HOROVOD_LOCAL_RANK"])]})

from bloodcell_dist import runtime  # before Keras: it imports TensorFlow quietly

# isort: split

import numpy as np

from bloodcell_dist.augment.policies import build_policy
from bloodcell_dist.launch import launched, this_process
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.training.losses import make_loss
from bloodcell_dist.training.optimizers import make_rule
from bloodcell_dist.training.placement import Batch, DeviceCells
from bloodcell_dist.training.replication import Replication, SingleDevice, replicate
from bloodcell_dist.training.step import Compile, Step, gradient_function
from bloodcell_dist.training.update import Update

THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
CLASSES, SIZE, CELLS = 8, 96, 512


def cells(replication: Replication) -> DeviceCells:
    """Drawn noise."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (CELLS, SIZE, SIZE, 3), dtype=np.uint8)
    return DeviceCells(images, generator.integers(0, CLASSES, CELLS), replication)


def build(backbone: str, replication: Replication, batch: int) -> Step:
    """The step of a network of its own, on drawn noise."""
    model = build_classifier(backbone, image_size=SIZE, num_classes=CLASSES, dropout=0.2, seed=0)
    gradients = gradient_function(
        model,
        build_policy("light", image_size=SIZE, num_classes=CLASSES),
        make_loss("cross_entropy", label_smoothing=0.05),
        num_classes=CLASSES,
        global_batch_size=batch * replication.num_replicas,
        seed=0,
        compile=Compile(model=False, parts=True, kernels=True),
    )
    variables = model.trainable_variables
    update = Update(
        [variable.value for variable in variables],
        [variable.path for variable in variables],
        make_rule("adamw"),
        weight_decay=0.05,
        clip_norm=1.0,
        ema_decay=0.998,
    )
    return Step(
        gradients,
        update,
        replication,
        cells=cells(replication),
        per_replica_batch_size=batch,
    )


def seconds(step: Step, replication: Replication, batch: int, updates: int, first: int) -> float:
    """Of so many updates, from `first` on."""
    indices = np.random.default_rng(first).integers(0, CELLS, (updates, batch * replication.num_replicas))
    started = time.perf_counter()
    for number, part in enumerate(replication.feed(indices.astype(np.int32), [1] * updates)):
        outputs = step(Batch(*part), first + number, [1e-3])
    replication.local(outputs[-1].losses)  # waits
    return time.perf_counter() - started


def work(options: argparse.Namespace) -> None:
    """What each rank does."""
    with launched(this_process()) as joined:
        runtime.configure(precision="float32", deterministic=True, eager=False)
        both = replicate(joined, "horovod")
        alone = SingleDevice()
        steps = {replication.name: build(options.backbone, replication, options.batch) for replication in (alone, both)}
        found: dict[str, list[float]] = {"single": [], "apart": [], "horovod": []}
        for number in range(-1, options.rounds):  # the first one compiles
            first = (number + 1) * options.updates
            both.barrier()
            if both.is_chief:
                found["single"].append(seconds(steps["single"], alone, options.batch, options.updates, first))
            both.barrier()
            mine = seconds(steps["single"], alone, options.batch, options.updates, first)
            (both_took,) = both.gather([np.array([mine])])
            found["apart"].append(float(both_took.max()))
            found["horovod"].append(seconds(steps["horovod"], both, options.batch, options.updates, first))
        if both.is_chief:
            tell({name: times[1:] for name, times in found.items()}, options, both.num_replicas)


def tell(found: dict[str, list[float]], options: argparse.Namespace, ranks: int) -> None:
    """Print images/s and their ratio, round by round."""
    pictures = options.batch * options.updates
    work_of = {"single": pictures, "apart": pictures * ranks, "horovod": pictures * ranks}
    rates = {name: [work_of[name] / time_s for time_s in times] for name, times in found.items()}
    ratios = [together / single for together, single in zip(rates["horovod"], rates["single"], strict=True)]
    labels = {"single": "one rank", "apart": f"{ranks} ranks, each on its own", "horovod": f"{ranks} ranks together"}
    for name, label in labels.items():
        print(f"{label}: {statistics.median(rates[name]):.0f} images/s (median of {len(rates[name])} rounds)")
    ratio = statistics.median(rates["horovod"]) / statistics.median(rates["single"])
    share = statistics.median(rates["horovod"]) / statistics.median(rates["apart"])
    print(f"together, of what the ranks do each on its own: {share:.2f}")
    spread = f"round by round {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
    print(f"ratio of the medians: {ratio:.2f} ({spread})", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilenetv3small")
    parser.add_argument("--batch", type=int, default=64, help="pictures per rank and update")
    parser.add_argument("--updates", type=int, default=6, help="per turn")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    if "HOROVOD_RANK" in os.environ:
        work(options)
        return 0
    launcher = Path(sys.executable).with_name("horovodrun")
    environment = os.environ | dict.fromkeys(THREADS, "1") | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [str(launcher), "-np", "2", sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments)]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
