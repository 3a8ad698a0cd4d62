"""One run from the command line to the report, as a user sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bloodcell_dist import cli
from bloodcell_dist.config import load_settings
from bloodcell_dist.history import read_metrics
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.settings import METRICS

pytestmark = pytest.mark.slow

SETTINGS = (
    "data.source=synthetic",
    "data.synthetic_examples=400",
    "data.image_size=48",
    "data.balance=oversample",
    "data.target_per_class=50",
    "model.backbone=cnn",
    "optimizer.name=adamw",
    "optimizer.learning_rate=2e-3",
    "train.epochs=3",
    "train.global_batch_size=40",
    "evaluate.bootstrap=50",
)
FILES = (
    *("config.yaml", "environment.json", "log.txt", "metrics.jsonl", "result.json", "report.html", "model.keras"),
    *("data.json", "cleaning.json", "cleaning.png", "run_id", "status.json", "tensorboard/val"),
    *(f"plots/{name}.png" for name in ("curves", "confusion", "per_class", "class_counts", "mistakes")),
    *("checkpoints/step-00000020", "checkpoints/step-00000030"),
)


def train(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`python -m bloodcell_dist.train` in a process of its own."""
    command = [sys.executable, "-m", "bloodcell_dist.train", "--run-dir", str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run."""
    base = tmp_path_factory.mktemp("whole")
    options = [part for setting in (*SETTINGS, f"data.cache_dir={base / 'cache'}") for part in ("--set", setting)]
    done = train(base / "run", *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (base / "printed").write_text(done.stdout)
    return RunDir(base / "run")


def test_leaves_every_file_and_no_other(finished: RunDir) -> None:
    for name in FILES:
        assert (finished.path / name).exists(), name
    top = {name.split("/")[0] for name in FILES} | {".lock"}
    assert {path.name for path in finished.path.iterdir()} == top
    assert sorted(path.name for path in finished.checkpoints.iterdir()) == ["step-00000020", "step-00000030"]


def test_result_has_the_promised_names(finished: RunDir) -> None:
    result = json.loads(finished.result.read_text())
    for split in ("train", "val", "test"):
        for metric in METRICS:
            assert 0 <= result[f"{split}_{metric}"] < 10
    assert result["examples"] == {"val": 41, "test": 100}  # each class rounds up its tenth
    assert result["run_id"] == finished.run_id
    low, high = result["intervals"]["test_accuracy"]
    assert low <= result["test_accuracy"] <= high
    best = max(read_metrics(finished.metrics), key=lambda row: row["val_macro_f1"])
    assert result["best"]["epoch"] == best["epoch"]
    assert result["val_macro_f1"] == pytest.approx(best["val_macro_f1"], abs=1e-12)


def test_it_learned(finished: RunDir) -> None:
    rows = read_metrics(finished.metrics)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert json.loads(finished.result.read_text())["test_accuracy"] > 0.3  # chance is 0.17, the largest class


def test_says_its_choices_and_its_arithmetic(finished: RunDir) -> None:
    printed = (finished.path.parent / "printed").read_text()
    assert "train.precision = float32: no GPU here" in printed
    assert "global batch 40 = 40 per replica x 1 replica x 1 accumulation step" in printed
    assert "10 steps per epoch, 3 epochs, 30 steps" in printed
    for line in printed.splitlines():
        assert line in finished.log.read_text()


def test_finished_run_does_nothing(finished: RunDir) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*") if path.is_file()}
    again = train(finished.path, "--config", str(finished.config))
    assert again.returncode == 0
    assert "is finished" in again.stdout
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed <= {".lock", "log.txt", "status.json"}
    assert json.loads(finished.status.read_text()) == {"state": "done", "exit_status": 0, "message": ""}


def test_other_settings_are_refused(finished: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", str(finished.config), "--set", "train.epochs=9"]
    assert cli.main(["train", "--run-dir", str(finished.path), *options]) == 2
    assert "started with train.epochs=3, now train.epochs=9" in capsys.readouterr().err


def test_the_written_config_gives_the_same_run(finished: RunDir, tmp_path: Path) -> None:
    done = train(tmp_path / "run", "--config", str(finished.config))
    assert done.returncode == 0, done.stderr
    other = RunDir(tmp_path / "run")
    assert load_settings(other.config) == load_settings(finished.config)
    assert other.data.read_text() == finished.data.read_text()
    one, two = (run.checkpoints / "step-00000030" / "arrays.npz" for run in (other, finished))
    with np.load(one) as ours, np.load(two) as theirs:
        assert ours.files == theirs.files
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs.files)


def test_model_loads_in_plain_keras(finished: RunDir, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), np.uint8)
    np.savez(tmp_path / "cells.npz", images=images)
    code = (
        "import sys, numpy as np, keras; "
        "model = keras.saving.load_model(sys.argv[1]); "
        "np.save(sys.argv[3], model.predict(np.load(sys.argv[2])['images'], verbose=0)); "
        "assert 'bloodcell_dist' not in sys.modules"
    )
    arguments = [str(finished.model), str(tmp_path / "cells.npz"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120, cwd=tmp_path)
    assert cli.main(["predict", str(finished.path), arguments[1], "--out", str(tmp_path / "out.csv")]) == 0
    table = np.genfromtxt(tmp_path / "out.csv", delimiter=",", skip_header=1)[:, 3:]
    np.testing.assert_allclose(table, np.load(tmp_path / "out.npy"), atol=1e-6)


def test_evaluate_and_predict(finished: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    for name in ("ig", "platelet"):
        (tmp_path / "cells" / name).mkdir(parents=True)
        for index in range(3):
            picture = Image.fromarray(rng.integers(0, 256, (60, 70, 3), np.uint8))
            picture.save(tmp_path / "cells" / name / f"{index}.png")
    assert cli.main(["evaluate", str(finished.path), "--data", str(tmp_path / "cells")]) == 0
    metrics = json.loads((finished.path / "evaluations" / "cells" / "metrics.json").read_text())
    assert metrics["examples"] == 6
    assert sum(map(sum, metrics["confusion"])) == 6
    assert "accuracy" in capsys.readouterr().out
    assert cli.main(["predict", str(finished.path), str(tmp_path / "cells"), "--out", str(tmp_path / "p.csv")]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 7


def test_unfinished_run_cannot_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(tmp_path), "x.png", "--out", str(tmp_path / "p.csv")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_debug_mode(tmp_path: Path) -> None:
    options = ["--set", "data.image_size=32", "--set", "model.backbone=cnn", "--set", "augment.policy=none", "--debug"]
    command = [sys.executable, "-m", "bloodcell_dist.train", *options]
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    settings = load_settings(run / "config.yaml")
    assert (settings.train.epochs, settings.train.xla, settings.train.checks) == (2, "off", True)
    assert "256 training" in done.stdout and "DRAWN cells" in done.stdout
