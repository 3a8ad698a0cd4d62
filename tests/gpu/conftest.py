"""What the tests on a GPU share; they skip where TensorFlow sees none.

With BLOODCELL_GPU_REHEARSAL=1 they run on the CPU, to see that they work; what only a GPU can show is then left out.
They use nothing of ../conftest.py: `benchmarks/gpu_check.py` runs them where pytest is there but none of its plug-ins.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# TensorFlow is imported in the functions only: most runs of the test suite leave these tests out.

# Before TensorFlow meets the GPU: the trainings that tests start need memory beside the test's own process.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

REHEARSAL = os.environ.get("BLOODCELL_GPU_REHEARSAL") == "1"
TIMEOUT_S = 300.0


@pytest.fixture(scope="session")
def device() -> str:
    """The GPU's name; the CPU's in a rehearsal."""
    if REHEARSAL:
        return "CPU:0"
    import tensorflow as tf

    from bloodcell_dist import runtime

    runtime.find_devices()
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees no GPU")
    return "GPU:0"


class Copies(NamedTuple):
    """What a profile shows of the GPUs."""

    to_device: int  # bytes that came from the host
    to_host: int  # bytes that went there
    kernels: int  # programs that ran


_DIRECTIONS = {"MemcpyH2D": "to_device", "MemcpyD2H": "to_host"}


@pytest.fixture(scope="session")
def copies_in() -> Callable[[Any], Copies]:
    """copies_in(space): sums over an XSpace, the profiler's protocol buffer."""
    return _copies_in


def _copies_in(space: Any) -> Copies:
    """Events of the GPUs' planes; their names and stats are those of XLA's cupti_collector.cc."""
    sums = {"to_device": 0, "to_host": 0, "kernels": 0}
    for plane in space.planes:
        if not plane.name.startswith("/device:GPU:"):
            continue  # the host's plane lists the calls that started the same copies
        for event in (event for line in plane.lines for event in line.events):
            stats = {plane.stat_metadata[stat.metadata_id].name: stat for stat in event.stats}
            direction = _DIRECTIONS.get(plane.event_metadata[event.metadata_id].name)
            if direction and "memcpy_details" in stats:
                sums[direction] += _size(plane, stats["memcpy_details"])
            sums["kernels"] += "kernel_details" in stats
    return Copies(**sums)


def _size(plane: Any, stat: Any) -> int:
    """Of a text such as `kind_src:pageable kind_dst:device size:256 dest:0 async:1`, kept beside the plane or not."""
    text = stat.str_value or plane.stat_metadata[stat.ref_value].name
    found = re.search(r"\bsize:(\d+)", text)
    assert found, f"a copy of unknown size: {text!r}"
    return int(found[1])


@pytest.fixture(scope="session")
def traced(device: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], Any]], Copies]:
    """traced(work): what the GPU does while work() runs, which has to wait for it."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    def trace(work: Callable[[], Any]) -> Copies:
        folder = tmp_path_factory.mktemp("profile")
        with tf.profiler.experimental.Profile(str(folder)):
            work()
        [file] = folder.rglob("*.xplane.pb")
        return _copies_in(xplane_pb2.XSpace.FromString(file.read_bytes()))

    return trace


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """command(run folder, "key=value", …): the training command."""

    def make(run: Path, *settings: str) -> list[str]:
        overrides = [part for setting in settings for part in ("--set", setting)]
        return [sys.executable, "-m", "bloodcell_dist.train", "--run-dir", str(run), *overrides]

    return make


@pytest.fixture(scope="session")
def train(command: Callable[..., list[str]]) -> Callable[..., str]:
    """train(run folder, "key=value", …): a training to its end; what it printed."""

    def run(folder: Path, *settings: str) -> str:
        done = subprocess.run(command(folder, *settings), capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
