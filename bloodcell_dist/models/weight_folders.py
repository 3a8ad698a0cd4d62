"""Where ImageNet weight files lie. Apart from `imagenet.py`, since Keras takes seconds to import."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def weight_folders(weights_dir: str | None, environ: Mapping[str, str]) -> list[Path]:
    """Where weight files are looked for, in this order; the first is where a new one goes.

    Args:
        weights_dir: the setting model.weights_dir; without it, $BLOODCELL_WEIGHTS is taken.
        environ: the environment; its KERAS_HOME says where Keras keeps its own files.
    """
    given = weights_dir or environ.get("BLOODCELL_WEIGHTS")
    own = [Path(os.path.expanduser(given))] if given else []
    home = Path(os.path.expanduser(environ.get("KERAS_HOME") or "~/.keras"))
    # Keras writes to /tmp/.keras instead where it may not write, but a shared, read-only KERAS_HOME can be read from.
    homes = [home] if os.access(home, os.W_OK) else [home, Path("/tmp/.keras")]
    return [*own, *(place / "models" for place in homes)]


def find_named(places: Sequence[Path], name: str) -> Path | None:
    """The first of these folders' files that has the name."""
    candidates = (place / name for place in places)
    return next((path for path in candidates if os.path.isfile(path)), None)
