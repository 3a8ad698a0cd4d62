"""Cells on the device and on the host: the same batches, the same training to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.cluster.environment import ALONE
from bloodcell_dist.config import load_settings
from bloodcell_dist.data.rows import take_rows
from bloodcell_dist.resolve import Machine
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.session import Session
from bloodcell_dist.start import load_data, settle
from bloodcell_dist.training.placement import Cells, DeviceCells, HostCells, fits_device, place
from bloodcell_dist.training.replication import SingleDevice

GENERATOR = np.random.default_rng(0)
ALL = GENERATOR.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
ROWS = GENERATOR.permutation(40)[:30]
IMAGES, LABELS = take_rows(ALL, ROWS), GENERATOR.integers(0, 8, 30)
BATCHES = GENERATOR.integers(0, 30, (5, 4)).astype(np.int32)

SETTINGS = (
    *("data.source=synthetic", "data.synthetic_examples=240", "data.image_size=32", "data.cache_dir=off"),
    *("augment.policy=seed", "model.backbone=cnn", "train.global_batch_size=16", "train.epochs=1"),
    *("optimizer.accumulate_steps=2", "train.steps_per_call=2"),
)


def test_the_host_gives_the_pictures_and_labels_of_the_indices() -> None:
    cells = HostCells(IMAGES, LABELS, SingleDevice())
    fed = list(cells.feed(BATCHES, [2, 2, 1]))
    assert [batch.indices.shape.as_list() for batch in fed] == [[2, 4], [2, 4], [1, 4]]
    for batch in fed:
        rows = batch.indices.numpy()
        assert batch.pictures is not None and batch.labels is not None
        np.testing.assert_array_equal(batch.pictures.numpy(), ALL[ROWS][rows], strict=True)
        np.testing.assert_array_equal(batch.labels.numpy(), LABELS[rows].astype(np.int64), strict=True)
    np.testing.assert_array_equal(np.concatenate([batch.indices for batch in fed]), BATCHES)


def test_to_the_device_only_indices_travel() -> None:
    cells = DeviceCells(IMAGES, LABELS, SingleDevice())
    assert all(batch.pictures is None and batch.labels is None for batch in cells.feed(BATCHES, [5]))
    np.testing.assert_array_equal(cells.images.numpy(), ALL[ROWS], strict=True)


@pytest.fixture
def trained(tmp_path: Path) -> Callable[[str], tuple[Session, list[Any]]]:
    def train(placement: str) -> tuple[Session, list[Any]]:
        settings, _ = settle(load_settings(None, [*SETTINGS, f"data.placement={placement}"]), Machine(num_gpus=0))
        (tmp_path / placement).mkdir()
        session = Session(settings, RunDir(tmp_path / placement), load_data(settings), SingleDevice())
        session.resume(None)
        batches = session.arithmetic.plan.epoch_batches(0)[:4]
        fed = session.assembly.cells.feed(batches, [2, 2])
        outputs = [session.assembly.step(batch, 2 * call, [1e-3, 1e-3]) for call, batch in enumerate(fed)]
        return session, [np.asarray(output.losses) for call in outputs for output in call]

    return train


@pytest.mark.slow
def test_both_placements_train_the_same_to_the_bit(trained: Callable[[str], tuple[Session, list[Any]]]) -> None:
    (one, losses), (other, other_losses) = trained("device"), trained("host")
    assert isinstance(one.assembly.cells, DeviceCells) and isinstance(other.assembly.cells, HostCells)
    np.testing.assert_array_equal(losses, other_losses)
    for weight, its_other in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, its_other)


GB = 10**9


@pytest.mark.parametrize(
    ("needed", "free", "fits"),
    [(GB, 4 * GB, True), (GB + 1, 4 * GB, False), (GB, None, True), (3 * GB, None, False), (0, 0, True)],
)
def test_a_quarter_of_the_free_memory_may_be_taken(needed: int, free: int | None, fits: bool) -> None:
    assert fits_device(needed, free) is fits


NEEDED = 30 * 16 * 16 * 3


@pytest.mark.parametrize(
    ("asked", "ranks", "free", "kind"),
    [
        ("auto", 1, 4 * NEEDED, DeviceCells),
        ("auto", 1, 4 * NEEDED - 1, HostCells),
        ("auto", 4, 16 * NEEDED - 1, HostCells),  # every rank of the node would have a copy
        ("auto", 4, 16 * NEEDED, DeviceCells),
        ("host", 1, 1 << 40, HostCells),
        ("device", 1, 0, DeviceCells),
    ],
)
def test_auto_goes_by_the_memory_that_is_free(
    asked: str, ranks: int, free: int, kind: type[Cells], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("bloodcell_dist.training.placement.memory.available_bytes", lambda: free)
    caplog.set_level("INFO")
    process = replace(ALONE, world_size=ranks, local_size=ranks)
    assert isinstance(place(asked, IMAGES, LABELS, SingleDevice(process)), kind)
    assert [f"data.placement = {'host' if kind is HostCells else 'device'}: " in text for text in caplog.messages] == (
        [True] if asked == "auto" else []
    )


def test_one_worker_without_room_takes_all_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(SingleDevice):
        def any(self, flag: bool) -> bool:
            return True

    monkeypatch.setattr("bloodcell_dist.training.placement.memory.available_bytes", lambda: 1 << 40)
    assert isinstance(place("auto", IMAGES, LABELS, Other()), HostCells)
    assert tf.config.list_logical_devices("GPU") == []
