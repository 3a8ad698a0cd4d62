"""Labelled cells from `.npz` files: the original's `images`/`labels` and MedMNIST's six arrays.

Pictures are read in blocks, straight into their final place, so that a set larger than half of the memory can
be read.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from bloodcell_dist.data.dataset import (
    TEST,
    TRAIN,
    VAL,
    Allocate,
    ArrayDataset,
    check_images,
    check_label_range,
    number_groups,
    to_labels,
)
from bloodcell_dist.data.npz_file import NpzFile, open_npz
from bloodcell_dist.data.pictures import fit_picture, for_each
from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import BLOOD_CELLS

_PARTITIONS = {"train": TRAIN, "val": VAL, "test": TEST}


def read_npz(
    path: Path,
    *,
    class_names: tuple[str, ...] | None,
    image_size: int,
    crop: int | None,
    group_column: str | None,
    allocate: Allocate,
) -> ArrayDataset:
    """`images` uint8 (N, H, W, 3), `labels` integers (N,) or (N, 1), and the array `group_column`, if one is named."""
    with open_npz(path) as file:
        shape = picture_shape(file, "images")
        names = class_names or BLOOD_CELLS
        labels = _labels(file, "labels", shape[0], names)
        groups = None if group_column is None else number_groups(_column(file, group_column, shape[0]))
        images = allocate((shape[0], image_size, image_size, 3))
        fill(file, "images", images, image_size, crop)
    return ArrayDataset(images, labels, names, groups)


def read_medmnist(
    path: Path,
    *,
    class_names: tuple[str, ...] | None,
    image_size: int,
    crop: int | None,
    group_column: str | None,
    allocate: Allocate,
) -> ArrayDataset:
    """`train_images`, `train_labels`, `val_…`, `test_…` of bloodmnist*.npz, its split kept in `partition`.

    MedMNIST v2 (Yang et al. 2023) orders the eight blood cells as BLOOD_CELLS does. A group column is an
    array of that name behind the same three prefixes.
    """
    names = class_names or BLOOD_CELLS
    with open_npz(path) as file:
        counts = {part: picture_shape(file, f"{part}_images")[0] for part in _PARTITIONS}
        labels = [_labels(file, f"{part}_labels", counts[part], names) for part in _PARTITIONS]
        columns = [_column(file, f"{part}_{group_column}", counts[part]) for part in _PARTITIONS if group_column]
        images = allocate((sum(counts.values()), image_size, image_size, 3))
        start = 0
        for part, count in counts.items():
            fill(file, f"{part}_images", images[start : start + count], image_size, crop)
            start += count
    return ArrayDataset(
        images,
        np.concatenate(labels),
        names,
        groups=number_groups(np.concatenate(columns)) if columns else None,
        names=tuple(f"{part}_images[{i}]" for part, count in counts.items() for i in range(count)),
        partition=np.repeat(np.array(list(_PARTITIONS.values()), np.int8), list(counts.values())),
    )


def picture_shape(file: NpzFile, name: str) -> tuple[int, ...]:
    """Shape of an array of pictures, after the checks of `check_images`."""
    shape, dtype = file.header(name)
    check_images(shape, dtype, f"{file.path}: array '{name}'")
    return shape


def fill(file: NpzFile, name: str, images: np.ndarray, image_size: int, crop: int | None) -> None:
    """Write the pictures of an array into `images` uint8 [N, S, S, 3], cropped and resized where need be."""
    start = 0
    for block in file.blocks(name):
        target = images[start : start + len(block)]
        if crop is None and block.shape[1:3] == (image_size, image_size):
            target[:] = block
        else:
            _fit_block(block, target, crop, f"{file.path}: array '{name}'")
        start += len(block)


def _fit_block(block: np.ndarray, target: np.ndarray, crop: int | None, where: str) -> None:
    def fit(index: int) -> None:
        target[index] = fit_picture(Image.fromarray(block[index]), target.shape[1], crop, where)

    for_each(fit, range(len(block)))


def _labels(file: NpzFile, name: str, num_examples: int, class_names: tuple[str, ...]) -> np.ndarray:
    where = f"{file.path}: array '{name}'"
    labels = to_labels(file.array(name), num_examples, where)
    check_label_range(labels, class_names, where)
    return labels


def _column(file: NpzFile, name: str, num_examples: int) -> np.ndarray:
    column = file.array(name)
    if column.shape not in ((num_examples,), (num_examples, 1)):
        raise UserError(
            f"{file.path}: array '{name}' (data.group_column) has shape {column.shape}; "
            f"expected ({num_examples},), one group per picture"
        )
    return column.reshape(-1)
