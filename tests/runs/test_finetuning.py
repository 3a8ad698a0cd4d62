"""A run in stages: what is frozen stays to the bit, and a kill in any stage changes nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from bloodcell_dist.models.finetune import Depth, Part, weight_names
from bloodcell_dist.rundir import RunDir

pytestmark = pytest.mark.slow

STAGES = (
    "[{share: 0.25, train: head}, {share: 0.35, train: 'last:0.4', rate: 0.5}, {share: 0.4, train: all, rate: 0.2}]"
)
SETTINGS = (
    "data.source=synthetic",
    "data.synthetic_examples=240",
    "data.image_size=32",
    "augment.policy=seed",
    "model.backbone=mobilenetv3small",
    "model.drop_path=0.2",
    "optimizer.name=adamw",
    "optimizer.learning_rate=1e-3",
    "optimizer.ema_decay=0.9",
    "train.xla=off",
    "train.global_batch_size=48",
    "train.epochs=3",
    f"finetune.stages={STAGES}",
    "finetune.layer_decay=0.9",
    "checkpoint.every_steps=1",
    "checkpoint.keep=20",
    "evaluate.bootstrap=0",
)
HEAD_ENDS, LAST_ENDS, ALL_ENDS = 3, 7, 12  # 4 steps per epoch, so two stages change within an epoch


def command(folder: Path, *more: str) -> list[str]:
    overrides = [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]
    return [sys.executable, "-m", "bloodcell_dist.train", "--run-dir", str(folder), *overrides]


def arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    with np.load(folder / "checkpoints" / f"step-{step:08d}" / "arrays.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(run folder, what it printed) of a run that nobody stopped; it begins from the weights of another network."""
    base = tmp_path_factory.mktemp("staged")
    stock = keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(64, 64, 3))
    generator = np.random.default_rng(0)
    for variable in stock.weights:
        noise = generator.normal(size=tuple(variable.shape)) * 0.02
        variable.assign(np.abs(noise) + 0.5 if variable.name == "moving_variance" else np.asarray(variable) + noise)
    stock.save_weights(base / "pretrained.weights.h5")
    done = subprocess.run(
        command(base / "run", f"data.cache_dir={base / 'cache'}", f"model.weights={base / 'pretrained.weights.h5'}"),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return base / "run", done.stdout


def frozen_names(train: str) -> set[str]:
    """Names of the weights that do not move in a stage, BatchNorm statistics included."""
    from bloodcell_dist.models.backbones import build_classifier

    model = build_classifier("mobilenetv3small", image_size=32, num_classes=8, dropout=0.2, seed=0, drop_path=0.2)
    Depth(model).freeze(Part(train))
    live = {id(v) for layer in model.layers if layer.trainable for v in layer.weights}
    return {name for name, variable in zip(weight_names(model), model.weights, strict=True) if id(variable) not in live}


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray], beginning: str) -> set[str]:
    names = {name.removeprefix(beginning) for name in before if name.startswith(beginning)}
    return {name for name in names if not np.array_equal(before[beginning + name], after[beginning + name])}


def test_what_is_frozen_stays_to_the_bit(staged: tuple[Path, str]) -> None:
    folder, printed = staged
    assert "layers loaded" in printed and "the file has no head" in printed
    for stage, first, last in (("head", 1, HEAD_ENDS), ("last:0.4", HEAD_ENDS, LAST_ENDS)):
        before, after = arrays(folder, first), arrays(folder, last)
        frozen = frozen_names(stage)
        assert len(frozen) > 80
        assert moved(before, after, "weights/") & frozen == set(), stage
        assert moved(before, after, "optimizer/average/") & frozen == set(), stage
        assert moved(before, after, "optimizer/mean/") & frozen == set(), stage
    names = {name.removeprefix("weights/") for name in arrays(folder, 1) if name.startswith("weights/")}
    statistics = {name for name in names if name.rpartition("/")[2] in ("moving_mean", "moving_variance")}
    assert len(statistics) == 68  # training leaves them alone, evaluation has its own
    assert moved(arrays(folder, LAST_ENDS), arrays(folder, ALL_ENDS), "weights/") == names - statistics


def test_slots_are_kept_where_they_continue(staged: tuple[Path, str]) -> None:
    folder, _ = staged
    before, after = arrays(folder, HEAD_ENDS), arrays(folder, HEAD_ENDS + 1)
    old, new = before["optimizer/square/logits/kernel"], after["optimizer/square/logits/kernel"]
    assert np.all(new >= 0.999 * old * (1 - 1e-6)) and old.max() > 0  # square <- 0.999 square + 0.001 gradient²
    counts = [arrays(folder, step)["optimizer/counts"] for step in (HEAD_ENDS, LAST_ENDS, ALL_ENDS)]
    assert [(count.min(), count.max()) for count in counts] == [(0, 3), (0, 7), (5, 12)]


def test_the_log_tells_of_each_stage(staged: tuple[Path, str]) -> None:
    lines = [line for line in staged[1].splitlines() if line.startswith("stage ")]
    assert [line.partition(",")[0] for line in lines] == [
        "stage head: steps 1 to 3",
        "stage last:0.4: steps 4 to 7",
        "stage all: steps 8 to 12",
    ]
    assert "4,616 of 943,736 weights train" in lines[0]


@pytest.mark.thorough
def test_compiled_as_a_whole_the_stages_train_alike(tmp_path: Path) -> None:
    """`train.xla=on`, as on GPUs: enlarged pictures, stochastic depth and a change of stages in one program each."""
    losses = []
    for xla in ("on", "off"):
        options = (f"train.xla={xla}", "model.input_size=48", "model.weights=none", "data.cache_dir=off")
        short = ("finetune.stages=[{share: 0.4, train: 'last:0.4'}, {share: 0.6}]", "train.epochs=1")
        done = subprocess.run(command(tmp_path / xla, *options, *short), capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        losses.append(arrays(tmp_path / xla, 3)["epoch/losses"])
    assert losses[0].shape == (3 * 48,)
    np.testing.assert_allclose(losses[0][: 2 * 48], losses[1][: 2 * 48], rtol=2e-3)
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-2)


@pytest.mark.thorough
def test_kills_in_every_stage_and_without_the_weight_file_change_nothing(
    staged: tuple[Path, str], tmp_path: Path
) -> None:
    whole, _ = staged
    weights = whole.parent / "pretrained.weights.h5"
    copied = tmp_path / "pretrained.weights.h5"
    copied.write_bytes(weights.read_bytes())
    run = tmp_path / "run"
    options = (f"data.cache_dir={whole.parent / 'cache'}", f"model.weights={copied}")
    for step in (HEAD_ENDS - 1, HEAD_ENDS, LAST_ENDS + 1):
        child = subprocess.Popen(command(run, *options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 240
        while not any(path.name >= f"step-{step:08d}" for path in (run / "checkpoints").glob("step-*")):
            assert child.poll() is None, child.stderr and child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        copied.unlink(missing_ok=True)  # only the beginning needs it
    done = subprocess.run(command(run, *options), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    expected, received = arrays(whole, ALL_ENDS), arrays(run, ALL_ENDS)
    assert expected.keys() == received.keys()
    assert [name for name in expected if not np.array_equal(expected[name], received[name])] == []
    assert RunDir(run).result.exists()


def test_layers_that_are_frozen_after_training_get_the_statistics_of_their_weights(tmp_path: Path) -> None:
    """Training itself keeps none. The stage begins once, also where a run is taken up at its first step."""
    stages = "finetune.stages=[{share: 0.5, train: all}, {share: 0.5, train: head}]"
    more = (stages, "model.backbone=cnn", "model.drop_path=0", f"data.cache_dir={tmp_path / 'cache'}")
    whole, again = tmp_path / "whole", tmp_path / "again"
    subprocess.run(command(whole, *more), capture_output=True, timeout=300, check=True)
    ends, total = 6, 12

    def statistics(folder: Path, step: int) -> np.ndarray:
        found = arrays(folder, step)
        return np.concatenate([found[f"weights/stage{number}_norm/moving_mean"] for number in range(4)])

    assert np.all(statistics(whole, ends) == 0)
    assert np.abs(statistics(whole, ends + 1)).max() > 0.01
    np.testing.assert_array_equal(statistics(whole, total), statistics(whole, ends + 1))

    shutil.copytree(whole, again)
    for folder in (again / "checkpoints").glob("step-*"):
        if folder.name > f"step-{ends:08d}":
            shutil.rmtree(folder)
    RunDir(again).result.unlink()
    done = subprocess.run(command(again, *more), capture_output=True, text=True, timeout=300, check=True)
    assert f"continues after step {ends} of {total}" in done.stdout
    expected, received = arrays(whole, total), arrays(again, total)
    assert [name for name in expected if not np.array_equal(expected[name], received[name])] == []
