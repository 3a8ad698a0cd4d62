"""A run goes on at another number of ranks as if nothing had happened; at the same one to the bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell_dist.history import OF_THE_MACHINE, read_metrics
from bloodcell_dist.rundir import RunDir

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

SETTINGS = (
    "data.source=synthetic",
    "data.synthetic_examples=240",
    "data.image_size=48",
    "augment.policy=seed",
    "model.backbone=cnn",
    "model.dropout=0.3",
    "optimizer.name=sgd",
    "optimizer.learning_rate=0.002",
    "optimizer.ema_decay=0.9",
    "train.global_batch_size=48",
    "train.epochs=3",
    "train.steps_per_call=2",
    "checkpoint.keep=20",
    "evaluate.bootstrap=0",
)
TOTAL = 12  # 216 cells make 4 steps per epoch


class Trainer:
    """Starts the one command under different worlds."""

    def __init__(self, launch: Callable[..., Any], world: Any, cache: Path) -> None:
        self._launch, self._world, self._cache = launch, world, cache

    def _options(self, run: Path, world: Any, more: Sequence[str]) -> list[str]:
        settings = (*SETTINGS, f"data.cache_dir={self._cache}", *more, *world.settings)
        return ["--run-dir", str(run), *(part for setting in settings for part in ("--set", setting))]

    def start(self, run: Path, kind: str, replicas: int, *more: str) -> Any:
        world = self._world(kind, replicas)
        return self._launch(world, ["-m", "bloodcell_dist.train", *self._options(run, world, more)])

    def finish(self, run: Path, kind: str, replicas: int, *more: str) -> str:
        launched = self.start(run, kind, replicas, *more)
        assert set(launched.wait()) == {0}, launched.text
        text: str = launched.text
        return text


@pytest.fixture
def trainer(launch: Callable[..., Any], world: Any, tmp_path: Path) -> Trainer:
    return Trainer(launch, world, tmp_path / "cache")


def arrays(run: Path, step: int = TOTAL) -> dict[str, np.ndarray]:
    with np.load(run / "checkpoints" / f"step-{step:08d}" / "arrays.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def assert_same_bits(one: Path, other: Path) -> None:
    found, expected = arrays(one), arrays(other)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []
    rows = [
        [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in read_metrics(RunDir(run).metrics)]
        for run in (one, other)
    ]
    assert rows[0] == rows[1]


def back_to(run: Path, step: int) -> None:
    """Make a finished run one that was stopped after `step`, as a kill then would have left it."""
    for folder in (run / "checkpoints").glob("step-*"):
        if folder.name > f"step-{step:08d}":
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    (run / "result.json").unlink()


def test_a_run_changes_its_number_of_replicas(trainer: Trainer, tmp_path: Path) -> None:
    """Two Horovod ranks, then one process, then two devices of one; without batch statistics, which would differ."""
    every = ("checkpoint.every_steps=1", "finetune.batchnorm=freeze", f"model.weights={first_weights(tmp_path)}")
    trainer.finish(tmp_path / "whole", "single", 1, *every)
    moving = tmp_path / "moving"
    trainer.finish(moving, "horovod", 2, *every)
    back_to(moving, 3)
    text = trainer.finish(moving, "single", 1, *every)
    assert "continues after step 3 of 12" in text
    assert "distribute.strategy is now single, it was horovod" in text
    back_to(moving, 7)
    text = trainer.finish(moving, "mirrored", 2, *every)
    assert "continues after step 7 of 12" in text

    found, expected = arrays(moving), arrays(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for kind in ("weights/", "optimizer/average", "best/"):
        ours, theirs = (
            np.concatenate([part[name].ravel() for name in sorted(expected) if name.startswith(kind)]).astype(
                np.float64
            )
            for part in (found, expected)
        )
        distance = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        print(f"{kind} differ by {distance:.1e} after horovod x2, single, mirrored x2")
        assert distance < 1e-5
    for ours, theirs in zip(*(read_metrics(RunDir(run).metrics) for run in (moving, tmp_path / "whole")), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["train_accuracy"] == theirs["train_accuracy"]


def first_weights(folder: Path) -> Path:
    from bloodcell_dist.models.backbones import build_classifier

    path = folder / "first.weights.h5"
    build_classifier("cnn", image_size=48, num_classes=8, dropout=0.3, seed=5).save_weights(path)
    return path


@pytest.mark.parametrize("kind", ["multiworker", pytest.param("mirrored", marks=pytest.mark.thorough)])
def test_the_same_replicas_go_on_to_the_bit(kind: str, trainer: Trainer, tmp_path: Path) -> None:
    """With batch statistics: each replica sees the same slices again."""
    whole, run = tmp_path / "whole", tmp_path / "again"
    trainer.finish(whole, kind, 2, "checkpoint.every_steps=1")
    shutil.copytree(whole, run)
    back_to(run, 5)
    assert "continues after step 5 of 12" in trainer.finish(run, kind, 2, "checkpoint.every_steps=1")
    assert_same_bits(run, whole)


@pytest.mark.parametrize("size", [3, pytest.param(4, marks=pytest.mark.thorough)])
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(
    size: int, trainer: Trainer, ranks: Any, tmp_path: Path
) -> None:
    """Under Horovod, and then again undisturbed: the same to the bit.

    Horovod fuses tensors as they happen to come; one flat vector has one order of summation (horovod#1548). It takes
    three ranks to tell, as a sum of two is the same either way.
    """
    run = tmp_path / "stopped"
    launched = trainer.start(run, "horovod", size, "checkpoint.every_steps=2")
    deadline = time.monotonic() + 200
    while not any((run / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline and launched.processes[0].poll() is None, launched.text
        time.sleep(0.01)
    os.kill(ranks(run)[size - 1], signal.SIGUSR1)
    assert set(launched.wait()) == {1}, launched.text  # horovodrun makes 1 of any
    assert "which is saved; run the same command again to go on" in launched.text
    status = json.loads(RunDir(run).status.read_text())
    assert status["exit_status"] == 75
    assert re.match("stopped by a signal to another rank after step", status["message"])

    assert "continues after step" in trainer.finish(run, "horovod", size, "checkpoint.every_steps=2")
    trainer.finish(tmp_path / "second", "horovod", size)
    assert_same_bits(tmp_path / "second", run)
