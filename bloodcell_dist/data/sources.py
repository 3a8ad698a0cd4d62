"""The four sources of labelled cells behind one function, `load_dataset`, and unlabelled pictures for prediction."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bloodcell_dist.data.cache import Build, cached, describe_files
from bloodcell_dist.data.dataset import ArrayDataset
from bloodcell_dist.data.folder import group_file, list_class_folders, read_folder
from bloodcell_dist.data.npz import fill, picture_shape, read_medmnist, read_npz
from bloodcell_dist.data.npz_file import open_npz
from bloodcell_dist.data.pictures import check_geometry, for_each, is_picture, picture_files, read_picture
from bloodcell_dist.data.synthetic import DRAWING_VERSION, synthetic_cells
from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import BLOOD_CELLS

SOURCES = ("npz", "medmnist", "folder", "synthetic")


def load_dataset(
    source: str,
    path: str | Path | None,
    *,
    class_names: Sequence[str] | None = None,
    image_size: int = 96,
    crop: int | None = None,
    cache_dir: str | Path | None = None,
    scratch_dir: str | Path | None = None,
    group_column: str | None = None,
    seed: int = 0,
    synthetic_examples: int = 2400,
) -> ArrayDataset:
    """Load labelled cells as uint8 [N, image_size, image_size, 3].

    source: one of SOURCES, or "auto" to tell from `path`. path: file or folder; not used by "synthetic".
    crop: side in pixels of the central square that is cut out before resizing; None takes the largest.
    cache_dir: where the decoded set is kept and memory-mapped from; None decodes into memory.
    scratch_dir: a disk of this node, to which the decoded set is copied and from where it is mapped instead.
    group_column: an array of that name (npz) or a column of groups.csv or index.csv (folder).
    seed, synthetic_examples: which cells are drawn, and how many; only for "synthetic".
    Raises UserError naming the key or file for whatever does not fit.
    """
    check_geometry(image_size, crop)
    names = tuple(class_names) if class_names else None
    if source == "synthetic":
        key, build = _synthetic(names, image_size, seed, synthetic_examples)
        return cached(_folder(cache_dir), key, build, _folder(scratch_dir))
    place = _existing(path)
    kind = detect_source(place) if source == "auto" else source
    settings = {"class_names": names, "image_size": image_size, "crop": crop, "group_column": group_column}
    if kind == "folder":
        key, build = _class_folders(place, settings)
    elif kind in ("npz", "medmnist"):
        key, build = _archive(kind, place, settings)
    else:
        raise UserError(f"data.source={source}; expected auto, {', '.join(SOURCES)}")
    return cached(_folder(cache_dir), {"source": kind, **settings, **key}, build, _folder(scratch_dir))


def detect_source(path: str | Path) -> str:
    """ "folder" for a folder; "npz" or "medmnist" for a file, by the names of its arrays."""
    place = _existing(path)
    if place.is_dir():
        return "folder"
    with open_npz(place) as file:
        arrays = file.array_names()
    if "images" in arrays:
        return "npz"
    if "train_images" in arrays:
        return "medmnist"
    raise UserError(
        f"{place} has the arrays {', '.join(arrays) or 'none'}; expected images and labels, "
        "or MedMNIST's train_images, train_labels, val_images, …"
    )


def load_images(input_path: str | Path, image_size: int, crop: int | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Unlabelled cells: (uint8 [N, image_size, image_size, 3], N names).

    input_path: one picture, a folder of pictures (searched to any depth; names are paths inside it), or an
    `.npz` with `images` (names are indices). Raises UserError naming the file that cannot be read.
    """
    check_geometry(image_size, crop)
    place = _existing(input_path)
    if place.is_file() and not is_picture(place):
        return _npz_images(place, image_size, crop)
    files = picture_files(place)[0] if place.is_dir() else [place]
    if not files:
        raise UserError(f"{place} holds no pictures; expected .jpg, .png, .bmp or .tif files in it or below")
    images = np.empty((len(files), image_size, image_size, 3), np.uint8)

    def decode(index: int) -> None:
        images[index] = read_picture(files[index], image_size, crop)

    for_each(decode, range(len(files)))
    return images, tuple(file.relative_to(place).as_posix() if file != place else file.name for file in files)


def _npz_images(path: Path, image_size: int, crop: int | None) -> tuple[np.ndarray, tuple[str, ...]]:
    with open_npz(path) as file:
        count = picture_shape(file, "images")[0]
        images = np.empty((count, image_size, image_size, 3), np.uint8)
        fill(file, "images", images, image_size, crop)
    return images, tuple(str(index) for index in range(count))


def _synthetic(
    names: tuple[str, ...] | None, image_size: int, seed: int, num_examples: int
) -> tuple[dict[str, Any], Build]:
    if names not in (None, BLOOD_CELLS):
        raise UserError(
            f"data.class_names={list(names or ())} with data.source=synthetic; drawn cells are always "
            f"{', '.join(BLOOD_CELLS)}: leave data.class_names out or give data.path"
        )
    key = {"source": "synthetic", "version": DRAWING_VERSION, "image_size": image_size, "seed": seed}
    build = partial(synthetic_cells, num_examples, image_size=image_size, seed=seed)
    return {**key, "num_examples": num_examples}, lambda allocate: build(allocate=allocate)


def _class_folders(root: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], Build]:
    if not root.is_dir():
        raise UserError(f"data.path={root} is a file; data.source=folder expects a folder of class folders")
    found = list_class_folders(root, settings["class_names"])
    table = group_file(root, settings["group_column"])
    key = {"files": describe_files([*found.files, *([table] if table else [])]), "labels": found.labels}
    decode = {name: settings[name] for name in ("image_size", "crop", "group_column")}
    return key, lambda allocate: read_folder(found, **decode, allocate=allocate)


def _archive(kind: str, path: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], Build]:
    if path.is_dir():
        raise UserError(f"data.path={path} is a folder; data.source={kind} expects an .npz file")
    read = read_npz if kind == "npz" else read_medmnist
    return {"files": describe_files([path])}, lambda allocate: read(path, **settings, allocate=allocate)


def _existing(path: str | Path | None) -> Path:
    if path is None:
        raise UserError("data.path is not set; give the file or folder of the cells, or data.source=synthetic")
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{place}: no such file or folder")
    return place


def _folder(cache_dir: str | Path | None) -> Path | None:
    return None if cache_dir is None else Path(cache_dir).expanduser()
