"""What `bloodcell-dist weights fetch`, `weights list` and `weights verify` do."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bloodcell_dist import runtime  # noqa: F401  before Keras: it imports TensorFlow quietly
from bloodcell_dist.errors import UserError
from bloodcell_dist.models.download import download, hash_of
from bloodcell_dist.models.imagenet import (
    HAS_IMAGENET,
    WeightsFile,
    check,
    fetch_command,
    find_in,
    folders,
    weights_file,
)

log = logging.getLogger(__name__)

ALL = "all"
PATIENCE_S = 30.0
TRIES = 5


@dataclass(frozen=True)
class _Place:
    """A weight file, and where it was found; None for nowhere."""

    file: WeightsFile
    path: Path | None


def fetch_weights(names: Sequence[str], dest: str | None, mirror: str | None) -> None:
    """Download the weight files of these backbones, those that are not there already, and check them.

    Args:
        names: backbones, or `all`.
        dest: folder; None for the first that a training run looks in.
        mirror: URL of a folder to take the files from instead of Google's servers.

    Raises:
        UserError: a name is unknown, a file cannot be had, or `dest` cannot be written.
    """
    wanted, source = _backbones(names), _mirror(mirror)
    folder = _folders(dest)[0].absolute()
    for backbone in wanted:
        _fetch(weights_file(backbone), folder, source)
    log.info("to use them on a machine without internet, copy %s there, to DIR for example, and", folder)
    log.info("  set model.weights_dir=DIR, or export BLOODCELL_WEIGHTS=DIR")


def list_weights(dest: str | None) -> None:
    """Show the weight file of each backbone and where it is; looks only in `dest`, if given."""
    places = _look(HAS_IMAGENET, dest)
    width = max(len(place.file.name) for place in places)
    log.info("%-17s %-*s %8s  %s", "backbone", width, "file", "MB", "found")
    for place in places:
        size = "" if place.path is None else f"{place.path.stat().st_size / 1e6:.1f}"
        found = "missing" if place.path is None else place.path
        log.info("%-17s %-*s %8s  %s", place.file.backbone, width, place.file.name, size, found)
    missing = [place.file.backbone for place in places if place.path is None]
    if missing:
        log.info("looked in %s", _listed(dest))
        log.info("to get what is missing, on a machine with internet: `%s`", fetch_command(missing, dest or "DIR"))


def verify_weights(names: Sequence[str], dest: str | None) -> None:
    """Compare the hashes of the weight files of these backbones, by default of all that are found.

    Args:
        names: backbones, or `all`; none named is all, of which some may be missing.
        dest: look only in this folder; None for wherever a training run looks.

    Raises:
        UserError: a file is wrong, a named one is missing, or none is there.
    """
    states = {place.file.backbone: _verify(place) for place in _look(_backbones(names or [ALL]), dest)}
    wrong = [backbone for backbone, state in states.items() if state == "wrong"]
    missing = [backbone for backbone, state in states.items() if state == "missing"]
    if wrong or (missing and names) or len(missing) == len(states):
        again = [*wrong, *missing] if names or not wrong else wrong
        count = f"{len(wrong)} wrong, {len(missing)} missing of {len(states)}"
        raise UserError(
            f"weights verify: {count} in {_listed(dest)}; to get them: `{fetch_command(again, dest or 'DIR')}`"
        )


def _fetch(file: WeightsFile, folder: Path, mirror: str | None) -> None:
    path = folder / file.name
    if os.path.isfile(path):
        if check(path, file):
            log.info("%s: %s is there already, hash checked", file.backbone, path)
            return
        log.info("%s: %s has a wrong hash and is replaced", file.backbone, path)
    url = file.url if mirror is None else f"{mirror}/{file.name}"
    log.info("%s: downloads %s", file.backbone, url)
    download(url, path, file.hash, timeout_s=PATIENCE_S, tries=TRIES, progress=True)
    log.info("%s: %s, %.1f MB, hash checked", file.backbone, path, path.stat().st_size / 1e6)


def _verify(place: _Place) -> str:
    """`ok`, `wrong` or `missing`, and a line about it."""
    file, path = place.file, place.path
    if path is None:
        log.info("%-17s missing", file.backbone)
        return "missing"
    if check(path, file):
        log.info("%-17s ok  %s", file.backbone, path)
        return "ok"
    received = hash_of(path, like=file.hash)
    log.info("%-17s wrong hash: %s, expected %s  %s", file.backbone, received, file.hash, path)
    return "wrong"


def _look(backbones: Sequence[str], dest: str | None) -> list[_Place]:
    places = _folders(dest)
    files = map(weights_file, backbones)
    return [_Place(file, find_in(places, file)) for file in files]


def _folders(dest: str | None) -> list[Path]:
    """Only the folder given, else those that a training run looks in."""
    found = folders(dest, os.environ)
    return found[:1] if dest else found


def _listed(dest: str | None) -> str:
    return " and ".join(map(str, _folders(dest)))


def _backbones(names: Sequence[str]) -> list[str]:
    """The backbones named, each once. UserError for an unknown one."""
    for name in names:
        if name not in (*HAS_IMAGENET, ALL):
            close = difflib.get_close_matches(name.lower(), HAS_IMAGENET, 1)
            meant = f"did you mean {close[0]}? " if close else ""
            known = ", ".join((*HAS_IMAGENET, ALL))
            raise UserError(f"weights: there are none of ImageNet for {name!r}; {meant}known are {known}")
    return list(HAS_IMAGENET) if ALL in names else list(dict.fromkeys(names))


def _mirror(given: str | None) -> str | None:
    """The mirror's address without a slash at its end. UserError for what is none."""
    if given is None:
        return None
    if not given.startswith(("http://", "https://", "file://")):
        raise UserError(f"--mirror {given}: expected an address that begins with http://, https:// or file://")
    return given.rstrip("/")
