"""`bloodcell-dist evaluate` and `predict` on runs made here; their networks are untrained."""

from __future__ import annotations

import csv
import json
import logging
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from bloodcell_dist import cli
from bloodcell_dist.config import dump_yaml, replace
from bloodcell_dist.errors import UserError
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.serving.commands import evaluate_runs, predict_pictures
from bloodcell_dist.serving.export import export_model
from bloodcell_dist.settings import BLOOD_CELLS, METRICS, Settings


def make_run(folder: Path, image_size: int = 32, seed: int = 0) -> Path:
    """The files of a finished run that a predictor reads."""
    folder.mkdir(exist_ok=True)
    changes = {"data.image_size": image_size, "model.backbone": "cnn", "evaluate.bootstrap": 10}
    (folder / "config.yaml").write_text(dump_yaml(replace(Settings(), changes)))
    (folder / "result.json").write_text(json.dumps({"class_names": BLOOD_CELLS, "run_id": folder.name}))
    network = build_classifier("cnn", image_size=image_size, num_classes=8, dropout=0.0, seed=seed)
    export_model(network, folder / "model.keras", BLOOD_CELLS)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three runs; the last has larger pictures."""
    base = tmp_path_factory.mktemp("runs")
    sizes = {"a": 32, "b": 32, "c": 48}
    return [str(make_run(base / name, size, seed)) for seed, (name, size) in enumerate(sizes.items())]


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
    evaluate_runs([str(run)], str(first), None)
    written = (place / "metrics.json").read_bytes()
    assert json.loads(written)["data"] == str(first)
    with pytest.raises(UserError, match=f"{place}: holds the evaluation of {first}, not of {second}; .*--out"):
        evaluate_runs([str(run)], str(second), None)
    assert (place / "metrics.json").read_bytes() == written
    monkeypatch.chdir(first.parent)
    evaluate_runs([str(run)], "test_set.npz", None)  # the same cells again
    evaluate_runs([str(run)], str(second), str(tmp_path / "out"))
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
    evaluate_runs([str(run)], str(tmp_path / "blood.npz"), str(tmp_path / "out"))
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == [f"test_images[{index}]" for index in range(24)]
    assert f"24 cells of the test part of {tmp_path / 'blood.npz'}; details in {tmp_path / 'out'}" in caplog.text


def test_a_folder_that_cannot_be_made_is_one_message(run: Path, tmp_path: Path) -> None:
    place = npz(tmp_path / "lab" / "a.npz", 0)
    with pytest.raises(UserError, match=f"--out {place}/out: cannot be written .Not a directory.; give another place"):
        evaluate_runs([str(run)], str(place), str(place / "out"))


def table(path: Path) -> np.ndarray:
    """The probabilities in a predictions.csv, float64 [N, 8]."""
    with open(path, newline="") as file:
        return np.array([[float(row[f"p_{name}"]) for name in BLOOD_CELLS] for row in csv.DictReader(file)])


def watch_networks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of networks in memory whenever one was loaded."""
    load, counts, alive = keras.saving.load_model, [], weakref.WeakSet[Any]()

    def watched(*arguments: Any, **options: Any) -> keras.Model:
        network = load(*arguments, **options)
        alive.add(network)
        counts.append(len(alive))
        return network

    monkeypatch.setattr(keras.saving, "load_model", watched)
    return counts


@pytest.mark.slow
def test_several_runs_are_averaged_and_each_is_measured(
    runs: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(npz(tmp_path / "lab" / "test_set.npz", 0))
    for name, folder in zip("abc", runs, strict=True):
        evaluate_runs([folder], data, str(tmp_path / name))
    caplog.set_level(logging.INFO)
    caplog.clear()
    counts = watch_networks(monkeypatch)
    evaluate_runs(runs, data, None)
    assert counts == [1, 1, 1]
    place = Path(runs[0]) / "evaluations" / "test_set+b+c"
    singles = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in "abc"]
    tables = [table(tmp_path / name / "predictions.csv") for name in "abc"]
    assert np.abs(tables[0] - tables[1]).max() > 1e-3
    np.testing.assert_allclose(table(place / "predictions.csv"), np.mean(tables, axis=0), rtol=0, atol=1e-6)

    found = json.loads((place / "metrics.json").read_text())
    assert list(found)[:4] == ["runs", "members", "data", "examples"]
    assert list(found)[4:] == list(singles[0])[3:]
    assert found["runs"] == runs
    for member, single in zip(found["members"], singles, strict=True):
        assert (member["run"], member["backbone"]) == (single["run"], "cnn")
        assert [member[name] for name in METRICS] == pytest.approx([single[name] for name in METRICS])
    assert {path.name for path in place.iterdir()} == {path.name for path in (tmp_path / "a").iterdir()}

    lines = [record.getMessage() for record in caplog.records]
    header, *rows = lines[:5]
    assert header.split() == ["accuracy", "macro-F1", "loss"]
    assert [row[: len(runs[0])].rstrip() for row in rows] == [*runs, "ensemble of 3"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert rows[3].split()[-1] == f"{found['loss']:.4f}"
    assert lines[5] == f"{'loss':18} {found['loss']:.4f}"
    assert lines[-1] == f"16 cells; details in {place}"


@pytest.mark.slow
def test_one_run_alone_is_not_compared(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = npz(tmp_path / "lab" / "a.npz", 0)
    evaluate_runs([str(run)], str(data), None)
    place = run / "evaluations" / "a"
    found = json.loads((place / "metrics.json").read_text())
    shape = ("intervals", "class_names", "per_class", "confusion")
    assert list(found) == ["run", "data", "examples", *METRICS, *shape]
    assert (found["run"], found["data"], found["examples"]) == (str(run), str(data), 16)
    names = ("confusion.png", "mistakes.png", "per_class.png", "metrics.json", "predictions.csv")
    assert {path.name for path in place.iterdir()} == set(names)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in lines] == [*METRICS, "16"]
    low, high = found["intervals"]["accuracy"]
    assert f"{'accuracy':18} {found['accuracy']:.4f}  (95% interval {low:.4f} to {high:.4f})" in lines


@pytest.mark.slow
def test_pictures_are_classified_by_the_average_too(runs: list[str], tmp_path: Path) -> None:
    data = str(npz(tmp_path / "lab" / "new.npz", 3))
    for name, folder in zip("abc", runs, strict=True):
        predict_pictures([folder], data, str(tmp_path / f"{name}.csv"))
    assert cli.main(["predict", *runs, data, "--out", str(tmp_path / "all.csv")]) == 0
    singles = [table(tmp_path / f"{name}.csv") for name in "abc"]
    np.testing.assert_allclose(table(tmp_path / "all.csv"), np.mean(singles, axis=0), rtol=0, atol=1e-6)


def test_all_runs_are_looked_at_before_anything_is_read(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = f"{tmp_path}/empty: is not a run folder .no config.yaml.; give the folder of a finished run"
    for command in (evaluate_runs, predict_pictures):
        with pytest.raises(UserError, match=text):
            command([str(run), str(tmp_path / "empty")], "nowhere.npz", str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
