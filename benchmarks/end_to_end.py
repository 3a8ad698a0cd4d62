"""How much faster a whole training step is than in the script that most people would write (`usual_script.py`).

    .venv/bin/python benchmarks/end_to_end.py --cells training_set.npz
    .venv/bin/python benchmarks/end_to_end.py --cells training_set.npz --passes 2
    .venv/bin/python benchmarks/end_to_end.py --cells training_set.npz --ranks 2

MobileNetV3Small, 96x96 pixels, 64 pictures per step, float32, policy `seed`, Lion, weights averaged. Ours is the
package's own training loop, the other KerasCV in tf.data with parallel calls and `model.fit`, in one process with a
thread for every core. With `--passes 2` ours computes the gradients of twice 32 pictures at the same time
(`optimizer.accumulate_steps=2`), each operation on one thread; with `--ranks 2` it is two Horovod ranks of one thread
each. In both, BatchNorm goes by the 32, and the usual script runs in a process of its own, while ours stands still.

Measured on 2 cores (Intel Xeon with AVX-512, virtual), TensorFlow 2.18.1, 30 November 2026, turns of 10 to 20 steps,
real cells, ours / usual. Goal: 3.

    --passes 2, 7 turns                   508 / 147 images/s   3.46 (3.22 to 3.84)
    again, 4 turns                        616 / 167 images/s   3.70 (3.21 to 3.87)
    again, 3 turns                        546 / 158 images/s   3.46 (3.35 to 3.84)
    again, 5 turns                        526 / 159 images/s   3.30 (2.98 to 3.85)
    --ranks 2, 7 turns                    464 / 158 images/s   2.93 (2.63 to 3.53)
    --ranks 2, HOROVOD_CYCLE_TIME=10      500 / 155 images/s   3.23 (2.85 to 3.48)
    again                                 482 / 156 images/s   3.09 (2.71 to 3.34)
    --ranks 2, which did not stand still  472 / 148 images/s   3.19 (2.97 to 3.92)
    again                                 541 / 158 images/s   3.42 (3.10 to 3.65)
    again                                 495 / 144 images/s   3.43 (3.02 to 4.26)
    again, 4 turns                        489 / 137 images/s   3.57 (3.20 to 3.86)
    one process, 7 turns                  484 / 156 images/s   3.09 (2.90 to 3.72)
    again                                 517 / 166 images/s   3.11 (2.64 to 3.45)
    again                                 429 / 164 images/s   2.62 (2.53 to 3.33)
    again                                 446 / 152 images/s   2.93 (2.68 to 3.49)
    again, 6 turns                        558 / 174 images/s   3.22 (2.86 to 3.43)
    again, 6 turns                        514 / 170 images/s   3.03 (2.76 to 3.51)
    again, 5 turns                        474 / 154 images/s   3.08 (3.03 to 3.39)
    the usual script in another process   545 / 170 images/s   3.22 (2.73 to 3.43)
    again                                 517 / 174 images/s   2.97 (2.52 to 3.13)
    again                                 470 / 160 images/s   2.93 (2.36 to 3.32)
    before folding (`models/folded.py`)   414 / 126 images/s   3.29 (2.98 to 3.76)
    likewise, 7 turns                     381 / 112 images/s   3.40 (1.70 to 3.44)
    likewise, 9 turns                     395 / 123 images/s   3.22 (2.69 to 3.63)
    likewise, 4 turns                     441 / 148 images/s   2.99 (2.77 to 3.33)
    likewise, 5 turns                     448 / 151 images/s   2.97 (2.70 to 3.41)
    before the update took packs          438 / 143 images/s   3.06 (2.67 to 3.71)
    likewise, 9 turns                                          2.85 (2.54 to 3.45)
    before branches kept XLA from fusing  416 / 141 images/s   2.96 (2.54 to 3.33)
    --ranks 2, likewise before            365 / 124 images/s   2.94 (2.36 to 3.59)
    --passes 2, likewise before           399 / 138 images/s   2.90 (2.54 to 3.51)

Waiting ranks take 7% of each core from the usual script, so the figures of those that did not stand still, the older
2.94 too, are too high: Horovod asks a thousand times a second whether somebody has something to sum. While training
too: with HOROVOD_CYCLE_TIME=10 (milliseconds, 1 is Horovod's own) a rank's step took about 100 ms of its core, with 1
about 118.

One process leaves much to be had: with one thread on one core a step without augmentation takes 132 ms, with two
threads 110, and two processes side by side, each on its core, take 147 ms for twice as many pictures. An operation of
less than a millisecond is hardly shorter on two threads, which first have to be woken. What did not help: other numbers
of threads within and between operations, TF_ONEDNN_THREADPOOL_USE_CALLER_THREAD (a tenth slower), large memory pages,
and augmenting the next batch while the network works on this one. Two ranks train EfficientNetB0 (batch 64) at 77 to
118 images/s, one process at 92 to 118, ConvNeXtBase (batch 16) at 4.7 to 5.7 and 7.1 to 8.4.

On another machine (AMD EPYC), 25 November 2026, with the kernels of that day: 737 / 332 images/s, 2.22 (2.17 to 2.37).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if "HOROVOD_LOCAL_RANK" in os.environ:  # before TensorFlow counts the cores for its threads
    os.sched_setaffinity(0, {int(os.environ["HOROVOD_LOCAL_RANK"])})

from bloodcell_dist import runtime  # noqa: F401  before Keras: it imports TensorFlow quietly

# isort: split

from trainer import Trainer, cells, interleaved, quiet, ratios, set_up, show
from usual_script import usual_training

from bloodcell_dist.launch import launched, this_process
from bloodcell_dist.training.replication import Replication, replicate

THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


def our_turn(given: argparse.Namespace, replication: Replication | None = None) -> Callable[[], float]:
    """images/s of some updates of ours."""
    settings = (
        f"model.backbone={given.backbone}",
        f"train.global_batch_size={given.batch}",
        f"augment.policy={given.policy}",
        f"optimizer.accumulate_steps={given.passes}",
    )
    trainer = Trainer(*cells(given.cells), settings, replication)
    return lambda: trainer.train(given.steps).per_step()["images_per_s"]


def usual_turn(given: argparse.Namespace) -> Callable[[], float]:
    """images/s of some updates of the usual script, in this process."""
    asked = {"backbone": given.backbone, "batch": given.batch, "policy": given.policy}
    usual = usual_training(*cells(given.cells), **asked)
    return lambda: given.batch * given.steps / usual(given.steps)


def usual_turn_elsewhere(ranks: Sequence[int] = ()) -> Callable[[], float]:
    """The same, in a process of its own that may use all cores, while the processes of `ranks` are stopped."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HOROVOD_", *THREADS))}
    command = [sys.executable, *sys.argv, "--answer"]
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # which the child inherits
    child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(0, mine)

    def rate() -> float:
        assert child.stdin and child.stdout
        child.stdin.write(f"{' '.join(map(str, ranks))}\n")
        child.stdin.flush()
        return float(child.stdout.readline())

    return rate


def work_as_rank(given: argparse.Namespace) -> None:
    """Rank 0 has the usual script run while the others wait; then all train together."""
    with launched(this_process()) as joined:
        set_up(threads=0)  # one each, by the environment
        both = replicate(joined, "horovod")
        ranks = both.each(os.getpid())
        usual = usual_turn_elsewhere(ranks) if both.is_chief else lambda: 0.0
        ours = our_turn(given, both)

        def usual_alone() -> float:
            found = usual()
            both.barrier()
            return found

        with quiet():
            rates = interleaved({"ours": ours, "usual": usual_alone}, given.rounds)
        if both.is_chief:
            tell(rates)


def tell(rates: dict[str, list[float]]) -> None:
    """Print images/s and their ratio."""
    show(rates)
    print(f"ours / usual: {ratios(rates['ours'], rates['usual'])}", flush=True)


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
    parser.add_argument("--ranks", type=int, default=1, help="of ours, one thread each")
    parser.add_argument("--passes", type=int, default=1, help="of ours per update, at the same time, one thread each")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if "HOROVOD_RANK" in os.environ:
        work_as_rank(given)
    elif given.ranks > 1 and not given.answer:
        launcher = str(Path(sys.executable).with_name("horovodrun"))
        environment = os.environ | dict.fromkeys(THREADS, "1") | {"TF_CPP_MIN_LOG_LEVEL": "2"}
        subprocess.run([launcher, "-np", str(given.ranks), sys.executable, *sys.argv], env=environment, check=True)
    else:
        apart = given.passes > 1 and not given.answer
        set_up(1 if apart else given.threads, deterministic=False)  # which KerasCV's layers refuse
        if given.answer:
            answer(usual_turn(given))
            return
        turns = {"ours": our_turn(given), "usual": usual_turn_elsewhere() if apart else usual_turn(given)}
        with quiet():
            tell(interleaved(turns, given.rounds))


def answer(turn: Callable[[], float]) -> None:
    """A rate for every line that comes in, measured while the processes that it names are stopped.

    Horovod asks a thousand times a second whether somebody has something to sum: waiting ranks take 7% of each core.
    """
    for line in sys.stdin:
        ranks = [int(process) for process in line.split()]
        try:
            for process in ranks:
                os.kill(process, signal.SIGSTOP)
            rate = turn()
        finally:
            for process in ranks:
                os.kill(process, signal.SIGCONT)
        print(rate, flush=True)


if __name__ == "__main__":
    main()
