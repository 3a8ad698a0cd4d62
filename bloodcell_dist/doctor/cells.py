"""The training and the test cells: there, readable, of which kind, how many."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from bloodcell_dist.data.folder import list_class_folders
from bloodcell_dist.data.npz import picture_shape
from bloodcell_dist.data.npz_file import open_npz
from bloodcell_dist.data.sources import detect_source
from bloodcell_dist.doctor.facts import Facts, in_words
from bloodcell_dist.doctor.findings import Finding, explained, ok, warning
from bloodcell_dist.errors import UserError

_BLOCK = 2**22


class Cells(Facts):
    """One set of cells.

    Attributes:
        path: file or folder; None for drawn cells, or no test set.
        source: npz, medmnist, folder or synthetic.
        examples: pictures; None where they were not counted.
        sha256: of the file, or of the names and contents of a folder's pictures; None where it was not computed.
        problem: why it cannot be used.
        drawn_for_want: whether cells are drawn because none were named.
    """

    path: str | None = None
    source: str = "synthetic"
    examples: int | None = None
    sha256: str | None = None
    problem: str | None = None
    drawn_for_want: bool = False


def look_at_cells(path: str | None, source: str, class_names: Sequence[str] | None, *, all_of_it: bool) -> Cells:
    """Opens a file and reads its headers, lists the classes of a folder.

    `all_of_it`: also reads every byte, for the checksum, and counts a folder's pictures.
    """
    if path is None:
        return Cells(source=source)
    try:
        kind = detect_source(path) if source in ("auto", "synthetic") else source
        files = _files(Path(path), class_names) if kind == "folder" and all_of_it else []
        examples = len(files) or (None if kind == "folder" else _examples(Path(path), kind))
        if kind == "folder" and not files:
            os.listdir(path)
        sha256 = checksum(Path(path), files) if all_of_it else None
    except UserError as failure:
        return Cells(path=path, source=source, problem=str(failure))
    except OSError as failure:
        return Cells(path=path, source=source, problem=in_words(failure))
    return Cells(path=path, source=kind, examples=examples, sha256=sha256)


def _files(path: Path, class_names: Sequence[str] | None) -> list[Path]:
    return list(list_class_folders(path, class_names).files)


def _examples(path: Path, kind: str) -> int:
    """From the headers of the arrays that will be read."""
    prefixes = ("train_", "val_", "test_") if kind == "medmnist" else ("",)
    with open_npz(path) as file:
        for prefix in prefixes:
            file.header(f"{prefix}labels")
        return sum(picture_shape(file, f"{prefix}images")[0] for prefix in prefixes)


def checksum(path: Path, files: Sequence[Path]) -> str:
    """SHA-256 of a file as sha256sum gives it; of a folder, over the names and contents of its pictures in order."""
    if not files:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for picture in files:
        digest.update(os.fsencode(picture.relative_to(path)) + b"\0")
        with picture.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def judge_cells(name: str, found: Cells, key: str) -> list[Finding]:
    """One set. `key`: the setting that names it."""
    variable = {"data.path": "BLOODCELL_DATA", "data.test_path": "BLOODCELL_TEST_SET"}[key]
    give = f"--set {key}=PATH, or {variable} in slurm/site.env"
    if found.problem is not None:
        return [explained(name, found.problem, f"put the cells there, or name others: {give}")]
    if found.drawn_for_want:
        return [warning(name, "none named, so it would train on DRAWN cells", give)]
    if found.path is None:
        drawn = "drawn cells, as data.source=synthetic asks"
        return [ok(name, drawn if key == "data.path" or found.source == "synthetic" else f"none ({key} is not set)")]
    count = "" if found.examples is None else f", {found.examples:,} cells"
    return [ok(name, f"{found.path}, {found.source}{count}")]


def judge_checksum(found: Cells) -> list[Finding]:
    """The whole hash, to be compared with that of the original; none if it was not computed."""
    return [] if found.sha256 is None else [ok("sha-256", f"{found.sha256} {Path(found.path or '').name}")]
