"""The processes of `gpu_check.py` that look at the machine and measure the package. They import TensorFlow."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpu_common import WARM_UP, as_rates, calls_per_round, first_line, take_turns, tell
from gpu_report import Case

from bloodcell_dist import runtime

# isort: split

import numpy as np
import tensorflow as tf

from bloodcell_dist.config import load_settings
from bloodcell_dist.launch import ending_together, launched, this_process
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.session import Session
from bloodcell_dist.settings import Settings
from bloodcell_dist.start import load_data, repeatable, settle
from bloodcell_dist.training.replication import Replication, replicate


def probe() -> dict[str, Any]:
    """What TensorFlow sees."""
    runtime.find_devices()
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    names = [
        f"{found.get('device_name')} (compute capability {'.'.join(map(str, found.get('compute_capability', '?')))})"
        for found in details
    ]
    build, environment = tf.sysconfig.get_build_info(), runtime.describe_environment()
    return {
        "num_gpus": len(gpus),
        "devices": names or [cpu_name()],
        "cuda": build.get("cuda_version"),
        "cudnn": build.get("cudnn_version"),
        "horovod": horovod_built(),
        **{name: environment[name] for name in ("versions", "python", "platform", "cpus", "git")},
    }


def cpu_name() -> str:
    """As the kernel calls it."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return "CPU"


def horovod_built() -> dict[str, bool] | str:
    """What Horovod was built with, or why it is not there."""
    try:
        import horovod.tensorflow as hvd
    except Exception as error:  # a Horovod that does not fit TensorFlow fails in several ways
        return f"Horovod for TensorFlow is not installed ({first_line(error)})"
    return {"nccl": bool(hvd.nccl_built()), "mpi": bool(hvd.mpi_built()), "gloo": bool(hvd.gloo_built())}


def work(plan: dict[str, Any]) -> None:
    """Measure cases, by turns where only the policy differs. Stops after one that failed: its memory may be lost.

    Args:
        plan: cases, of one strategy; cells, the cache's folder; size, pixels; steps, per round; settings, further
            ones; until, the time after which nothing begins, or None.
    """
    cases = [Case(**case) for case in plan["cases"]]
    until = math.inf if plan["until"] is None else plan["until"]
    with launched(this_process()) as joined, ending_together(joined):
        machine = runtime.look_at_machine(joined.workers.process)
        replication = replicate(joined, cases[0].strategy, devices=cases[0].replicas)
        for _, group in itertools.groupby(cases, lambda case: replace(case, policy="")):
            if joined.workers.any(time.time() >= until):
                return
            begun: list[Case] = []
            try:
                found = measure(list(group), begun, plan, machine, replication)
            except Exception as error:
                if joined.workers.world_size > 1:
                    raise  # the other ranks wait in a collective
                beside = f" (beside policy {begun[0].policy})" if len(begun) > 1 else ""
                tell(case=asdict(begun[-1]), found={"reason": first_line(error) + beside})
                return
            if joined.workers.is_chief:
                for case, figures in zip(begun, found, strict=True):
                    tell(case=asdict(case), found=figures)
            gc.collect()  # networks are cycles; the next ones are to find the memory free


def measure(
    group: Sequence[Case], begun: list[Case], plan: dict[str, Any], machine: Any, replication: Replication
) -> list[dict[str, Any]]:
    """Build, compile and warm up one after the other, then rounds by turns. `begun` gets each case as it begins."""
    ready = []
    for case in group:
        begun.append(case)
        tell(case=asdict(case))
        ready.append(prepare(case, plan, machine, replication))
    for one in ready[:-1]:
        one.updates.seconds_of(1)  # TensorFlow prepares functions anew once others have come
    seconds = take_turns([one.round for one in ready])
    return [
        one.found
        | as_rates(found, updates=one.calls * one.updates.per_call, examples=case.batch * case.replicas)
        | {"beside": [other.policy for other in group if other != case], "loss": one.updates.last_loss()}
        for case, one, found in zip(group, ready, seconds, strict=True)
    ]


@dataclass(frozen=True)
class Ready:
    """A training that is compiled and warm.

    Attributes:
        calls: of the step, in a round.
        found: figures so far.
    """

    updates: Updates
    calls: int
    found: dict[str, Any]

    def round(self) -> float:
        """Make one; seconds."""
        return self.updates.seconds_of(self.calls)


def prepare(case: Case, plan: dict[str, Any], machine: Any, replication: Replication) -> Ready:
    """Build, compile, warm up."""
    settings = settings_for(case, plan, machine)
    data = load_data(settings)
    deterministic = repeatable(settings, machine.num_gpus)
    runtime.configure(precision=settings.train.precision, deterministic=deterministic, eager=False)
    held = reset_memory()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        session = Session(settings, RunDir(Path(folder)), data, replication)
        session.resume(None)
    built = time.perf_counter() - begun
    updates = Updates(session)
    first = updates.seconds_of(1)
    warm = updates.seconds_of(WARM_UP) / WARM_UP
    calls = replication.share(calls_per_round(plan["steps"], warm))
    peak = peak_memory()
    found = {
        "first_update_s": round(first, 2),
        "build_s": round(built, 2),
        "peak_memory_mib": None if peak is None or held is None else round((peak - held) / 2**20, 1),
        "weights": sum(math.prod(variable.shape) for variable in session.model.trainable_variables),
        "precision": settings.train.precision,
        "xla": settings.train.xla,
        "deterministic": deterministic,
    }
    return Ready(updates, calls, found)


def settings_for(case: Case, plan: dict[str, Any], machine: Any) -> Settings:
    """A training's settings, what is left to the machine resolved."""
    global_batch = case.batch * case.replicas
    overrides = [
        "data.source=synthetic",
        f"data.synthetic_examples={max(600, math.ceil(global_batch * 1.2))}",  # a tenth is for validation
        f"data.image_size={plan['size']}",
        "data.clean=false",
        "data.group_near_duplicates=false",
        f"data.cache_dir={plan['cells']}",
        f"augment.policy={case.policy}",
        f"model.backbone={case.backbone}",
        "model.weights=none",
        f"train.global_batch_size={global_batch}",
        f"train.xla={case.xla}",
        "train.epochs=1000",
        f"distribute.strategy={case.strategy}",
        *plan["settings"],
    ]
    return settle(load_settings(None, overrides), machine)[0]


class Updates:
    """Makes updates as the training loop does."""

    def __init__(self, session: Session) -> None:
        self._session, self._done = session, 0
        self.per_call: int = session.settings.train.steps_per_call

    def seconds_of(self, calls: int) -> float:
        """Of so many calls of the step, until the device is done. The feed is opened before and closed after."""
        session, count = self._session, self.per_call
        steps = range(self._done, self._done + calls * count)
        batches = np.stack([session.arithmetic.plan.batch_at(step) for step in steps])
        feed = iter(session.assembly.cells.feed(batches, [count] * calls))
        feed = itertools.chain([next(feed)], feed)
        begun = time.perf_counter()
        for _, indices in zip(range(calls), feed, strict=False):  # does not ask the feed for its end
            rates = [session.arithmetic.stages.learning_rate(self._done + number) for number in range(count)]
            outputs = session.assembly.step(indices, self._done, rates)
            session.record.add(outputs)  # which copies predictions to the host every 20 updates
            self._done += count
        session.replication.local(outputs[-1].gradient_norm)
        return time.perf_counter() - begun

    def last_loss(self) -> float:
        """Of the examples of the last update."""
        return round(self._session.record.last_loss(), 4)


def reset_memory() -> float | None:
    """Forget the peak so far; bytes that are held now. None without a GPU."""
    held = [tf.config.experimental.get_memory_info(name)["current"] for name in gpu_names()]
    for name in gpu_names():
        tf.config.experimental.reset_memory_stats(name)
    return max(held) if held else None


def peak_memory() -> float | None:
    """Bytes, of the GPU that needed most, as TensorFlow's allocator counts."""
    peaks = [tf.config.experimental.get_memory_info(name)["peak"] for name in gpu_names()]
    return max(peaks) if peaks else None


def gpu_names() -> list[str]:
    """Of those that this process uses."""
    return [f"GPU:{number}" for number, _ in enumerate(tf.config.list_logical_devices("GPU"))]


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if "probe" in asked:
        tell(machine=probe())
    else:
        work(asked)
