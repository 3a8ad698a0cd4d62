"""The ImageNet weight files of Keras: which, where they lie, and how they come to a machine without internet."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from keras.src.backend.common import global_state

from bloodcell_dist.errors import UserError
from bloodcell_dist.models.backbones import BACKBONES
from bloodcell_dist.models.download import download, has_hash, hash_of
from bloodcell_dist.models.weight_folders import find_named
from bloodcell_dist.models.weight_folders import weight_folders as folders

log = logging.getLogger(__name__)

HAS_IMAGENET: tuple[str, ...] = tuple(name for name in BACKBONES if name != "cnn")
"""The backbones that can start from ImageNet weights."""

PATIENCE_S = 5.0
"""How long a training job waits for the internet; most compute nodes have none and swallow what is sent there."""


@dataclass(frozen=True)
class WeightsFile:
    """The weights of one backbone without its head: its file's name, its address and its MD5 or SHA-256."""

    backbone: str
    name: str
    url: str
    hash: str


@functools.cache
def weights_file(backbone: str) -> WeightsFile:
    """The file that the installed Keras would load for this backbone without its head.

    Keras itself says which: its constructor runs up to the point where it asks for the file (0.6 to 2.3 s). UserError
    for a backbone without such a file.
    """
    if backbone not in HAS_IMAGENET:
        raise UserError(
            f"model.weights=imagenet: there are no ImageNet weights for model.backbone={backbone}; "
            "use model.weights=none"
        )
    constructor = BACKBONES[backbone].constructor
    utilities: Any = sys.modules[constructor.__module__].file_utils  # type: ignore[attr-defined]
    original = utilities.get_file
    utilities.get_file = _tell
    try:
        with _layer_names_kept(), keras.device("cpu:0"):  # the weights are thrown away: no need for a GPU's memory
            constructor(weights="imagenet", include_top=False, input_shape=(224, 224, 3))
    except _Asked as asked:
        return WeightsFile(backbone, asked.name, asked.url, asked.hash)
    finally:
        utilities.get_file = original
    raise RuntimeError(f"keras.applications built {backbone} without asking for its weights")


def find(backbone: str, weights_dir: str | None) -> Path | None:
    """The backbone's weight file on this machine, unchecked; None if there is none."""
    return find_in(folders(weights_dir, os.environ), weights_file(backbone))


def find_in(places: Sequence[Path], file: WeightsFile) -> Path | None:
    """The first of these folders' files that has the name."""
    return find_named(places, file.name)


def check(path: Path, file: WeightsFile) -> bool:
    """Whether this is the whole and right file. UserError if it cannot be read."""
    try:
        return has_hash(path, file.hash)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None


def obtain(backbone: str, weights_dir: str | None) -> Path:
    """The backbone's weight file, checked; downloaded if this machine has internet.

    Raises:
        UserError: there are no ImageNet weights for it, the file is damaged, or it is not here and cannot be fetched.
            Without internet that takes a few seconds.
    """
    file = weights_file(backbone)
    places = folders(weights_dir, os.environ)
    path = find_in(places, file)
    if path is None:
        path = places[0] / file.name
        log.info("model.weights=imagenet: downloads %s to %s", file.url, path.parent)
        try:
            download(file.url, path, file.hash, timeout_s=PATIENCE_S, progress=True)
        except UserError as error:
            raise UserError(_missing(file, places, error)) from None
    elif not check(path, file):
        raise UserError(
            f"model.weights=imagenet: {path} is damaged: its hash is {hash_of(path, like=file.hash)}, expected "
            f"{file.hash}; get it anew with `{fetch_command([backbone], str(path.parent))}`"
        )
    return path


def fetch_command(backbones: Sequence[str], dest: str) -> str:
    """What to type to have these weight files in the folder `dest`."""
    return shlex.join(["bloodcell-dist", "weights", "fetch", *backbones, "--dest", dest])


def _missing(file: WeightsFile, places: Sequence[Path], error: UserError) -> str:
    """What to do about a file that is not there and that the network did not give."""
    return (
        f"model.weights=imagenet: {file.name} is not in {' or '.join(map(str, places))}, and cannot be downloaded "
        f"({error}); on a machine with internet run `{fetch_command([file.backbone], 'DIR')}`, bring DIR here and set "
        "model.weights_dir=DIR or the environment variable BLOODCELL_WEIGHTS=DIR"
    )


class _Asked(Exception):
    """Carries what a constructor wanted from `get_file`."""

    def __init__(self, name: str, url: str, hash: str) -> None:
        self.name, self.url, self.hash = name, url, hash


def _tell(fname: str, origin: str, *, file_hash: str, **_: Any) -> None:
    raise _Asked(fname, origin, file_hash)


@contextmanager
def _layer_names_kept() -> Iterator[None]:
    """Let the layers made inside not count in the numbering of later ones, which checkpoints and exports carry."""
    numbers = global_state.get_global_attribute("object_name_uids")
    kept = None if numbers is None else numbers.copy()
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", kept)
