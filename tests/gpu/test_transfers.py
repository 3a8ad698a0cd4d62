"""Pictures stay on the GPU: what crosses at a step is indices and a few numbers, by the profiler's account."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.config import load_settings
from bloodcell_dist.resolve import Machine
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.session import Session
from bloodcell_dist.start import load_data, settle
from bloodcell_dist.training.replication import SingleDevice

pytestmark = pytest.mark.gpu

BATCH, STEPS = 64, 5
SETTINGS = (
    "data.source=synthetic",
    "data.synthetic_examples=300",  # 270 to train with, 7 MB; a batch's pictures are 1.8 MB, augmented ones 7 MB
    "data.clean=false",
    "data.group_near_duplicates=false",
    "data.cache_dir=off",
    "augment.policy=seed",
    "model.backbone=cnn",
    "model.weights=none",
    f"train.global_batch_size={BATCH}",
    "train.epochs=4",
    "train.precision=float32",
    "train.xla=on",
)
LIMIT = 16_384 + 4 * BATCH  # bytes per step

Record = Callable[[str, object], None]


class Profiled(NamedTuple):
    """A session that has made steps, and what crossed per step."""

    session: Session
    to_device: float
    to_host: float
    kernels: float


@pytest.fixture(scope="module")
def profiled(device: str, traced: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    check_that_copies_are_seen(device, traced)
    session = session_in(tmp_path_factory.mktemp("run"))
    train(session, 0)  # compiles
    found = traced(lambda: train(session, STEPS))
    return Profiled(session, *(value / STEPS for value in found))


def check_that_copies_are_seen(device: str, traced: Callable[..., Any]) -> None:
    """A profiler that sees nothing would find that nothing crosses."""
    numbers = np.ones(1_000_000, np.float32)

    def there_and_back() -> None:
        with tf.device(device):
            (tf.constant(numbers) + 1.0).numpy()

    there_and_back()
    found = traced(there_and_back)
    if device.startswith("GPU") and min(found.to_device, found.to_host) < numbers.nbytes:
        pytest.skip(f"the profiler does not show the GPU's copies, but {found}: is CUPTI there, and allowed?")


def session_in(folder: Path) -> Session:
    settings, _ = settle(load_settings(None, SETTINGS), Machine(num_gpus=0))
    session = Session(settings, RunDir(folder), load_data(settings), SingleDevice())
    session.resume(None)
    return session


def train(session: Session, first: int) -> None:
    """Some updates as the loop makes them; waits for the last."""
    batches = np.stack([session.arithmetic.plan.batch_at(step) for step in range(first, first + STEPS)])
    for step, batch in enumerate(session.assembly.cells.feed(batches, [1] * STEPS), start=first):
        outputs = session.assembly.step(batch, step, [1e-3])
    session.replication.local(outputs[-1].gradient_norm)


def test_pictures_and_labels_lie_on_the_gpu(device: str, profiled: Profiled) -> None:
    cells = profiled.session.assembly.cells
    for tensor in (cells.images, cells.labels):
        assert tensor.device.endswith(f"device:{device}")
    assert cells.images.dtype == tf.uint8


def test_only_indices_go_to_the_gpu(device: str, profiled: Profiled, record_property: Record) -> None:
    assert profiled.to_device < LIMIT
    if device.startswith("GPU"):
        record_property("bytes to the GPU per step", profiled.to_device)
        record_property("kernels per step", profiled.kernels)
        assert profiled.to_device > 0 and profiled.kernels > 0  # so the steps were seen


def test_augmented_pictures_stay_there(device: str, profiled: Profiled, record_property: Record) -> None:
    assert profiled.to_host < LIMIT
    if device.startswith("GPU"):
        record_property("bytes from the GPU per step", profiled.to_host)
