"""Labelled cells from a folder that holds one folder of pictures per class."""

import csv
import difflib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bloodcell_dist.data.dataset import Allocate, ArrayDataset, check_class_names, number_groups
from bloodcell_dist.data.pictures import for_each, is_picture, picture_files, read_picture
from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import BLOOD_CELLS

_log = logging.getLogger(__name__)
_GROUP_FILES = ("groups.csv", "index.csv")
_SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class ClassFolders:
    """What lies in a folder of class folders, before anything is decoded.

    files: every picture, class by class, each class sorted by name. labels: one per file.
    """

    root: Path
    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    def names(self) -> tuple[str, ...]:
        """Paths of the pictures as seen from `root`, with forward slashes."""
        return tuple(file.relative_to(self.root).as_posix() for file in self.files)


def list_class_folders(root: Path, class_names: Sequence[str] | None) -> ClassFolders:
    """Find the pictures of each class; folder names match class names in any case.

    Without `class_names` the classes are the folders: in the order of BLOOD_CELLS if all are among them, else
    sorted. A class without a folder has no examples (a test set may lack one); a folder without pictures is a
    mistake. Other files are passed over with a count in the log, hidden ones without.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    _check_layout(root, folders)
    names = tuple(class_names) if class_names else _names_of(folders)
    check_class_names(names)
    files: list[Path] = []
    labels: list[int] = []
    ignored = sum(is_picture(path) for path in root.iterdir())
    for label, folder in _by_label(folders, names):
        pictures, others = picture_files(folder)
        if not pictures:
            raise UserError(
                f"{folder}: the class folder holds no pictures ({others} other files); "
                "expected .jpg, .png, .bmp or .tif files. Add pictures or remove the folder"
            )
        files += pictures
        labels += [label] * len(pictures)
        ignored += others
    if ignored:
        _log.warning("%s: passed over %d files that are no pictures or lie outside the class folders", root, ignored)
    return ClassFolders(root, names, tuple(files), tuple(labels))


def group_file(root: Path, group_column: str | None) -> Path | None:
    """The CSV file with the group column: groups.csv, else index.csv; None when no column is asked for."""
    if group_column is None:
        return None
    for name in _GROUP_FILES:
        if (root / name).is_file():
            return root / name
    raise UserError(
        f"{root} has neither groups.csv nor index.csv, which data.group_column={group_column} is read from; "
        f"expected a CSV file with the columns file,{group_column}"
    )


def read_folder(
    found: ClassFolders, *, image_size: int, crop: int | None, group_column: str | None, allocate: Allocate
) -> ArrayDataset:
    """Decode all pictures in parallel, straight into the array that `allocate` makes."""
    names = found.names()
    table = group_file(found.root, group_column)
    groups = None if table is None else _read_groups(table, str(group_column), names)
    images = allocate((len(found.files), image_size, image_size, 3))

    def decode(index: int) -> None:
        images[index] = read_picture(found.files[index], image_size, crop)

    for_each(decode, range(len(found.files)))
    return ArrayDataset(images, np.array(found.labels, np.int64), found.class_names, groups, names)


def _check_layout(root: Path, folders: list[Path]) -> None:
    layout = f"expected one folder of pictures per class, for example {root / BLOOD_CELLS[0]}/cell1.jpg"
    if not folders:
        count = sum(is_picture(path) for path in root.iterdir())
        raise UserError(f"{root} holds no class folders ({count} pictures directly in it); {layout}")
    splits = [folder for folder in folders if folder.name.casefold() in _SPLIT_FOLDERS]
    if len(splits) == len(folders):
        raise UserError(
            f"{root} holds {', '.join(folder.name for folder in folders)}, not classes; {layout}. "
            f"Give one part, for example data.path={splits[-1]}, and data.test_path for the test part"
        )


def _names_of(folders: list[Path]) -> tuple[str, ...]:
    names = [folder.name for folder in folders]
    lowered = {name.casefold() for name in names}
    if lowered <= set(BLOOD_CELLS):
        return tuple(name for name in BLOOD_CELLS if name in lowered)
    return tuple(names)


def _by_label(folders: list[Path], class_names: tuple[str, ...]) -> list[tuple[int, Path]]:
    """(label, folder) in label order; refuses folders that no class has and two folders for one class."""
    labels = {name.casefold(): label for label, name in enumerate(class_names)}
    found: dict[int, Path] = {}
    for folder in folders:
        name = folder.name.casefold()
        if name not in labels:
            close = difflib.get_close_matches(name, list(labels), n=1, cutoff=0.4)
            hint = f"did you mean '{class_names[labels[close[0]]]}'?" if close else "rename or remove it"
            raise UserError(f"{folder}: no class has this name; {hint} (data.class_names: {', '.join(class_names)})")
        if labels[name] in found:
            raise UserError(f"{folder} and {found[labels[name]]} name the same class; merge them")
        found[labels[name]] = folder
    return sorted(found.items())


def _read_groups(table: Path, column: str, names: tuple[str, ...]) -> np.ndarray:
    """int64 [N]: the group of each picture; rows name a picture by its path below the folder, or by its file
    name alone."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"file", column} - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{table} has no column {' or '.join(sorted(missing))}; expected file,{column}")
            groups = {Path(row["file"] or "").as_posix(): row[column] for row in reader}
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"{table} cannot be read as a CSV file in UTF-8: {error}") from error
    bare = Counter(Path(name).name for name in names)
    values = [
        groups.get(name) or (groups.get(Path(name).name) if bare[Path(name).name] == 1 else None) for name in names
    ]
    without = [name for name, value in zip(names, values, strict=True) if not value]
    if without:
        raise UserError(
            f"{table} gives no {column} for {without[0]} ({len(without)} such pictures); add a row for each"
        )
    return number_groups(np.array(values))
