"""Which ImageNet weight files Keras wants, where they are looked for, and what is said when they are not there."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bloodcell_dist import runtime  # noqa: F401  before Keras: it imports TensorFlow quietly

# isort: split

import keras
from keras.src.applications import mobilenet_v3
from keras.src.utils import file_utils

from bloodcell_dist.errors import UserError
from bloodcell_dist.models.imagenet import WeightsFile, check, find, folders, obtain, weights_file

CONTENT = b"weights" * 1000
NAME = "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"
BACKBONE = "mobilenetv3small"


@pytest.fixture
def served_from(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Lets Keras' own table say that the file lies in the folder of this address, and that its bytes are CONTENT."""
    monkeypatch.setenv("no_proxy", "*")
    digest = hashlib.md5(CONTENT).hexdigest()
    monkeypatch.setitem(mobilenet_v3.WEIGHTS_HASHES, "small_224_1.0_float", ("0" * 32, digest))
    weights_file.cache_clear()
    yield lambda address: monkeypatch.setattr(mobilenet_v3, "BASE_WEIGHT_PATH", f"{address}/")
    weights_file.cache_clear()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three empty folders: for weights_dir, of $BLOODCELL_WEIGHTS, of Keras."""
    found = [tmp_path / "given", tmp_path / "variable", tmp_path / "keras" / "models"]
    for place in found:
        place.mkdir(parents=True)
    monkeypatch.setenv("BLOODCELL_WEIGHTS", str(found[1]))
    monkeypatch.setenv("KERAS_HOME", str(found[2].parent))
    return found


@pytest.mark.parametrize(
    ("backbone", "module", "key", "name"),
    [
        ("mobilenetv3small", "mobilenet_v3", "small_224_1.0_float", NAME),
        ("efficientnetb0", "efficientnet", "b0", "efficientnetb0_notop.h5"),
        pytest.param(
            *("efficientnetv2s", "efficientnet_v2", "-s", "efficientnetv2-s_notop.h5"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("efficientnetv2m", "efficientnet_v2", "-m", "efficientnetv2-m_notop.h5"),
            marks=pytest.mark.slow,
        ),
        pytest.param(*("convnextbase", "convnext", "convnext_base", "convnext_base_notop.h5"), marks=pytest.mark.slow),
    ],
)
def test_the_file_is_what_keras_would_load(backbone: str, module: str, key: str, name: str) -> None:
    table = importlib.import_module(f"keras.src.applications.{module}")
    base = getattr(table, "BASE_WEIGHTS_PATH", None) or table.BASE_WEIGHT_PATH
    assert weights_file(backbone) == WeightsFile(backbone, name, base + name, table.WEIGHTS_HASHES[key][1])


def test_asking_keras_leaves_it_as_it_was() -> None:
    original = file_utils.get_file
    before = keras.layers.ReLU().name
    weights_file.cache_clear()
    weights_file(BACKBONE)
    assert file_utils.get_file is original
    number = int(before.removeprefix("re_lu").lstrip("_") or 0)
    assert keras.layers.ReLU().name == f"re_lu_{number + 1}", "later layers would be numbered otherwise"


def test_get_file_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    original = file_utils.get_file
    monkeypatch.delitem(mobilenet_v3.WEIGHTS_HASHES, "small_224_1.0_float")
    weights_file.cache_clear()
    with pytest.raises(KeyError):
        weights_file(BACKBONE)
    assert file_utils.get_file is original


def test_the_plain_network_has_none() -> None:
    words = "model.weights=imagenet: there are no ImageNet weights for model.backbone=cnn; use model.weights=none"
    with pytest.raises(UserError, match=f"^{words}$"):
        obtain("cnn", None)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras_home = tmp_path / "keras"
    keras_home.mkdir()
    models = keras_home / "models"
    environ = {"KERAS_HOME": str(keras_home)}
    assert folders(None, environ) == [models]
    assert folders("w", environ) == [Path("w"), models]
    assert folders(None, environ | {"BLOODCELL_WEIGHTS": "v"}) == [Path("v"), models]
    assert folders("w", environ | {"BLOODCELL_WEIGHTS": "v"}) == [Path("w"), models]
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".keras").mkdir()
    assert folders("~/w", {}) == [tmp_path / "w", tmp_path / ".keras" / "models"]
    monkeypatch.setattr(os, "access", lambda *_: False)  # where Keras itself would write to /tmp
    assert folders(None, environ) == [models, Path("/tmp/.keras/models")]


def test_the_nearest_file_wins(places: list[Path]) -> None:
    given, variable, of_keras = places
    assert find(BACKBONE, str(given)) is None
    (of_keras / NAME).write_bytes(b"")
    assert find(BACKBONE, str(given)) == find(BACKBONE, None) == of_keras / NAME
    (variable / NAME).write_bytes(b"")
    assert find(BACKBONE, None) == variable / NAME
    assert find(BACKBONE, str(given)) == of_keras / NAME, "the setting stands in place of the variable"
    (given / NAME).write_bytes(b"")
    assert find(BACKBONE, str(given)) == given / NAME


def test_a_good_file_is_taken_without_the_network(
    served_from: Callable[[str], None], places: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    served_from("http://127.0.0.1:1")
    (places[0] / NAME).write_bytes(CONTENT)
    assert obtain(BACKBONE, str(places[0])) == places[0] / NAME
    assert caplog.text == ""


def test_a_damaged_file_is_refused(served_from: Callable[[str], None], places: list[Path]) -> None:
    served_from("http://127.0.0.1:1")
    path = places[0] / NAME
    path.write_bytes(CONTENT[:-1])
    (places[2] / NAME).write_bytes(CONTENT)
    received, expected = (hashlib.md5(data).hexdigest() for data in (CONTENT[:-1], CONTENT))
    words = (
        f"model.weights=imagenet: {path} is damaged: its hash is {received}, expected {expected}; "
        f"get it anew with `bloodcell-dist weights fetch {BACKBONE} --dest {places[0]}`"
    )
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        obtain(BACKBONE, str(places[0]))
    assert path.exists()


def test_a_missing_file_is_downloaded(
    served_from: Callable[[str], None], places: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / NAME).write_bytes(CONTENT)
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        served_from(address)
        assert obtain(BACKBONE, str(places[0])) == places[0] / NAME
        server.shutdown()
        thread.join()
    assert (places[0] / NAME).read_bytes() == CONTENT
    assert caplog.messages == [f"model.weights=imagenet: downloads {address}/{NAME} to {places[0]}"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that does not write to the terminal."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_without_the_network_the_message_says_all(served_from: Callable[[str], None], places: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    served_from(address)
    words = (
        f"model.weights=imagenet: {NAME} is not in {places[0]} or {places[2]}, and cannot be downloaded "
        f"({address}/{NAME}: Connection refused); on a machine with internet run `bloodcell-dist weights fetch "
        f"{BACKBONE} --dest DIR`, bring DIR here and set model.weights_dir=DIR or the environment variable "
        "BLOODCELL_WEIGHTS=DIR"
    )
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        obtain(BACKBONE, str(places[0]))
    assert list(places[0].iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(served_from: Callable[[str], None], places: list[Path]) -> None:
    served_from("http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"/proc/weights/\S+: cannot be written .*weights fetch mobilenetv3small"):
        obtain(BACKBONE, "/proc/weights")


@pytest.mark.slow
def test_a_network_that_swallows_everything_costs_seconds(
    served_from: Callable[[str], None], places: list[Path]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        served_from(f"http://127.0.0.1:{mute.getsockname()[1]}")
        weights_file(BACKBONE)
        begun = time.monotonic()
        with pytest.raises(UserError, match="no answer within 5 s.*weights fetch mobilenetv3small"):
            obtain(BACKBONE, str(places[0]))
        assert time.monotonic() - begun < 10


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    file = WeightsFile("a", "mem", "http://nowhere", "0" * 32)
    with pytest.raises(UserError, match="^/proc/self/mem: cannot be read .*; check its permissions$"):
        check(Path("/proc/self/mem"), file)
    assert not check(tmp_path / "none", file)
