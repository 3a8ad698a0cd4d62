"""A cluster whose nodes have no internet: fetch the weights elsewhere, copy them, train without any network."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bloodcell_dist import runtime  # noqa: F401  before Keras: it imports TensorFlow quietly

# isort: split

import h5py
import keras
from keras.src.legacy.saving import legacy_h5_format

pytestmark = pytest.mark.slow

NAME = "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"
NO_NETWORK = ("unshare", "--net", "--")
SETTINGS = (
    "model.backbone=mobilenetv3small",
    "model.weights=imagenet",
    "data.source=synthetic",
    "data.synthetic_examples=200",
    "data.image_size=32",
    "data.cache_dir=off",
    "train.epochs=1",
    "train.global_batch_size=32",
    "evaluate.bootstrap=0",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file in the layout of the real one."""
    path = tmp_path_factory.mktemp("server") / NAME
    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNetV3Small(weights=None, include_top=False, input_shape=(224, 224, 3))
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    return path


@pytest.fixture(scope="module")
def hash(weights: Path) -> str:
    return hashlib.md5(weights.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def copied(
    weights: Path,
    hash: str,
    serve: Callable[[Path], contextlib.AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder that was fetched on a machine with a network, at its new place on the cluster."""
    base = tmp_path_factory.mktemp("offline")
    with serve(weights.parent) as address:
        command = ["weights", "fetch", "mobilenetv3small", "--dest", str(base / "fetched"), "--mirror", address]
        done = run(python("bloodcell_dist.cli", hash, command), base)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert f"{base / 'fetched' / NAME}, " in done.stdout and "hash checked" in done.stdout
    shutil.copytree(base / "fetched", base / "cluster")
    shutil.rmtree(base / "fetched")
    return base / "cluster"


def python(module: str, hash: str, arguments: list[str]) -> list[str]:
    """A command of the package in a process where Keras' table holds this hash: the real file is not at hand."""
    code = (
        "import sys; from bloodcell_dist import runtime; from keras.src.applications import mobilenet_v3; "
        f"mobilenet_v3.WEIGHTS_HASHES['small_224_1.0_float'] = ('', {hash!r}); "
        f"from {module} import main; sys.exit(main())"
    )
    return [sys.executable, "-c", code, *arguments]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Without weight files but those that the command names."""
    (folder / "keras").mkdir(exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if name != "BLOODCELL_WEIGHTS"}
    environ |= {"KERAS_HOME": str(folder / "keras"), "no_proxy": "*", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environ)


def train(folder: Path, weights_dir: Path, hash: str) -> subprocess.CompletedProcess[str]:
    """`python -m bloodcell_dist.train` where no packet gets out."""
    if subprocess.run([*NO_NETWORK, "true"], capture_output=True, check=False).returncode:
        reason = "`unshare --net` is not permitted here; it takes root"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    overrides = [part for text in (*SETTINGS, f"model.weights_dir={weights_dir}") for part in ("--set", text)]
    command = python("bloodcell_dist.train", hash, ["--run-dir", str(folder / "run"), *overrides])
    return run([*NO_NETWORK, *command], folder)


def test_a_node_without_internet_trains_with_copied_weights(copied: Path, hash: str, tmp_path: Path) -> None:
    done = train(tmp_path, copied, hash)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(copied / NAME) in (tmp_path / "run" / "log.txt").read_text()
    assert (tmp_path / "run" / "model.keras").exists()


def test_without_the_copy_it_says_within_seconds_what_to_do(hash: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    begun = time.monotonic()
    done = train(tmp_path, empty, hash)
    assert time.monotonic() - begun < 60
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"{NAME} is not in {empty} or {tmp_path / 'keras' / 'models'}" in done.stderr
    assert "`bloodcell-dist weights fetch mobilenetv3small --dest DIR`" in done.stderr
    assert not (tmp_path / "run").exists()
    assert list(empty.iterdir()) == []


def test_the_copy_is_whole(copied: Path, weights: Path, hash: str, tmp_path: Path) -> None:
    assert (copied / NAME).read_bytes() == weights.read_bytes()
    done = run(python("bloodcell_dist.cli", hash, ["weights", "verify", "--dest", str(copied)]), tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert any(line.split() == ["mobilenetv3small", "ok", str(copied / NAME)] for line in done.stdout.splitlines())
