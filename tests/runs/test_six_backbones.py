"""Each of the six backbones from the first step to predictions in plain Keras: real cells, one kill on the way."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist import cli
from bloodcell_dist.augment.policies import build_policy
from bloodcell_dist.config import load_settings
from bloodcell_dist.data.rows import Images
from bloodcell_dist.data.sampling import IndexPlan
from bloodcell_dist.history import read_metrics
from bloodcell_dist.models.backbones import BACKBONES, build_classifier
from bloodcell_dist.models.dropout import randomness
from bloodcell_dist.models.finetune import weight_names
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.start import load_data
from bloodcell_dist.training.losses import make_loss

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

KILLED_AFTER, STEPS = 2, 4
SETTINGS = (
    "augment.policy=seed",
    "data.val_fraction=0.3",
    "data.clean=false",
    "data.cache_dir=off",
    "model.weights=none",
    "model.dropout=0.1",
    "optimizer.name=lion",
    "optimizer.weight_decay=0",
    "optimizer.schedule=constant",
    "optimizer.warmup_epochs=0",
    "optimizer.ema_decay=null",
    "train.xla=off",  # which changes only how long it takes: compiling these networks for four steps does not pay
    "train.global_batch_size=16",
    f"train.epochs={STEPS}",
    "checkpoint.keep=1",
    "evaluate.bootstrap=0",
    "evaluate.select_by=loss",
)
LEARNING_RATE = {"efficientnetv2m": 1e-4, "convnextbase": 3e-5}  # others 3e-4: what falls within four steps
PLAIN_KERAS = """
import sys, numpy as np, keras
model = keras.saving.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2])["images"], batch_size=16, verbose=0))
assert "bloodcell_dist" not in sys.modules
"""


@pytest.fixture(scope="module")
def cells(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files with three real training cells and two test cells of each class; two of the three train: one batch."""
    folder = tmp_path_factory.mktemp("cells")
    for name, count in (("training_set", 3), ("test_set", 2)):
        with np.load(real_data / f"{name}.npz") as file:
            rows = np.concatenate([np.flatnonzero(file["labels"].ravel() == label)[:count] for label in range(8)])
            np.savez(folder / f"{name}.npz", images=file["images"][rows], labels=file["labels"][rows])
    return folder / "training_set.npz", folder / "test_set.npz"


def each(*always: str) -> list[object]:
    """All backbones; those that are not always tried, in this precision, are for `make thorough`.

    The CNN is killed in test_resume and loaded in plain Keras in test_whole_run; ConvNeXtBase and the EfficientNets,
    which take minutes, are trained to their results by their batch scripts in tests/slurm.
    """
    return [pytest.param(name, marks=[] if name in always else [pytest.mark.thorough]) for name in BACKBONES]


class TestFloat32:
    """A class for each precision: they run beside each other, and share the six."""

    @pytest.mark.parametrize("backbone", each())
    def test_from_the_first_step_to_plain_keras(self, backbone: str, cells: tuple[Path, Path], tmp_path: Path) -> None:
        from_the_first_step_to_plain_keras(backbone, "float32", cells, tmp_path)


class TestMixedBfloat16:
    @pytest.mark.parametrize("backbone", each("mobilenetv3small"))
    def test_from_the_first_step_to_plain_keras(self, backbone: str, cells: tuple[Path, Path], tmp_path: Path) -> None:
        from_the_first_step_to_plain_keras(backbone, "mixed_bfloat16", cells, tmp_path)


def from_the_first_step_to_plain_keras(backbone: str, precision: str, cells: tuple[Path, Path], tmp_path: Path) -> None:
    training, test = cells
    run = RunDir(tmp_path / "run")
    settings = (
        *(*SETTINGS, f"data.path={training}", f"data.test_path={test}", f"train.precision={precision}"),
        *(f"model.backbone={backbone}", f"optimizer.learning_rate={LEARNING_RATE.get(backbone, 3e-4)}"),
    )
    command = [sys.executable, "-m", "bloodcell_dist.train", "--run-dir", str(run.path)]
    command += [part for setting in settings for part in ("--set", setting)]

    kill_after_checkpoint(command, run)
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"continues after step {KILLED_AFTER} of {STEPS}" in done.stdout

    losses = [row["train_loss"] for row in read_metrics(run.metrics)]
    assert len(losses) == STEPS and np.isfinite(losses).all()
    before, after = losses_of_first_step(run, precision)
    assert before == pytest.approx(losses[0], rel=1e-4 if precision == "float32" else 2e-2)
    assert after < before

    evaluated_as_while_training(run, test, tmp_path / "evaluation")
    arguments = [str(run.model), str(test), str(tmp_path / "plain.npy")]
    subprocess.run([sys.executable, "-c", PLAIN_KERAS, *arguments], check=True, timeout=300, cwd=tmp_path)
    np.testing.assert_allclose(
        probabilities(tmp_path / "evaluation" / "predictions.csv"), np.load(tmp_path / "plain.npy"), atol=1e-6
    )


def losses_of_first_step(run: RunDir, precision: str) -> tuple[float, float]:
    """The loss of the first step's batch, with its augmentation and dropout, by the first and by the last weights.

    The losses of different steps cannot be compared: policy `seed` makes some batches much harder than others.
    """
    settings = load_settings(run.config)
    train = load_data(settings).train
    keras.mixed_precision.set_dtype_policy(precision)
    try:
        model = build_classifier(
            settings.model.backbone,
            image_size=96,
            num_classes=8,
            dropout=settings.model.dropout,
            seed=settings.train.seed,
        )
        before = loss_of_first_step(model, train.images, train.labels)
        with np.load(run.checkpoints / f"step-{STEPS:08d}" / "arrays.npz", allow_pickle=False) as arrays:
            for name, variable in zip(weight_names(model), model.weights, strict=True):
                variable.assign(arrays[f"weights/{name}"])
        return before, loss_of_first_step(model, train.images, train.labels)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")


def loss_of_first_step(model: keras.Model, images: Images, labels: np.ndarray) -> float:
    rows = IndexPlan(labels, 16, seed=0).batch_at(0)
    positions, step = tf.range(16), tf.constant(0)
    policy = build_policy("seed", image_size=96, num_classes=8)
    pictures, targets = policy(tf.constant(images[rows]), tf.one_hot(labels[rows], 8), 0, step, positions)
    with randomness(0, step, positions):
        logits = model(pictures, training=True)
    return float(np.mean(make_loss("cross_entropy", label_smoothing=0.05)(targets, logits)))


def kill_after_checkpoint(command: list[str], run: RunDir) -> None:
    """Train until the checkpoint to be killed after is there, then SIGKILL."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not (run.checkpoints / f"step-{KILLED_AFTER:08d}").exists():
        assert child.poll() is None, child.stderr and child.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()


def evaluated_as_while_training(run: RunDir, test: Path, out: Path) -> None:
    """The exported model does on the test cells what the network in training did at the end."""
    assert cli.main(["evaluate", str(run.path), "--data", str(test), "--out", str(out)]) == 0
    result, metrics = json.loads(run.result.read_text()), json.loads((out / "metrics.json").read_text())
    assert metrics["loss"] == pytest.approx(result["test_loss"], rel=1e-3)
    assert metrics["confusion"] == result["confusion"]["test"]


def probabilities(path: Path) -> np.ndarray:
    with open(path, newline="") as file:
        return np.array([[float(row[key]) for key in row if key.startswith("p_")] for row in csv.DictReader(file)])
