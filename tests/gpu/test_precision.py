"""Whole trainings in half precision on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bloodcell_dist.history import read_metrics
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.training.update import INITIAL_LOSS_SCALE

pytestmark = pytest.mark.gpu

SETTINGS = (
    "data.source=synthetic",
    "data.synthetic_examples=480",  # 432 to train with: 9 steps per epoch
    "data.image_size=48",
    "data.cache_dir=off",
    "model.backbone=mobilenetv3small",
    "model.weights=none",
    "optimizer.name=adamw",
    "optimizer.learning_rate=1e-3",
    "train.global_batch_size=48",
    "train.epochs=4",
    "evaluate.bootstrap=0",
)

Record = Callable[[str, object], None]


def last_checkpoint(run: RunDir) -> dict[str, np.ndarray]:
    with np.load(max(run.checkpoints.glob("step-*")) / "arrays.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_training_learns(precision: str, train: Callable[..., str], tmp_path: Path, record_property: Record) -> None:
    run = RunDir(tmp_path / "run")
    train(run.path, *SETTINGS, f"train.precision={precision}")
    rows = read_metrics(run.metrics)
    losses = [row["train_loss"] for row in rows]
    skipped = sum(row["skipped_updates"] for row in rows)
    record_property("train_loss by epoch", ", ".join(f"{loss:.3f}" for loss in losses))
    record_property("skipped updates", skipped)
    record_property("images/s of the last epoch", round(rows[-1]["images_per_s"]))
    assert len(losses) == 4 and np.isfinite(losses).all()
    assert losses[-1] < losses[0]

    arrays = last_checkpoint(run)
    for name in arrays:
        assert np.isfinite(arrays[name]).all() or name.startswith("epoch/"), name
    if precision == "mixed_float16":
        assert skipped <= 15  # 2^15, the first scale, halved to 1
        assert arrays["optimizer/loss_scale"] == INITIAL_LOSS_SCALE / 2**skipped  # too short for it to double
    else:
        assert skipped == 0
        assert arrays["optimizer/loss_scale"] == 1
