"""Stop anywhere, run the same command again, and end with the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bloodcell_dist.history import OF_THE_MACHINE, read_metrics
from bloodcell_dist.rundir import RunDir

SETTINGS = (
    "data.source=synthetic",
    "data.synthetic_examples=240",
    "data.image_size=48",
    "augment.policy=seed",
    "model.backbone=cnn",
    "model.dropout=0.3",
    "optimizer.ema_decay=0.9",
    "optimizer.accumulate_steps=2",
    "train.global_batch_size=48",
    "train.epochs=3",
    "checkpoint.every_steps=1",
    "evaluate.bootstrap=0",
)


def command(folder: Path, cache: Path) -> list[str]:
    """The training command; 216 training cells make 4 steps per epoch."""
    overrides = [part for setting in (*SETTINGS, f"data.cache_dir={cache}") for part in ("--set", setting)]
    return [sys.executable, "-m", "bloodcell_dist.train", "--run-dir", str(folder), *overrides]


def finish(folder: Path, cache: Path) -> str:
    """Run to the end; returns what was printed."""
    done = subprocess.run(command(folder, cache), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stop_after(folder: Path, cache: Path, step: int, number: signal.Signals) -> int:
    """Start, send a signal as soon as the checkpoint of `step` is there; returns the exit status."""
    child = subprocess.Popen(command(folder, cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not any(path.name >= f"step-{step:08d}" for path in (folder / "checkpoints").glob("step-*")):
        assert child.poll() is None, f"ended with {child.returncode} before step {step}"
        assert time.monotonic() < deadline, f"no checkpoint of step {step} in time"
        time.sleep(0.005)
    child.send_signal(number)
    return child.wait(timeout=120)


def final_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Everything in the last checkpoint."""
    newest = max((folder / "checkpoints").glob("step-*"))
    assert newest.name == "step-00000012"
    with np.load(newest / "arrays.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def without_speed(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, less what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in read_metrics(RunDir(folder).metrics)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run folder, cache folder) of a run that nobody stopped."""
    base = tmp_path_factory.mktemp("undisturbed")
    finish(base / "run", base / "cache")
    return base / "run", base / "cache"


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    whole, cache = undisturbed
    run = tmp_path / "run"
    # In mid-epoch, at an epoch's last step (its checkpoint follows the evaluation), and after the border.
    for step in (2, 4, 9):
        assert stop_after(run, cache, step, signal.SIGKILL) == -signal.SIGKILL
        assert not RunDir(run).result.exists()
    log = finish(run, cache)
    assert "continues after step" in log

    expected, received = final_arrays(whole), final_arrays(run)
    assert expected.keys() == received.keys()
    different = [name for name in expected if not np.array_equal(expected[name], received[name])]
    assert different == []
    assert without_speed(run) == without_speed(whole)


DIES_IN = """
import os, sys
from importlib import import_module
module, name, call = import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3])
original, calls = getattr(module, name), []


def dies(*args, **kwargs):
    calls.append(name)
    if len(calls) == call:
        os.kill(os.getpid(), 9)
    return original(*args, **kwargs)


setattr(module, name, dies)
from bloodcell_dist.train import main
sys.exit(main(sys.argv[4:]))
"""


@pytest.mark.slow
def test_kills_at_the_worst_moments_change_nothing(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """After the epoch is recorded but before its checkpoint, in mid-write, after training, in mid-report."""
    whole, cache = undisturbed
    run = tmp_path / "run"
    moments = [
        ("bloodcell_dist.data.cleaning_report", "atomic_write_json", 1),
        ("bloodcell_dist.evaluation.epochs", "_line", 1),
        ("bloodcell_dist.training.checkpoint", "atomic_write_json", 2),
        ("bloodcell_dist.conclusion", "export_model", 1),
        ("bloodcell_dist.conclusion", "atomic_write_json", 1),
    ]
    for module, name, call in moments:
        arguments = [*command(run, cache)[3:], "--set", "checkpoint.keep=1", "--set", "checkpoint.every_steps=3"]
        done = subprocess.run([sys.executable, "-c", DIES_IN, module, name, str(call), *arguments], timeout=300)
        assert done.returncode == -signal.SIGKILL, (module, name)
    finish(run, cache)
    expected, received = final_arrays(whole), final_arrays(run)
    assert [name for name in expected if not np.array_equal(expected[name], received[name])] == []
    assert without_speed(run) == without_speed(whole)
    assert (run / "cleaning.png").exists()


@pytest.mark.slow
def test_signal_saves_and_exits_75(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    whole, cache = undisturbed
    run = tmp_path / "run"
    assert stop_after(run, cache, 5, signal.SIGUSR1) == 75
    status = json.loads(RunDir(run).status.read_text())
    assert status["exit_status"] == 75 and "stopped by SIGUSR1 after step" in status["message"]
    finish(run, cache)
    expected, received = final_arrays(whole), final_arrays(run)
    assert all(np.array_equal(expected[name], received[name]) for name in expected)
    assert os.access(RunDir(run).report, os.R_OK)
