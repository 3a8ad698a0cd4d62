"""Pictures that show the same cell: byte-identical copies, and near-duplicates under the eight flips and
rotations.

Near-duplicates are found in two steps. A perceptual hash (the 64-bit pHash, as in the library ImageHash: sign
of the 8x8 lowest DCT coefficients against their median) proposes pairs; turning a picture only swaps and
negates its coefficients, so the eight orientations cost one transform. Then the pixels decide: the pair is
laid over each other in that orientation, and 1 - correlation of the two, reduced to 24x24 RGB, must be small.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.fft import dct
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bloodcell_dist.data.rows import Images

HASH_BITS = 12
"""Most differing bits of a candidate pair. Re-encoding, another exposure or one pixel of shift change up to
10 for 95% of cells; unrelated real cells are this close once in a thousand pairs, which the pixels then
reject."""

MAX_DISTANCE = 0.03
"""Largest 1 - correlation of a near-duplicate. Measured on 6,377 real cells: no two different cells are
closer than 0.042, and copies re-saved as JPEG (quality 30), brighter, blurred, or shifted by one pixel mostly
lie below 0.025."""

_HASH_SIDE, _REDUCED, _LOW = 32, 24, 8
_BLOCK = 256
_PAIRS = 4096  # compared at a time; flat pictures all have one hash, so candidates can be many
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's conversion to grey


@dataclass(frozen=True)
class NearPair:
    """Two pictures of one cell by their indices, and their distance 1 - correlation in [0, MAX_DISTANCE].

    Within one set first < second; between two sets `first` counts in the one and `second` in the other.
    orientation: 0-7, see `oriented`; turning `first` by it lays it over `second`.
    """

    first: int
    second: int
    orientation: int
    distance: float


def identical_copies(images: Images) -> list[np.ndarray]:
    """Sets of byte-identical pictures: int64 index arrays of two or more, each sorted, in order of their first."""
    found: dict[bytes, list[int]] = defaultdict(list)
    for index in range(len(images)):
        found[hashlib.blake2b(np.ascontiguousarray(images[index]).data, digest_size=16).digest()].append(index)
    return [np.array(indices, np.int64) for indices in found.values() if len(indices) > 1]


def near_duplicates(
    images: Images,
    others: Images | None = None,
    *,
    hash_bits: int = HASH_BITS,
    max_distance: float = MAX_DISTANCE,
) -> list[NearPair]:
    """All near-duplicate pairs among uint8 [N, H, W, 3], each once with its best orientation, sorted.

    With `others`, uint8 [M, H, W, 3], only the pairs between the two sets. Takes time in N squared, or N times M: 2 s
    for 6,000 pictures of 96x96 on one core. Pictures that are not square are compared in the four orientations that
    keep their shape.
    """
    coefficients, pictures = _describe(images)
    other_coefficients, other_pictures = (coefficients, pictures) if others is None else _describe(others)
    plain = _hashes(other_coefficients)
    orientations = range(8) if images.shape[1] == images.shape[2] else (0, 2, 4, 6)
    best: dict[tuple[int, int], NearPair] = {}
    for orientation in orientations:
        hashes = _hashes(_turn_coefficients(coefficients, orientation))
        for first, second in _close_hashes(hashes, plain, hash_bits, same_set=others is None):
            turned = oriented(pictures[first], orientation)
            distance = 1 - np.einsum("pyxc,pyxc->p", turned, other_pictures[second])
            for i in np.flatnonzero(distance <= max_distance):
                pair = NearPair(int(first[i]), int(second[i]), orientation, max(0.0, float(distance[i])))
                known = best.get((pair.first, pair.second))
                if known is None or pair.distance < known.distance:
                    best[pair.first, pair.second] = pair
    return [best[key] for key in sorted(best)]


def oriented(images: np.ndarray, orientation: int) -> np.ndarray:
    """[N, H, W, C] in orientation 0-7: mirrored left to right from 4 on, then `orientation % 4` quarter turns."""
    mirrored = images[:, :, ::-1] if orientation >= 4 else images
    return np.rot90(mirrored, orientation % 4, axes=(1, 2))


def connected_groups(num_examples: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int64 [num_examples]: the connected component of each example, given the links between them."""
    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(num_examples, num_examples))
    return connected_components(links, directed=False)[1].astype(np.int64)


def _describe(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """The 8x8 low DCT coefficients [N, 8, 8] of the grey pictures, and the pictures as [N, 24, 24, 3], standardised."""
    height, width = images.shape[1:3]
    low = dct(np.eye(_HASH_SIDE, dtype=np.float32), axis=0, norm="ortho")[:_LOW]
    hash_rows, hash_columns = low @ _area(height, _HASH_SIDE), low @ _area(width, _HASH_SIDE)
    # Rows of a picture lie in memory as red, green, blue, red, …: these matrices act on such rows as they are,
    # so that no transposed copy of the pictures is made.
    to_grey_waves = np.kron(hash_columns.T, _LUMA[:, None])
    to_columns = np.kron(_area(width, _REDUCED).T, np.eye(3, dtype=np.float32))
    coefficients = np.empty((len(images), _LOW, _LOW), np.float32)
    reduced = np.empty((len(images), _REDUCED, _REDUCED, 3), np.float32)
    for start in range(0, len(images), _BLOCK):
        block = np.asarray(images[start : start + _BLOCK], np.float32).reshape(-1, height, width * 3)
        coefficients[start : start + _BLOCK] = (hash_rows @ block) @ to_grey_waves
        narrow = (_area(height, _REDUCED) @ block) @ to_columns
        reduced[start : start + _BLOCK] = narrow.reshape(-1, _REDUCED, _REDUCED, 3)
    return coefficients, _standardised(reduced)


def _area(length: int, parts: int) -> np.ndarray:
    """float32 [parts, length]: the matrix that averages `length` pixels over `parts` equal pieces."""
    edges = np.linspace(0, length, parts + 1)[:, None]
    pixels = np.arange(length)[None]
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (np.clip(overlap, 0, None) * parts / length).astype(np.float32)


def _turn_coefficients(coefficients: np.ndarray, orientation: int) -> np.ndarray:
    """DCT coefficients of `oriented(images, orientation)`: a mirror negates odd waves, a quarter turn also
    swaps the axes."""
    odd = np.where(np.arange(_LOW) % 2, -1, 1).astype(np.float32)
    turned = coefficients * odd if orientation >= 4 else coefficients
    for _ in range(orientation % 4):
        turned = turned.transpose(0, 2, 1) * odd[:, None]
    return turned


def _hashes(coefficients: np.ndarray) -> np.ndarray:
    """uint64 [N]: which of the 64 coefficients lie above their median."""
    flat = coefficients.reshape(len(coefficients), -1)
    bits = flat > np.median(flat, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _close_hashes(
    turned: np.ndarray, plain: np.ndarray, hash_bits: int, *, same_set: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index arrays (first, second) of the pairs that differ in at most `hash_bits` bits; in one set first < second."""
    for start in range(0, len(turned), _BLOCK):
        skipped = start if same_set else 0
        differing = np.bitwise_count(turned[start : start + _BLOCK, None] ^ plain[None, skipped:])
        first, second = np.nonzero(differing <= hash_bits)
        first, second = first + start, second + skipped
        if same_set:
            later = second > first
            first, second = first[later], second[later]
        for part in range(0, len(first), _PAIRS):
            yield first[part : part + _PAIRS], second[part : part + _PAIRS]


def _standardised(pictures: np.ndarray) -> np.ndarray:
    """[N, ...] shifted and scaled to mean 0 and length 1, so that a product is a correlation; flat ones become 0."""
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return (flat / np.where(length > 1e-3, length, np.inf)).reshape(pictures.shape)
