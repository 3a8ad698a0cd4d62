"""An `.npz` file read array by array and block by block, with every fault of it as a message that names it.

Arrays with pickled objects are refused, since unpickling runs whatever code the file holds.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from bloodcell_dist.errors import UserError

_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class NpzFile:
    """An open `.npz`; `path` opens every message."""

    path: Path
    archive: zipfile.ZipFile

    def array_names(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self.archive.namelist()]

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of an array, without its content."""
        with self._member(name) as member:
            shape, _, dtype = _read_header(member, f"{self.path}: array '{name}'")
        return shape, dtype

    def array(self, name: str) -> np.ndarray:
        """A whole array; for the small ones."""
        self.header(name)  # refuses pickled objects with our message
        with self._member(name) as member:
            return np.asarray(npy_format.read_array(member, allow_pickle=False))

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Consecutive rows of a uint8 array, about 32 MiB at a time."""
        with self._member(name) as member:
            shape, fortran_order, _ = _read_header(member, f"{self.path}: array '{name}'")
            if fortran_order:  # the rows of such a file lie scattered over all of it
                yield self.array(name)
                return
            row_bytes = math.prod(shape[1:])
            rows = max(1, _BLOCK_BYTES // row_bytes)
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                content = member.read(count * row_bytes)
                if len(content) < count * row_bytes:
                    raise EOFError(f"array '{name}' ends early")
                yield np.frombuffer(content, np.uint8).reshape(count, *shape[1:])

    @contextmanager
    def _member(self, name: str) -> Iterator[IO[bytes]]:
        try:
            member = self.archive.open(name + ".npy")
        except KeyError:
            found = ", ".join(self.array_names()) or "none"
            raise UserError(f"{self.path} has no array '{name}'; its arrays are: {found}") from None
        with member:
            yield member


@contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """Opens an `.npz` file; whatever is wrong with it while it is open becomes a UserError that names it."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield NpzFile(path, archive)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is no intact .npz file ({error}); expected one that np.savez wrote") from error


def _read_header(member: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy_format.read_magic(member)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, fortran_order, dtype = read(member)
    if dtype.hasobject:
        raise UserError(
            f"{where} holds pickled Python objects, refused because reading them can run any code; "
            "save plain numbers, as in np.savez(path, images=images.astype('uint8'), labels=labels.astype(int))"
        )
    return shape, fortran_order, dtype
