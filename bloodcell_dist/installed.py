"""What is installed in this environment, without importing it."""

from __future__ import annotations

import importlib.metadata
import importlib.util


def installed_version(name: str) -> str | None:
    """The version of a distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_horovod() -> bool:
    """Whether there is a Horovod to import; it may still lack what is needed."""
    return importlib.util.find_spec("horovod") is not None
