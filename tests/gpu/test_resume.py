"""A training on a GPU that is killed and goes on, against one that nobody stopped."""

from __future__ import annotations

import math
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bloodcell_dist.rundir import RunDir

pytestmark = pytest.mark.gpu

STEPS, KILLED_AFTER = 8, 2
SETTINGS = (
    "data.source=synthetic",
    "data.synthetic_examples=240",  # 216 to train with: 4 steps per epoch
    "data.image_size=48",
    "augment.policy=light",
    "model.weights=none",
    "optimizer.name=sgd",  # Lion and AdamW would make a full step of the last bit of a gradient
    "optimizer.learning_rate=0.05",
    "train.global_batch_size=48",
    "train.epochs=2",
    "train.xla=on",
    "checkpoint.every_steps=1",
    "evaluate.bootstrap=0",
)

Record = Callable[[str, object], None]


def kill_after_checkpoint(command: list[str], run: RunDir) -> None:
    """SIGKILL as soon as the checkpoint is there."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not any(path.name >= f"step-{KILLED_AFTER:08d}" for path in run.checkpoints.glob("step-*")):
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            pytest.fail(f"no checkpoint of step {KILLED_AFTER}: {child.communicate()[0]}")
        time.sleep(0.005)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL and not run.result.exists()


def final_arrays(run: RunDir) -> dict[str, np.ndarray]:
    with np.load(run.checkpoints / f"step-{STEPS:08d}" / "arrays.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def distance(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Of the weights of all layers together, relative to their size."""
    names = [name for name in expected if name.startswith("weights/")]
    differences = [np.linalg.norm(found[name].astype(np.float64) - expected[name]) for name in names]
    return math.hypot(*differences) / math.hypot(*(np.linalg.norm(expected[name]) for name in names))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("backbone", "limit"), [("cnn", 1e-3), ("mobilenetv3small", math.inf)])
def test_a_killed_training_ends_like_an_undisturbed_one(
    backbone: str,
    limit: float,
    command: Callable[..., list[str]],
    train: Callable[..., str],
    tmp_path: Path,
    record_property: Record,
) -> None:
    """Whether to the bit is recorded, not asked for: that is promised on CPUs, and open on GPUs."""
    settings = (*SETTINGS, f"model.backbone={backbone}", f"data.cache_dir={tmp_path / 'cells'}")
    whole, stopped = RunDir(tmp_path / "whole"), RunDir(tmp_path / "stopped")
    train(whole.path, *settings)
    kill_after_checkpoint(command(stopped.path, *settings), stopped)
    assert "continues after step" in train(stopped.path, *settings)

    expected, found = final_arrays(whole), final_arrays(stopped)
    assert found.keys() == expected.keys()
    different = [name for name in expected if not np.array_equal(found[name], expected[name])]
    apart = distance(found, expected)
    record_property("arrays that differ", f"{len(different)} of {len(expected)}")
    record_property("relative distance of the weights", f"{apart:.1e}")
    print(f"{backbone}: {len(different)} of {len(expected)} arrays differ, the weights by {apart:.1e}", different[:5])
    assert np.isfinite(apart) and apart <= limit
