"""One picture file, or one decoded picture of another size, to uint8 [S, S, 3]."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bloodcell_dist.errors import UserError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
_SLIDE_WHITE = (255, 255, 255, 255)  # what transparent pixels become: the empty field of a bright-field microscope


def is_picture(path: Path) -> bool:
    """A visible file with one of PICTURE_SUFFIXES; upper and lower case are the same."""
    return not path.name.startswith(".") and path.suffix.lower() in PICTURE_SUFFIXES


def picture_files(folder: Path) -> tuple[list[Path], int]:
    """Pictures in `folder` and below, sorted by name, and how many other visible files lie between them.

    Hidden files and everything in hidden folders count as neither.
    """
    inside = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    visible = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    pictures = sorted((path for path in visible if is_picture(path)), key=Path.as_posix)
    return [folder / path for path in pictures], len(visible) - len(pictures)


def read_picture(path: Path, image_size: int, crop: int | None) -> np.ndarray:
    """Decode one file to uint8 [image_size, image_size, 3].

    The EXIF orientation is applied, 16 bits are scaled to 8, grey, palette and CMYK become RGB, transparency
    is laid on white, and of a file with several pages the first is taken. Raises UserError naming the file
    when it is truncated, no picture, or of a kind without a fixed range (floating point, 32-bit integers).
    """
    try:
        with Image.open(path) as opened:
            picture = _to_rgb(ImageOps.exif_transpose(opened), path)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: no picture that can be read; expected JPEG, PNG, BMP or TIFF") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the picture is truncated or damaged ({error}); copy it again or remove it") from error
    return fit_picture(picture, image_size, crop, str(path))


def fit_picture(picture: Image.Image, image_size: int, crop: int | None, where: str) -> np.ndarray:
    """Central square of an RGB picture, resized (bicubic, antialiased) to uint8 [image_size, image_size, 3].

    The square has sides of `crop` pixels, or the shorter side of the picture without `crop`, so a cell is
    never stretched. A picture smaller than `crop` passes only if it has the final size already, as a cropped
    copy of the same set would. `where` opens the message of the UserError that a too small picture raises.
    """
    width, height = picture.size
    side = crop or min(width, height)
    if side > min(width, height):
        if (width, height) == (image_size, image_size):
            return np.asarray(picture)
        raise UserError(
            f"{where} is {width}x{height} pixels, smaller than data.crop={crop}; "
            f"use data.crop={min(width, height)} or null (no crop)"
        )
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    if side != image_size:
        square = square.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(square)


def check_geometry(image_size: int, crop: int | None) -> None:
    """Both positive; raises UserError naming the key."""
    if image_size < 1:
        raise UserError(f"data.image_size={image_size}; expected a positive number of pixels, for example 96")
    if crop is not None and crop < 1:
        raise UserError(f"data.crop={crop}; expected a positive number of pixels (PBC cells: 200) or null")


def for_each(task: Callable[[int], None], items: Iterable[int]) -> None:
    """Run `task(item)` for all items in threads (Pillow decodes outside the interpreter lock); the first error wins."""
    pool = ThreadPoolExecutor(max_workers=min(16, _usable_cores()))
    try:
        for _ in pool.map(task, items):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _usable_cores() -> int:
    """Cores this process may use: Slurm binds ranks to fewer than the node has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _to_rgb(picture: Image.Image, path: Path) -> Image.Image:
    if picture.mode == "F":
        raise UserError(f"{path}: floating-point pixels have no fixed range; save the picture as 8-bit RGB")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _from_16_bit(picture, path)
    if "transparency" in picture.info or picture.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        white = Image.new("RGBA", picture.size, _SLIDE_WHITE)
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _from_16_bit(picture: Image.Image, path: Path) -> Image.Image:
    """Grey-scale [0, 65535] to RGB [0, 255]; Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path}: 32-bit integer pixels have no fixed range; save the picture as 8-bit RGB")
    grey = np.rint(values / 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
