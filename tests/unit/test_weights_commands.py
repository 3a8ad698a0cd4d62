"""`bloodcell-dist weights` through the command line, with a generated weight file and a server on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bloodcell_dist import cli, runtime  # noqa: F401  before Keras: it imports TensorFlow quietly

# isort: split

import h5py
import keras
import numpy as np
from keras.src.applications import mobilenet_v3
from keras.src.legacy.saving import legacy_h5_format

from bloodcell_dist import weights_commands
from bloodcell_dist.models import imagenet
from bloodcell_dist.models.imagenet import WeightsFile, weights_file

NAME = "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"
BACKBONE = "mobilenetv3small"
OTHER = WeightsFile("efficientnetb0", "efficientnetb0_notop.h5", "http://127.0.0.1:1/e.h5", "0" * 32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file as Keras 2 wrote them, which is what the real ones are."""
    path = tmp_path_factory.mktemp("weights") / NAME
    with h5py.File(path, "w") as file:
        network = keras.applications.MobileNetV3Small(weights=None, include_top=False, input_shape=(224, 224, 3))
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    return path


@pytest.fixture(scope="module")
def files(weights: Path) -> Iterator[dict[str, WeightsFile]]:
    """Two backbones suffice. Keras' own table has the generated file's hash meanwhile."""
    digest = hashlib.md5(weights.read_bytes()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mobilenet_v3.WEIGHTS_HASHES, "small_224_1.0_float", ("0" * 32, digest))
        weights_file.cache_clear()
        yield {BACKBONE: weights_file(BACKBONE), OTHER.backbone: OTHER}
    weights_file.cache_clear()


@pytest.fixture(autouse=True)
def surroundings(files: dict[str, WeightsFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keras").mkdir()
    monkeypatch.setattr(weights_commands, "weights_file", files.__getitem__)
    monkeypatch.setattr(weights_commands, "HAS_IMAGENET", tuple(files))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("BLOODCELL_WEIGHTS", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def mirror(weights: Path, serve: Callable[[Path], contextlib.AbstractContextManager[str]]) -> Iterator[str]:
    """The address of a folder that holds the generated file."""
    with serve(weights.parent) as address:
        yield address


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """(status, out, err) of `bloodcell-dist weights …`."""
    status = cli.main(["weights", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("fetch", "list", "verify")),
        (("fetch",), ("NAME", "--dest DIR", "--mirror URL", "--traceback")),
        (("list",), ("--dest DIR",)),
        (("verify",), ("NAME", "--dest DIR")),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["weights", *arguments, "--help"])
    out = capsys.readouterr().out
    assert all(word in out for word in words), out


def test_fetch_says_where_from_and_what_next(
    mirror: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "dest"
    status, out, err = call(capsys, "fetch", BACKBONE, BACKBONE, "--dest", dest, "--mirror", f"{mirror}/")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"{BACKBONE}: downloads {mirror}/{NAME}",
        f"{BACKBONE}: {dest / NAME}, {weights.stat().st_size / 1e6:.1f} MB, hash checked",
        f"to use them on a machine without internet, copy {dest} there, to DIR for example, and",
        "  set model.weights_dir=DIR, or export BLOODCELL_WEIGHTS=DIR",
    ]
    assert (dest / NAME).read_bytes() == weights.read_bytes()
    before = (dest / NAME).stat().st_ino
    status, out, _ = call(capsys, "fetch", BACKBONE, "--dest", dest, "--mirror", "http://127.0.0.1:1")
    assert status == 0
    assert out.splitlines()[0] == f"{BACKBONE}: {dest / NAME} is there already, hash checked"
    assert (dest / NAME).stat().st_ino == before


def test_fetch_replaces_a_damaged_file(
    mirror: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / NAME).write_bytes(weights.read_bytes()[:-1])
    status, out, _ = call(capsys, "fetch", BACKBONE, "--dest", tmp_path, "--mirror", mirror)
    assert status == 0
    assert f"{tmp_path / NAME} has a wrong hash and is replaced" in out
    assert (tmp_path / NAME).read_bytes() == weights.read_bytes()


def test_fetch_writes_where_a_run_looks_first(
    mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(capsys, "fetch", BACKBONE, "--mirror", mirror)[0] == 0
    assert imagenet.obtain(BACKBONE, None) == tmp_path / "keras" / "models" / NAME
    monkeypatch.setenv("BLOODCELL_WEIGHTS", str(tmp_path / "mine"))
    assert call(capsys, "fetch", BACKBONE, "--mirror", mirror)[0] == 0
    assert imagenet.obtain(BACKBONE, None) == tmp_path / "mine" / NAME


def test_what_was_fetched_loads(mirror: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through Keras' own loader of `weights="imagenet"`, which looks into the same folder."""
    assert call(capsys, "fetch", BACKBONE, "--dest", tmp_path, "--mirror", mirror)[0] == 0
    network = keras.applications.MobileNetV3Small(
        weights=str(tmp_path / NAME), include_top=False, input_shape=(224, 224, 3)
    )
    with h5py.File(weights) as file:
        assert np.array_equal(network.get_layer("conv").get_weights()[0], file["conv/conv/kernel"][:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fetch", "all"), f"http.*/{OTHER.name}: HTTP status 404 \\(File not found\\)"),
        (
            ("fetch", "MobileNet"),
            "there are none of ImageNet for 'MobileNet'; did you mean mobilenetv3small\\? known are",
        ),
        (("fetch", "cnn"), "there are none of ImageNet for 'cnn'; known are mobilenetv3small, efficientnetb0, all"),
        (("fetch", BACKBONE, "--mirror", "hospital/weights"), "--mirror hospital/weights: expected an address"),
        (("verify", "mobilnetv3small"), "did you mean mobilenetv3small"),
    ],
)
def test_mistakes(
    mirror: str, tmp_path: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--mirror", mirror] if arguments[0] == "fetch" and "--mirror" not in arguments else []
    status, _, err = call(capsys, *arguments, *given, "--dest", tmp_path / "dest")
    assert status == 2
    assert err.startswith("bloodcell-dist: ") and err.count("\n") == 1
    assert re.search(words, err), err


def test_list_shows_what_is_missing(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOODCELL_WEIGHTS", str(weights.parent))
    status, out, err = call(capsys, "list")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[:3] == [
        ["backbone", "file", "MB", "found"],
        [BACKBONE, NAME, f"{weights.stat().st_size / 1e6:.1f}", str(weights)],
        [OTHER.backbone, OTHER.name, "missing"],
    ]
    assert out.splitlines()[3:] == [
        f"looked in {weights.parent} and {tmp_path / 'keras' / 'models'}",
        "to get what is missing, on a machine with internet: `bloodcell-dist weights fetch efficientnetb0 --dest DIR`",
    ]
    _, out, _ = call(capsys, "list", "--dest", tmp_path)
    assert out.count("missing") == 3 and f"looked in {tmp_path}\n" in out


def test_verify(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "verify", "--dest", weights.parent)
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        [BACKBONE, "ok", str(weights)],
        [OTHER.backbone, "missing"],
    ]
    assert call(capsys, "verify", BACKBONE, "--dest", weights.parent)[0] == 0
    status, _, err = call(capsys, "verify", "all", "--dest", weights.parent)
    assert status == 2
    assert err == (
        f"bloodcell-dist: weights verify: 0 wrong, 1 missing of 2 in {weights.parent}; to get them: "
        f"`bloodcell-dist weights fetch efficientnetb0 --dest {weights.parent}`\n"
    )


def test_verify_finds_a_damaged_file(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / NAME).write_bytes(weights.read_bytes()[:-1])
    received, expected = hashlib.md5(weights.read_bytes()[:-1]).hexdigest(), weights_file(BACKBONE).hash
    status, out, err = call(capsys, "verify", "--dest", tmp_path)
    assert status == 2
    assert f"wrong hash: {received}, expected {expected}  {tmp_path / NAME}\n" in out
    assert err.endswith(f"`bloodcell-dist weights fetch {BACKBONE} --dest {tmp_path}`\n")


def test_verify_of_nothing_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "verify", "--dest", tmp_path)
    assert status == 2
    assert "0 wrong, 2 missing of 2" in err and f"fetch {BACKBONE} {OTHER.backbone} --dest {tmp_path}" in err
