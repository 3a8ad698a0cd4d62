"""The log: plain lines on standard output and the same, with times, in the run's log.txt."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import tqdm

PACKAGE = "bloodcell_dist"
FILE_ONLY = {"file_only": True}
"""As `extra` of a record: for log.txt, not for the terminal."""


class _AboveTheBar(logging.Handler):
    """Prints lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            with tqdm.tqdm.external_write_mode(file=sys.stdout):
                sys.stdout.write(self.format(record) + "\n")
                sys.stdout.flush()
        except (OSError, ValueError):
            self.handleError(record)


class _Plain(logging.Formatter):
    """The message alone; warnings say so."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        message = record.getMessage()
        return f"{record.levelname.lower()}: {message}" if record.levelno >= logging.WARNING else message


class _Early(logging.Handler):
    """Keeps what is said before the run folder exists, for its log file."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self.records.append(record)


_early = _Early()


@contextlib.contextmanager
def console() -> Iterator[None]:
    """Print the package's log while inside, and keep it for a `log_file` opened later."""
    handler = _AboveTheBar()
    handler.setFormatter(_Plain())
    handler.addFilter(lambda record: not hasattr(record, "file_only"))
    try:
        with _attached(handler), _attached(_early):
            yield
    finally:
        _early.records.clear()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Say nothing while inside: of several ranks, only the chief speaks."""
    logger = logging.getLogger(PACKAGE)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append the package's log to a file while inside, beginning with what was said before."""
    handler = _file_handler(path)
    logging.getLogger(PACKAGE).removeHandler(_early)
    for record in _early.records:
        handler.emit(record)
    _early.records.clear()
    with contextlib.closing(handler), _attached(handler):
        yield


def append_error(path: Path, message: str) -> None:
    """Write one line to a log file that another process, or another thread of this one, may have open."""
    with contextlib.closing(_file_handler(path)) as handler:
        handler.emit(logging.LogRecord(PACKAGE, logging.ERROR, __file__, 0, "%s", (message,), None))


def _file_handler(path: Path) -> logging.FileHandler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


@contextlib.contextmanager
def _attached(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger(PACKAGE)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
