"""One and the same training under every way to run, whatever the number of replicas."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell_dist.data.sampling import IndexPlan
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.rundir import RunDir

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

STEPS = 20
RATE = {"sgd": 0.002, "lion": 1e-4}
WORLDS = [
    ("mirrored", 2),
    pytest.param("mirrored", 4, marks=pytest.mark.thorough),
    ("multiworker", 2),
    ("horovod", 2),
    pytest.param("horovod", 3, marks=pytest.mark.thorough),
]


COMPILED = ("augment.policy=light", "train.xla=on", "train.max_steps=4", "train.steps_per_call=2")


def settings(optimizer: str, weights: Path, cache: Path, *more: str) -> list[str]:
    """Twenty steps with augmentation, mixing, dropout and averages; frozen norms, so no batch statistics."""
    chosen = (
        "data.source=synthetic",
        "data.synthetic_examples=240",
        "data.image_size=48",
        f"data.cache_dir={cache}",
        "augment.policy=seed",
        "model.backbone=cnn",
        f"model.weights={weights}",
        "model.dropout=0.3",
        "finetune.batchnorm=freeze",
        f"optimizer.name={optimizer}",
        f"optimizer.learning_rate={RATE[optimizer]}",
        "optimizer.clip_norm=1.0",
        "optimizer.ema_decay=0.9",
        "train.global_batch_size=48",
        "train.epochs=5",
        f"train.max_steps={STEPS}",
        "train.precision=float32",
        "checkpoint.every_steps=1",
        "checkpoint.keep=100",
        "evaluate.bootstrap=0",
        *more,
    )
    return [part for setting in chosen for part in ("--set", setting)]


def train_all(world: Any, launch: Callable[..., Any], folder: Path, inputs: tuple[Path, Path]) -> Path:
    """SGD's run in folder/sgd, Lion's in folder/lion, a short one that is compiled as a whole in folder/xla."""
    runs = [["--run-dir", str(folder / name), *settings(name, *inputs, *world.settings)] for name in RATE]
    runs.append(["--run-dir", str(folder / "xla"), *settings("sgd", *inputs, *COMPILED, *world.settings)])
    script = Path(__file__).with_name("trainings.py")
    launched = launch(world, [script, folder, json.dumps(runs)])
    assert set(launched.wait()) == {0}, launched.text
    return folder


def arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    with np.load(run / "checkpoints" / f"step-{step:08d}" / "arrays.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def flat(run: Path, step: int, kind: str) -> np.ndarray:
    """All weights, or all of Lion's momenta, as one float64 vector."""
    found = arrays(run, step)
    return np.concatenate([found[name].ravel() for name in sorted(found) if name.startswith(kind)]).astype(np.float64)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def global_batches(folder: Path, number: int) -> list[str]:
    """SHA-256 of each global batch, put together from what the workers were fed."""
    files = sorted(folder.glob(f"fed-{number}-*.npy"), key=lambda file: int(file.stem.rpartition("-")[2]))
    joined = np.concatenate([np.load(file) for file in files], axis=1)
    return [hashlib.sha256(np.ascontiguousarray(batch, np.int32).tobytes()).hexdigest() for batch in joined]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(initial weights, cache folder)."""
    folder = tmp_path_factory.mktemp("inputs")
    network = build_classifier("cnn", image_size=48, num_classes=8, dropout=0.3, seed=5)
    network.save_weights(folder / "first.weights.h5")
    return folder / "first.weights.h5", folder / "cache"


@pytest.fixture(scope="module")
def alone(launch_once: Callable[..., Any], inputs: tuple[Path, Path], world: Any) -> Path:
    """The runs of one process on one device."""
    return launch_once(lambda launch, folder: train_all(world("single"), launch, folder, inputs))


@pytest.mark.parametrize(("kind", "replicas"), WORLDS)
def test_every_way_to_run_trains_alike(
    kind: str, replicas: int, launch: Any, world: Any, alone: Path, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = train_all(world(kind, replicas), launch, tmp_path, inputs)

    # The global batches, by hash.
    for number in range(len(RATE)):
        assert global_batches(folder, number) == global_batches(alone, number)
        assert len(set(global_batches(folder, number))) == STEPS

    # SGD is smooth but for the network's own kinks (ReLU, maximum): rounding stays rounding.
    for step in (1, STEPS):
        ours, theirs = (flat(run / "sgd", step, "weights/") for run in (folder, alone))
        print(f"{kind} x{replicas} sgd step {step}: weights differ by {distance(ours, theirs):.1e}")
        assert distance(ours, theirs) < 1e-5
    assert distance(flat(alone / "sgd", 1, "weights/"), theirs) > 1e-3  # there was something to differ in
    ours, theirs = (flat(run / "xla", 4, "weights/") for run in (folder, alone))
    print(f"{kind} x{replicas} sgd, all of it compiled, step 4: weights differ by {distance(ours, theirs):.1e}")
    assert distance(ours, theirs) < 1e-5

    # Lion takes the sign, and its momentum tells the reduced, clipped gradients. A coordinate whose gradient is next to
    # nothing may step the other way by rounding; from then on these are two trainings. Up to there they are one.
    for step in range(1, STEPS + 1):
        gradients = [flat(run / "lion", step, "optimizer/momentum") for run in (folder, alone)]
        apart = flat(folder / "lion", step, "weights/") != flat(alone / "lion", step, "weights/")
        assert distance(*gradients) < 1e-5
        assert apart.mean() < 1e-4
        if apart.any():
            break
    print(f"{kind} x{replicas} lion: gradients differ by {distance(*gradients):.1e} at step {step}, ", end="")
    print(f"where {apart.sum()} of {apart.size} coordinates step differently")


def test_the_batches_are_those_of_the_index_plan(alone: Path) -> None:
    labels = np.load(alone / "fed-0-0.npy")
    assert labels.shape == (STEPS, 48)
    plan_size = json.loads(RunDir(alone / "sgd").data.read_text())["training cells"].split()[0]
    plan = IndexPlan(np.zeros(int(plan_size), int), 48, seed=0)
    np.testing.assert_array_equal(labels, np.stack([plan.batch_at(step) for step in range(STEPS)]))
