"""Near-duplicates once found, kept beside the decoded sets: the search takes time in N squared at every start."""

import hashlib
import json
import logging
import zlib
from dataclasses import astuple
from pathlib import Path

from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.data.rows import Images, blocks
from bloodcell_dist.data.similarity import HASH_BITS, MAX_DISTANCE, NearPair, near_duplicates

_log = logging.getLogger(__name__)
_VERSION = 1  # raise it when near_duplicates finds other pairs


def find_pairs(cache_dir: str | Path | None, images: Images, others: Images | None = None) -> list[NearPair]:
    """What `near_duplicates(images, others)` returns, from the cache folder if it was found before.

    A file is found by a hash of the pictures and the limits. A damaged one is made anew; where it cannot be written,
    a warning says so. Without `cache_dir` nothing is kept.
    """
    if cache_dir is None:
        return near_duplicates(images, others)
    path = Path(cache_dir).expanduser() / "near_duplicates" / f"{_key(images, others)}.json"
    known = _read(path)
    if known is not None:
        return known
    pairs = near_duplicates(images, others)
    rows = [list(astuple(pair)) for pair in pairs]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, {"checksum": _checksum(rows), "pairs": rows})
    except OSError as error:
        _log.warning("%s cannot be written (%s); the next start will look again", path, error.strerror or error)
    return pairs


def _key(*sets: Images | None) -> str:
    digest = hashlib.sha256(repr((_VERSION, HASH_BITS, MAX_DISTANCE)).encode())
    for images in sets:
        if images is not None:
            digest.update(repr(images.shape).encode())
            for block in blocks(images):
                digest.update(block)
    return digest.hexdigest()[:20]


def _read(path: Path) -> list[NearPair] | None:
    try:
        content = json.loads(path.read_bytes())
        if content["checksum"] != _checksum(content["pairs"]):
            raise ValueError("not what was written")
        return [NearPair(*row) for row in content["pairs"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s is damaged (%s); looking for near-duplicates again", path, error)
        return None


def _checksum(rows: list[list[float]]) -> int:
    return zlib.crc32(json.dumps(rows).encode())
