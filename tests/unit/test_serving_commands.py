"""`bloodcell-dist evaluate` on a run made here; its network is untrained."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from bloodcell_dist.config import dump_yaml, replace
from bloodcell_dist.errors import UserError
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.serving.commands import evaluate_run
from bloodcell_dist.serving.export import export_model
from bloodcell_dist.settings import BLOOD_CELLS, Settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a finished run that a predictor reads."""
    folder = tmp_path_factory.mktemp("run")
    settings = replace(Settings(), {"data.image_size": 32, "evaluate.bootstrap": 10})
    (folder / "config.yaml").write_text(dump_yaml(settings))
    (folder / "result.json").write_text(json.dumps({"class_names": BLOOD_CELLS}))
    network = build_classifier("cnn", image_size=32, num_classes=8, dropout=0.0, total_steps=1, seed=0)
    export_model(network, folder / "model.keras")
    return folder


def cells(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 8


def npz(path: Path, seed: int) -> Path:
    images, labels = cells(16, seed)
    path.parent.mkdir()
    np.savez(path, images=images, labels=labels)
    return path


@pytest.mark.slow
def test_cells_of_the_same_name_do_not_overwrite_each_other(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (npz(tmp_path / lab / "test_set.npz", seed) for seed, lab in enumerate(("labA", "labB")))
    place = run / "evaluations" / "test_set"
    evaluate_run(str(run), str(first), None)
    written = (place / "metrics.json").read_bytes()
    assert json.loads(written)["data"] == str(first)
    with pytest.raises(UserError, match=f"{place}: holds the evaluation of {first}, not of {second}; .*--out"):
        evaluate_run(str(run), str(second), None)
    assert (place / "metrics.json").read_bytes() == written
    monkeypatch.chdir(first.parent)
    evaluate_run(str(run), "test_set.npz", None)  # the same cells again
    evaluate_run(str(run), str(second), str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["data"] == str(second)


@pytest.mark.slow
def test_of_a_medmnist_file_the_test_part_is_measured(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    arrays = {}
    for seed, (part, count) in enumerate({"train": 32, "val": 16, "test": 24}.items()):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = cells(count, seed)
    np.savez(tmp_path / "blood.npz", **arrays)
    evaluate_run(str(run), str(tmp_path / "blood.npz"), str(tmp_path / "out"))
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == [f"test_images[{index}]" for index in range(24)]
    assert f"24 cells of the test part of {tmp_path / 'blood.npz'}; details in {tmp_path / 'out'}" in caplog.text


def test_a_folder_that_cannot_be_made_is_one_message(run: Path, tmp_path: Path) -> None:
    place = npz(tmp_path / "lab" / "a.npz", 0)
    with pytest.raises(UserError, match=f"--out {place}/out: cannot be written .Not a directory.; give another place"):
        evaluate_run(str(run), str(place), str(place / "out"))
