"""Mistakes that people make: one clear message, exit status 2, no traceback, nothing left behind."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from bloodcell_dist import cli

NAMES = ("basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte", "neutrophil", "platelet")


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in this process: what they set for good, such as deterministic operations, others would meet."""
    monkeypatch.setattr("bloodcell_dist.runtime.configure", lambda **_: None)


def cells(count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Small random pictures, every class `count` / 8 times."""
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return images, np.arange(count) % 8


def npz(folder: Path, **arrays: np.ndarray) -> list[str]:
    """An npz file with these arrays in place of the right ones; the options that train on it."""
    images, labels = cells()
    np.savez(folder / "cells.npz", **({"images": images, "labels": labels} | arrays))
    return ["--set", f"data.path={folder / 'cells.npz'}"]


def missing_file(folder: Path) -> list[str]:
    return ["--set", f"data.path={folder / 'nowhere.npz'}"]


def wrong_names(folder: Path) -> list[str]:
    np.savez(folder / "cells.npz", x=cells()[0], y=cells()[1])
    return ["--set", f"data.path={folder / 'cells.npz'}"]


def float_images(folder: Path) -> list[str]:
    return npz(folder, images=cells()[0].astype(np.float32) / 255)


def grey_images(folder: Path) -> list[str]:
    return npz(folder, images=cells()[0][..., 0])


def fewer_labels(folder: Path) -> list[str]:
    return npz(folder, labels=cells()[1][:-1])


def label_out_of_range(folder: Path) -> list[str]:
    labels = cells()[1]
    labels[5] = 8
    return npz(folder, labels=labels)


def empty_class(folder: Path) -> list[str]:
    return npz(folder, labels=np.where(cells()[1] == 3, 2, cells()[1]))


def pickled_labels(folder: Path) -> list[str]:
    return npz(folder, labels=np.array([str(label) for label in cells()[1]], dtype=object))


def not_an_archive(folder: Path) -> list[str]:
    (folder / "cells.npz").write_text("no archive")
    return ["--set", f"data.path={folder / 'cells.npz'}"]


def class_folders(folder: Path) -> Path:
    """A folder of class folders with eight JPEGs each."""
    images, labels = cells()
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / "cells" / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index}.jpg")
    return folder / "cells"


def truncated_jpeg(folder: Path) -> list[str]:
    root = class_folders(folder)
    victim = root / "ig" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    return ["--set", f"data.path={root}"]


def folder_without_images(folder: Path) -> list[str]:
    root = class_folders(folder)
    for file in (root / "monocyte").iterdir():
        file.unlink()
    return ["--set", f"data.path={root}"]


def unknown_key(folder: Path) -> list[str]:
    return ["--set", "train.epoch=3"]


def impossible_value(folder: Path) -> list[str]:
    return ["--set", "optimizer.learning_rate=-1"]


def missing_config(folder: Path) -> list[str]:
    return ["--config", str(folder / "none.yaml")]


def undivisible_batch(folder: Path) -> list[str]:
    return [*npz(folder), "--set", "optimizer.accumulate_steps=3"]


def odd_groups(folder: Path) -> list[str]:
    options = ("train.global_batch_size=6", "augment.policy=seed")
    return [*npz(folder), *(part for option in options for part in ("--set", option))]


def with_settings(*settings: str) -> Callable[[Path], list[str]]:
    """Good cells and these settings."""
    return lambda folder: [*npz(folder), *(part for setting in settings for part in ("--set", setting))]


def weights_of_another_network(folder: Path) -> list[str]:
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, name="only")]).save(folder / "other.keras")
    return with_settings(f"model.weights={folder / 'other.keras'}")(folder)


def broken_weights(folder: Path) -> list[str]:
    (folder / "broken.h5").write_bytes(b"no weights")
    return with_settings(f"model.weights={folder / 'broken.h5'}")(folder)


STAGES = "finetune.stages=[{share: 0.2, train: head}, {share: 0.7}]"
HEAD_ONLY = "finetune.stages=[{share: 1, train: head}]"
LAST = "finetune.stages=[{share: 1, train: 'last:2'}]"


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (with_settings("model.weights=gone.h5"), ("model.weights", "gone.h5", "expected a Keras .h5")),
        (with_settings("model.weights=imagenet"), ("there are no ImageNet weights for model.backbone=cnn",)),
        (weights_of_another_network, ("other.keras", "stage0_conv should be 3x3x3x32", "only 8x3, 3")),
        (broken_weights, ("broken.h5", "neither HDF5 nor")),
        (with_settings("model.backbone=resnet"), ("model.backbone='resnet'", "'convnextbase'")),
        (with_settings("model.drop_path=0.1"), ("model.drop_path=0.1", "no residual branches")),
        (with_settings("model.input_size=24"), ("model.input_size=24 is smaller than data.image_size=32",)),
        (with_settings(STAGES), ("finetune.stages", "the shares add up to 0.9; expected 1")),
        (with_settings(LAST), ("finetune.stages[0].train='last:2'", "head, all, or last:")),
        (with_settings("finetune.stages=[{train: head}]"), ("finetune.stages[0].share is missing",)),
        (with_settings("finetune.stages=[{share: 1, part: all}]"), ("stages[0].part; known are share, train, rate",)),
        (with_settings("finetune.stages=[head]"), ("finetune.stages: 'head' is not possible; expected {share: …",)),
        (
            with_settings("finetune.stages=[{share: 1, train: head}]", "model.weights=none"),
            ("never trains all layers",),
        ),
        (with_settings("finetune.stages=[]"), ("finetune.stages=[] has no stage",)),
        (with_settings("finetune.batchnorm=freeze", "model.weights=none"), ("finetune.batchnorm=freeze", "untrained")),
        (missing_file, ("nowhere.npz", "no such file")),
        (wrong_names, ("cells.npz", "x, y", "expected images and labels")),
        (float_images, ("images", "float32", "expected uint8")),
        (grey_images, ("images", "(64, 32, 32)", "expected colour")),
        (fewer_labels, ("labels", "(63,)", "expected (64,)")),
        (label_out_of_range, ("'labels'[5] is 8", "expected 0 to 7")),
        (empty_class, ("ig",)),
        (pickled_labels, ("labels", "pickle")),
        (not_an_archive, ("cells.npz",)),
        (truncated_jpeg, ("3.jpg", "ig")),
        (folder_without_images, ("monocyte",)),
        (unknown_key, ("train.epoch", "did you mean train.epochs?")),
        (impossible_value, ("optimizer.learning_rate=-1", "greater than 0")),
        (missing_config, ("none.yaml", "--config")),
        (undivisible_batch, ("train.global_batch_size=64", "use 63 or 66")),
        (odd_groups, ("augment.policy=seed", "groups of 4", "train.global_batch_size")),
    ],
    ids=lambda value: value.__name__ if callable(value) else "message",
)
def test_mistake(
    mistake: Callable[[Path], list[str]],
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    common = ["train", "--run-dir", str(run), "--set", "data.image_size=32", "--set", "model.backbone=cnn"]
    status = cli.main([*common, "--set", f"data.cache_dir={cache}", *mistake(tmp_path)])
    message = capsys.readouterr().err
    assert status == 2
    assert message.count("\n") == 1, f"one line was expected: {message}"
    assert message.startswith("bloodcell-dist: ")
    assert "Traceback" not in message
    assert all(word in message for word in words), message
    assert not run.exists(), sorted(run.rglob("*"))
    unfinished = [path for path in cache.rglob("*") if path.name.startswith(".tmp")] if cache.exists() else []
    assert unfinished == []


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "file/run"])
def test_unwritable_run_folder(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    status = cli.main(["train", "--run-dir", str(tmp_path / place), *npz(tmp_path)])
    message = capsys.readouterr().err
    assert status == 2
    assert place in message and "run folder" in message, message


def test_foreign_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert cli.main(["train", "--run-dir", str(tmp_path)]) == 2
    assert "thesis.txt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
